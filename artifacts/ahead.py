"""What is known of a pipeline before it starts: what its commands will make, what they need, what is wrong.

`launch.pipeline.check` goes through the commands in order and lets each command's module add what it knows:

    def look_ahead(arguments, ahead):               # beside `add_arguments` and `run`; optional
        ahead.wants(arguments.model)                # must be there, or be made by an earlier command
        ahead.makes(arguments.output, positions=2048)
        ahead.needs(disk=3e9)

A `UserError` that it raises is a problem of that command: a function that checks a setting can be called as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.layout import ENVIRONMENTS, REPOSITORY, lock_of


@dataclass
class Needs:
    """What a stage will need, as far as it can be computed: bytes of disk, GPU-hours, tokens; other facts as text."""

    disk: float = 0.0
    gpu_hours: float = 0.0
    hours: float = 0.0
    tokens: float = 0.0
    memory: float = 0.0  # bytes, of a GPU or of the machine
    gpus: float = 0.0  # of each machine
    nodes: float = 1.0
    notes: list[str] = field(default_factory=list)


@dataclass
class Ahead:
    """Facts collected so far. `stage` and the lists belong to the command that is looked at."""

    stage: str = ""
    made: dict[Path, dict[str, Any]] = field(default_factory=dict)  # what will exist, with facts about it
    problems: list[tuple[str, str]] = field(default_factory=list)  # stage, text
    elsewhere: list[tuple[str, str]] = field(default_factory=list)  # the same, of this machine: packages, GPUs, disk
    of_stage: dict[str, Needs] = field(default_factory=dict)
    counts: bool = True  # false for a stage that will not run: only what it makes is of interest
    quick: bool = False  # leave out checks that take seconds

    def problem(self, text: str) -> None:
        if self.counts and (self.stage, text) not in self.problems:
            self.problems.append((self.stage, text))

    def machine(self, text: str) -> None:
        """Note a problem of this machine, which another one may not have: a package, a GPU, the disk."""
        if self.counts and (self.stage, text) not in self.elsewhere:
            self.elsewhere.append((self.stage, text))

    def makes(self, path: Path | str, **facts: Any) -> None:
        """An earlier command will have made this file or folder."""
        self.made.setdefault(_absolute(path), {}).update(facts)

    def facts(self, path: Path | str) -> dict[str, Any]:
        """What is known of a file or folder that will be made; empty if nothing is."""
        return self.made.get(_absolute(path), {})

    def will_exist(self, path: Path | str) -> bool:
        """Whether a path exists, or will be made: itself, or a folder that it lies in and whose content is unknown."""
        wanted = _absolute(path)
        if wanted.exists() or wanted in self.made or any(wanted in made.parents for made in self.made):
            return True
        holders = [folder for folder in wanted.parents if folder in self.made]
        listed = [folder for folder in holders if self.made[folder].get("complete")]
        return bool(holders) and not listed

    def folders_in(self, path: Path | str) -> list[Path]:
        """The folders in a folder that exist or will be made, sorted."""
        folder = _absolute(path)
        there = [one for one in folder.glob("*") if one.is_dir()]
        return [Path(path) / name for name in sorted({one.name for one in there} | self.names_in(folder))]

    def names_in(self, folder: Path) -> set[str]:
        return {made.name for made in self.made if made.parent == folder}

    def wants(self, path: Path | str, mend: str = "an earlier stage must make it; check the path") -> None:
        """Note a problem if the path neither exists nor will be made."""
        if not self.will_exist(path):
            near = self.names_in(_absolute(path).parent)
            beside = f" (beside it there will be {', '.join(sorted(near))})" if near else ""
            self.problem(f"{path} does not exist and no earlier stage makes it{beside}: {mend}")

    def environment(self, name: str, gpu: bool = False) -> None:
        """Note a problem if an environment was not made, or, with `gpu`, if it is one for a CPU."""
        if not (REPOSITORY / ENVIRONMENTS[name] / "bin" / "python").exists():
            self.machine(f"the environment {ENVIRONMENTS[name]} does not exist: run `make env-{name}`")
        elif gpu and lock_of(name) == name:
            self.machine(f"{ENVIRONMENTS[name]} cannot use a GPU: run `make env-{name} GPU=yes`")

    def needs(self, note: str = "", **amounts: float) -> None:
        """Add to what the stage needs: amounts are fields of `Needs`."""
        if not self.counts:
            return
        needs = self.of_stage.setdefault(self.stage, Needs())
        for name, amount in amounts.items():
            together = max if name in ("memory", "gpus", "nodes") else float.__add__
            setattr(needs, name, together(float(getattr(needs, name)), float(amount)))
        if note:
            needs.notes.append(note)

    def checks(self, function: Any, *arguments: Any) -> Any:
        """Call a function; a UserError that it raises becomes a problem, and the result is None."""
        try:
            return function(*arguments)
        except UserError as error:
            self.problem(str(error).splitlines()[0])
            return None


def _absolute(path: Path | str) -> Path:
    """An absolute path; a pipeline's paths are relative to the repository, where its commands run."""
    return Path(os.path.abspath(REPOSITORY / path))
