"""What the checks share: a finding, and careful ways to read files and to ask programs."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

OK, INFO, WARN, FAULT = "ok", "info", "warn", "fault"
ROOT = Path("/")  # where /proc, /sys and /dev are read
GB = 1e9
PYTHONS = ("python3.11", "python3.12", "python3.13")
PROGRAM_WAIT = 10.0  # seconds
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """What was looked at, its state, what was found, and the command or change that mends it.

    `private` are words in it that a bug report must not show.
    """

    name: str
    state: str
    found: str
    mend: str = ""
    private: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Check:
    group: str
    name: str
    look: Callable[[], Iterable[Finding]]


def at_once(tasks: list[Callable[[], T]], patience: float) -> list[T | None]:
    """The results of all tasks, run in threads; None for one that is not ready after `patience` seconds, or raised.

    The threads are daemons: a name server or a network drive that does not answer does not keep the program alive.
    """
    results: list[T | None] = [None] * len(tasks)

    def work(number: int) -> None:
        results[number] = tasks[number]()

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(results)


def ask(*command: str | Path) -> tuple[str, str]:
    """A program's output, and why there is none: not installed, no answer, or the last line of its complaint."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PROGRAM_WAIT,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        return "", "not installed"
    except subprocess.TimeoutExpired:
        return "", f"no answer in {PROGRAM_WAIT:.0f} s"
    except OSError as error:
        return "", error.strerror or str(error)
    output, complaint = (text.decode("utf-8", "replace").strip() for text in (done.stdout, done.stderr))
    if done.returncode == 127:  # a wrapper, such as pyenv's, of a program that is not there
        return "", "not installed"
    if done.returncode:
        return "", (complaint or output or f"exit code {done.returncode}").splitlines()[-1]
    return output, ""


def text_of(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
