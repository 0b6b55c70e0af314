"""Find the error that an upstream tool failed with in what it prints: its own first one, not its launcher's last.

torchrun, Accelerate and `subprocess` end with an error of their own (`ChildFailedError`, `CalledProcessError: Command
'['torchrun', …`), after those of the ranks; and of several ranks, those that lose a peer fail after the one at fault.
"""

from __future__ import annotations

import re

BEGINNING = "Traceback (most recent call last):"
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
LAUNCHERS = re.compile(r"(subprocess\.)?CalledProcessError\b|.*ChildFailedError\b|SystemExit\b")
PEERS = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Connection refused|NCCL.*unhandled")
RANK = re.compile(r"^(\[rank\d+\]: ?|\d+: )?")
KILLED = re.compile(r"\(exitcode: -9\) local_rank: (\d+)")  # torchrun


class FirstError:
    """Takes a tool's output line by line; `text` is the last line of its first traceback, "" if there is none.

    A traceback that handles another one (`raise … from`) counts as one with it. A rank that was killed prints none: the
    others' errors about a lost peer are then not the first.
    """

    def __init__(self) -> None:
        self.inside: dict[str, bool] = {}
        self.chained: dict[str, bool] = {}
        self.found: list[tuple[str, str]] = []  # rank, error
        self.killed = ""

    def feed(self, line: str) -> None:
        rank = RANK.match(line)[0]  # type: ignore[index]  # the pattern matches everything
        text = line[len(rank) :].rstrip()
        if (killed := KILLED.search(text)) and not self.killed:
            self.killed = (
                f"rank {killed[1]} was killed (SIGKILL), as Linux does when memory runs out (see `dmesg`): use "
                "less memory (micro-batch-size, seq-length, a smaller model) or a machine with more"
            )
        if text.startswith(BEGINNING):
            self.inside[rank] = True
        elif text.startswith(CHAINED):
            self.chained[rank] = True
        elif self.inside.get(rank) and text and not text.startswith((" ", "\t")):
            self.inside[rank] = False
            last = next((n for n in reversed(range(len(self.found))) if self.found[n][0] == rank), None)
            if self.chained.pop(rank, False) and last is not None:
                self.found[last] = (rank, text)
            else:
                self.found.append((rank, text))

    @property
    def text(self) -> str:
        errors = [text for _, text in self.found if not LAUNCHERS.match(text)]
        own = next((text for text in errors if not PEERS.search(text)), "")
        return own or self.killed or (errors[0] if errors else "")
