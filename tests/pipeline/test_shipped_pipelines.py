"""Every pipeline that ships: it loads, and each of its commands is one that its program knows."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from artifacts.layout import REPOSITORY
from launch.pipeline.definition import PIPELINES, load_pipeline

NAMES = sorted(path.stem for path in PIPELINES.glob("*.yaml"))


@cache
def help_of(*program: str) -> str:
    command = [sys.executable, "-m", *program, "--help"]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


def program_of(command: list[str]) -> tuple[str, ...]:
    """A command of myllm, or a module."""
    if command[0] == "myllm":
        return ("launch.cli", command[1])
    assert command[:2] == ["python", "-m"], command
    return (command[2],)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one_that_its_program_knows(name: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(name, tmp_path / "run")
    assert pipeline.name == name
    for stage in pipeline.stages:
        for command in stage.commands:
            known = help_of(*program_of(command)).replace("\n", " ")
            for word in command[2:]:
                flag = word.split("=")[0]
                if flag.startswith("--"):
                    assert any(f"{flag}{end}" in known for end in " ,]"), f"{name}, {stage.name}: {flag}"
