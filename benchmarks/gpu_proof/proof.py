"""The settings that every part of the proof gets, and functions that run its processes within the time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, write_json
from artifacts.layout import REPOSITORY
from artifacts.processes import die_with_parent

Row = dict[str, Any]


@dataclass(frozen=True)
class Proof:
    """One run of the proof."""

    on_gpu: bool  # False: tiny shapes on a CPU, to test every part
    work: Path  # logs, runs and models of the parts
    data: Path | None  # a run's folder with tokenizer/, dataset/ and tasks/; None if there is none
    card: str | None  # name in launch/pretraining/gpus.yaml, whose peak MFU refers to; None: unknown, or a CPU
    site: Path | None = None  # folder of installed wheels; None: the environment has everything
    site_posttraining: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # results that later parts need

    def environment(self, posttraining: bool = False, hide_gpu: bool = False) -> dict[str, str]:
        """Environment variables of a part's process."""
        sites = [self.site_posttraining] * posttraining + [self.site]
        path = [str(REPOSITORY), *(str(site) for site in sites if site), os.environ.get("PYTHONPATH", "")]
        added = {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONWARNINGS": "ignore",
            "HF_HUB_OFFLINE": "1",
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if hide_gpu:
            added["CUDA_VISIBLE_DEVICES"] = ""
        if hide_gpu or not self.on_gpu:
            added["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # more threads would spin on few cores
        return {**os.environ, **added}


def training_folder(data: Path, folder: Path) -> Path:
    """Create a new run's folder with links to the tokenizer and datasets of another run. Returns `folder`."""
    (folder / "dataset").mkdir(parents=True)
    (folder / "tokenizer").symlink_to((data / "tokenizer").resolve())
    for path in (data / "dataset").resolve().iterdir():
        if path.suffix in (".bin", ".idx"):
            (folder / "dataset" / path.name).symlink_to(path)
    blend = {
        split: [str(folder / "dataset" / Path(part).name) if number % 2 else part for number, part in enumerate(parts)]
        for split, parts in read_json(data / "dataset" / "blend.json").items()
    }
    write_json(folder / "dataset" / "blend.json", blend)
    return folder


class TimeLimit(UserError):
    """A process was killed at its part's time limit."""


def _start(command: list[str], log: Path, environment: dict[str, str], output: Any) -> subprocess.Popen[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    me = os.getpid()

    def alone() -> None:
        os.setsid()  # so that its child processes can be killed with it
        die_with_parent(me)

    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=output or stream,
            stderr=stream,
            text=True,
            preexec_fn=alone,
        )


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _told(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror:" in line]
    return (errors or lines or ["no output"])[-1][:300]


def start(proof: Proof, *arguments: str, log: Path, **how: bool) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS` of this repository in the background; `finish` waits for it."""
    return _start([sys.executable, *arguments], log, proof.environment(**how), None)


def finish(process: subprocess.Popen[str], log: Path, deadline: float) -> None:
    """Wait for a started process.

    Args:
        deadline: `time.monotonic()` at which the process and its child processes are killed.

    Raises:
        TimeLimit: it was killed.
        UserError: it failed; the message has the last error line of its log.
    """
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _end(process)
        raise TimeLimit(f"stopped at the part's time limit (log: {log})") from None
    except BaseException:
        _end(process)
        raise
    if code:
        raise UserError(f"{_told(log)} (log: {log})")


def call(proof: Proof, *arguments: str, log: Path, deadline: float, **how: bool) -> None:
    """Run `python ARGUMENTS` to its end. Raises as `finish` does."""
    finish(start(proof, *arguments, log=log, **how), log, deadline)


def lines(proof: Proof, *arguments: str, log: Path, deadline: float, **how: bool) -> Iterator[str]:
    """Run `python ARGUMENTS` and yield each line of its standard output as it arrives. Raises as `finish` does."""
    import selectors

    process = _start([sys.executable, *arguments], log, proof.environment(**how), subprocess.PIPE)
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeLimit(f"stopped at the part's time limit (log: {log})")
                if not (chunk := os.read(descriptor, 1 << 16)):
                    break
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode() for line in whole)
        if rest:
            yield rest.decode()
        finish(process, log, deadline)
    finally:
        _end(process)
