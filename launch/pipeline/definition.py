"""Pipeline definitions: read `launch/pipelines/<name>.yaml` and check it before any stage starts."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.files import read_yaml, sha256
from artifacts.layout import REPOSITORY, cache_folder, relative, yaml_file

PIPELINES = REPOSITORY / "launch" / "pipelines"
PIPELINE_KEYS = ("name", "description", "notes", "values", "rehearsal", "stages")
STAGE_KEYS = ("commands", "needs", "reads")
PLACEHOLDER = re.compile(r"\{(--)?(\w+)\}")


TRAINERS = ("pretrain", "posttrain")  # myllm commands that use GPUs and resume from checkpoints


def is_myllm(command: list[str], *names: str) -> bool:
    """Whether a stage's command is `myllm NAME …`, NAME being one of `names`."""
    return command[0] == "myllm" and len(command) > 1 and command[1] in names


@dataclass(frozen=True)
class Stage:
    """One step of a run: commands that run one after another in the environment `.venv`."""

    name: str
    commands: list[list[str]]
    needs: list[str] = field(default_factory=list)
    reads: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline. `notes` is what to expect of it; `rehearsal` are values that `myllm rehearse` replaces."""

    name: str
    stages: list[Stage]
    values: dict[str, str] = field(default_factory=dict)
    notes: str = ""
    rehearsal: dict[str, str] = field(default_factory=dict)
    file: Path = Path()

    def between(self, first: str | None, last: str | None) -> list[Stage]:
        """The stages from `first` to `last`, both included.

        Raises:
            UserError: a name is unknown, or `first` comes after `last`.
        """
        names = [stage.name for stage in self.stages]
        for name in (first, last):
            if name is not None and name not in names:
                raise UserError(
                    f"pipeline {self.name} has no stage {name!r}{nearest(name, names)}; it has {', '.join(names)}"
                )
        start = names.index(first) if first else 0
        end = names.index(last) if last else len(names) - 1
        if start > end:
            raise UserError(f"--from {first} comes after --to {last} in pipeline {self.name}")
        return self.stages[start : end + 1]


def check_keys(where: str, found: dict[str, Any], valid: tuple[str, ...]) -> None:
    for key in found:
        if key not in valid:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, valid)}; valid are {', '.join(valid)}")


def load_pipeline(name: str, run: Path, replaced: list[str] | None = None) -> Pipeline:
    """Read and check a pipeline, and fill in the placeholders in its `commands` and `reads` for a run's folder.

    `{name}` becomes the value. `{--name}` becomes the option `--name VALUE`, or nothing when the value is the default
    of the YAML file. So a new option in a stage does not make the finished stages of older runs stale.

    Args:
        name: File name in launch/pipelines/, without `.yaml`.
        run: The run's folder.
        replaced: Values to replace, each as `NAME=VALUE`.

    Raises:
        UserError: an unknown pipeline, key, stage or value; the message names the nearest valid one.
    """
    path = yaml_file(name, PIPELINES, "pipeline")
    where = relative(path)
    content = read_yaml(path)
    check_keys(where, content, PIPELINE_KEYS)
    own = content.get("values", {})
    values = dict(own)
    smaller = {key: str(value) for key, value in content.get("rehearsal", {}).items()}
    check_keys(f"{where}, rehearsal", smaller, tuple(own))
    for assignment in replaced or []:
        key, equals, value = assignment.partition("=")
        if not equals or key not in values:
            raise UserError(
                f"--set {assignment}: write NAME=VALUE, where NAME is one of the `values` of {where}"
                f"{nearest(key, values)}: {', '.join(values)}"
            )
        values[key] = value
    folder = run.resolve()
    where_run = folder.relative_to(REPOSITORY) if folder.is_relative_to(REPOSITORY) else folder
    folders = {"run": str(where_run), "cache": str(cache_folder())}
    names = values | folders

    def of_value(match: re.Match[str]) -> str:
        option, key = match.groups()
        if key not in values:
            return match[0]
        if option:
            return f"--{key} {values[key]}" if str(values[key]) != str(own[key]) else ""
        return str(values[key])

    stages: list[Stage] = []
    for stage_name, entry in content["stages"].items():
        check_keys(f"{where}, stage {stage_name}", entry, STAGE_KEYS)
        for need in entry.get("needs", []):
            if need not in [stage.name for stage in stages]:
                raise UserError(f"{where}, stage {stage_name}: it needs {need!r}, which is not an earlier stage")
        for text in [*entry["commands"], *entry.get("reads", [])]:
            for option, key in PLACEHOLDER.findall(text):
                if key not in (values if option else names):
                    close = nearest(key, names)
                    raise UserError(f"{where}, stage {stage_name}: unknown placeholder {{{option}{key}}}{close}")
        commands = []
        for command in entry["commands"]:
            # a value may hold several words; a folder name with a space stays one word
            words = shlex.split(PLACEHOLDER.sub(of_value, command))
            commands.append([PLACEHOLDER.sub(lambda match: folders.get(match[2], match[0]), word) for word in words])
        # a pipeline of the user's own names files beside it, or the repository's
        wanted = [PLACEHOLDER.sub(of_value, name) for name in entry.get("reads", [])]
        reads = [next((f for f in (path.parent / n, REPOSITORY / n) if f.exists()), REPOSITORY / n) for n in wanted]
        for file in reads:
            if not file.exists():
                close = nearest(file.name, [path.name for path in file.parent.glob("*")])
                raise UserError(
                    f"{where}, stage {stage_name}: it reads {file.relative_to(REPOSITORY)}, which does not exist{close}"
                )
        stages.append(Stage(stage_name, commands, entry.get("needs", []), reads))
    return Pipeline(
        content["name"],
        stages,
        {key: str(value) for key, value in values.items()},
        str(content.get("notes", "")).strip(),
        smaller,
        path.resolve(),
    )


def fingerprint(stage: Stage, needed: dict[str, str]) -> str:
    """Hash of everything a stage's result depends on: its commands, the files it reads, the stages it needs.

    Args:
        needed: Fingerprints of the earlier stages, by name.
    """
    state = {
        "commands": stage.commands,
        "reads": [sha256(file) for file in stage.reads],
        "needs": {name: needed[name] for name in stage.needs},
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
