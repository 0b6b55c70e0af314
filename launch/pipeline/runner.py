"""Run a pipeline's stages one after another as processes: skip finished stages, resume interrupted ones.

A stage is done when its manifest `manifests/<stage>.json` says so. The manifest is written last and atomically, and
holds the fingerprint of the stage's inputs. Output goes to `logs/<stage>.log`; the newest `N/M` in it drives the
progress display. After a kill at any moment, the same command resumes: every stage writes to a temporary name and
renames, or resumes from a checkpoint.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from artifacts.errors import UserError
from artifacts.files import hold_lock, read_json, write_json
from artifacts.layout import REPOSITORY, Run, environment
from artifacts.stage import UNFINISHED
from launch.pipeline.definition import Pipeline, Stage, fingerprint, is_myllm

SAVING = 300.0  # seconds that a stage may take to save and exit
POLL = 1.0  # seconds between two polls of a running stage
TAIL = 65_536  # bytes of a log that are searched for progress
PROGRESS = re.compile(r"(?<![\d/.])(\d+) ?/ *(\d+)(?![\d/])")
MARK = "MYLLM_RUN_FOLDER"  # set in the environment of every process of a run, to find left-over ones
DONE = "done"


@dataclass
class Manifest:
    """Record of a finished or failed stage."""

    stage: str
    status: str
    fingerprint: str
    commands: list[str]
    seconds: float
    peak_memory_mb: float
    metrics: dict[str, Any] = field(default_factory=dict)


class StageUnfinished(UserError):
    """A stage ended early and in order, e.g. at its time limit: the same command resumes it."""


def manifest_path(run: Run, stage: str) -> Path:
    return run.manifests / f"{stage}.json"


def read_manifest(run: Run, stage: str) -> Manifest | None:
    path = manifest_path(run, stage)
    return Manifest(**read_json(path)) if path.exists() else None


def processes_of(run: Run) -> list[int]:
    """Ids of the running processes that carry this run's mark, and of all they started; without this process and its
    ancestors.

    The mark is a variable of the environment. A program that gives itself a title (vLLM) writes over its copy of that.
    """
    mark = f"{MARK}={run.folder.resolve()}".encode()
    parents: dict[int, int] = {}
    marked = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                marked.add(int(folder.name))

    def ancestors(pid: int) -> list[int]:
        line = []
        while pid in parents and pid not in line:
            line.append(pid)
            pid = parents[pid]
        return line

    own = set(ancestors(os.getpid()))
    marked -= own
    return [pid for pid in parents if pid not in own and not marked.isdisjoint(ancestors(pid))]


def end_left_over(run: Run) -> None:
    """Kill processes that a killed run left behind, which would write into the same folders."""
    for pid in processes_of(run):
        print(f"killing process {pid}, left over from an earlier run of {run.name}", flush=True)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def memory_mb(run: Run) -> float:
    """Proportional set size of all processes of the run together, in MB (shared pages count once)."""
    total = 0
    for pid in processes_of(run):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            continue
    return total / 1024


def last_progress(log: Path) -> tuple[int, int] | None:
    """The newest `N/M` in a log, printed by Megatron, tqdm or one of our stages; None if there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return None
    for line in reversed(re.split(r"[\r\n]", text)):
        if line.startswith("$ ") or "warning" in line.lower():
            continue
        for done, total in reversed(PROGRESS.findall(line)):
            if 0 <= int(done) <= int(total) and int(total) > 1:
                return int(done), int(total)
    return None


class Display:
    """Progress of a stage: one line rewritten in place on a terminal, else a new line every ten seconds."""

    def __init__(self, position: str, stage: str) -> None:
        self.label = f"[{position}] {stage}"
        self.live = sys.stdout.isatty()
        self.start = time.monotonic()
        self.shown = self.start

    def update(self, progress: tuple[int, int] | None) -> None:
        now = time.monotonic()
        if not self.live and now - self.shown < 10:
            return
        self.shown = now
        seconds = now - self.start
        line = f"{self.label:<20} {seconds:5.0f} s"
        if progress and progress[0]:
            done, total = progress
            eta = seconds * (total - done) / done
            bar = "#" * (20 * done // total)
            line += f"  {bar:<20} {done}/{total}, about {eta:.0f} s left"
        print(f"\r{line:<100}" if self.live else line, end="" if self.live else "\n", flush=True)

    def close(self, text: str) -> None:
        print(f"\r{self.label:<20} {text:<80}" if self.live else f"{self.label:<20} {text}", flush=True)


def last_error(log: Path) -> str:
    """The last line of a log that begins with `error:`, else the last non-empty line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1].removeprefix("error: ")


def start(command: list[str], run: Run, log: IO[bytes], metrics: Path, marked: bool = True) -> subprocess.Popen[bytes]:
    """Start one command of a stage; `python` and `myllm` are those of the training environment.

    Args:
        marked: Set the run's mark, so that `end_left_over` finds the process.
    """
    program = command
    if command[0] in ("python", "myllm"):
        python = str(environment("train") / "bin" / "python")
        program = [python, *(["-m", "launch.cli"] if command[0] == "myllm" else []), *command[1:]]
    log.write(f"$ {shlex.join(command)}\n".encode())
    log.flush()
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        # spinning threads would take the core from the other process
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        **({MARK: str(run.folder.resolve())} if marked else {}),
        "MYLLM_METRICS": str(metrics),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        # nothing but a download may reach for the Hub; a download goes by the user's own setting
        **({} if is_myllm(command, "download") else {"HF_HUB_OFFLINE": "1"}),
        "TOKENIZERS_PARALLELISM": "true",
    }
    return subprocess.Popen(
        program,
        cwd=REPOSITORY,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def stop(process: subprocess.Popen[bytes], run: Run) -> None:
    """Send SIGTERM to a stage (Megatron then saves), wait, then kill the run's remaining processes."""
    process.terminate()
    try:
        process.wait(timeout=SAVING)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: do not wait
        pass
    end_left_over(run)


def run_stage(stage: Stage, run: Run, state: str, position: str) -> Manifest:
    """Run a stage's commands; returns its manifest, which is already written.

    Raises:
        UserError: a command failed, or it stopped before its work was finished.
    """
    log_path, metrics = run.logs / f"{stage.name}.log", run.logs / f"{stage.name}.metrics.json"
    for folder in (run.logs, run.manifests):
        folder.mkdir(parents=True, exist_ok=True)
    manifest_path(run, stage.name).unlink(missing_ok=True)
    metrics.unlink(missing_ok=True)
    display, begin, peak = Display(position, stage.name), time.monotonic(), 0.0
    commands = [shlex.join(command) for command in stage.commands]
    with log_path.open("wb") as log:
        for command in stage.commands:
            print(f"$ {shlex.join(command)}", flush=True)
            process = start(command, run, log, metrics)
            try:
                while process.poll() is None:
                    peak = max(peak, memory_mb(run))
                    display.update(last_progress(log_path))
                    try:
                        process.wait(POLL)
                    except subprocess.TimeoutExpired:
                        continue
            except KeyboardInterrupt:
                display.close("stopping; the same command resumes")
                stop(process, run)
                raise
            if process.returncode != 0:
                manifest = Manifest(
                    stage.name, "failed", state, commands, round(time.monotonic() - begin, 1), round(peak, 1)
                )
                write_json(manifest_path(run, stage.name), asdict(manifest))
                display.close("failed")
                raise UserError(
                    f"stage {stage.name} failed: {last_error(log_path)}\n"
                    f"  command: {shlex.join(command)}\n  log: {log_path}\n  fix it, then run the same command again"
                )
            if reason := (read_json(metrics) if metrics.exists() else {}).get(UNFINISHED):
                display.close("not finished")
                raise StageUnfinished(f"stage {stage.name} is not finished: {reason} (log: {log_path})")
    found = read_json(metrics) if metrics.exists() else {}
    seconds = round(time.monotonic() - begin, 1)
    manifest = Manifest(stage.name, DONE, state, commands, seconds, round(peak, 1), found)
    write_json(manifest_path(run, stage.name), asdict(manifest))
    display.close(f"done in {seconds:.0f} s")
    return manifest


def end_once(number: int, frame: object) -> None:
    """Treat the first SIGTERM like Ctrl-C and ignore later ones: Slurm and the job script may both send it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def is_fresh(run: Run, stage: Stage, state: str) -> bool:
    """Whether a stage is done, with this fingerprint."""
    manifest = read_manifest(run, stage.name)
    return manifest is not None and manifest.status == DONE and manifest.fingerprint == state


def done_stages(pipeline: Pipeline, run: Run) -> set[str]:
    """Names of the stages that a run would skip."""
    known: dict[str, str] = {}
    found: set[str] = set()
    for stage in pipeline.stages:
        known[stage.name] = fingerprint(stage, known)
        if is_fresh(run, stage, known[stage.name]) and found >= {*stage.needs}:
            found.add(stage.name)
    return found


def run_pipeline(pipeline: Pipeline, run: Run, stages: list[Stage], dry_run: bool = False) -> None:
    """Run the given stages of a pipeline and skip those that are done; `dry_run` only prints their commands.

    Raises:
        UserError: a stage fails, a stage that they need is not done, or another `myllm run` uses the folder.
    """
    if dry_run:
        for stage in stages:
            print(f"# {stage.name}")
            for command in stage.commands:
                print(shlex.join(command))
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, end_once)
    in_use = f"{run.folder} is in use by another `myllm run`: wait until it ends, or stop it with Ctrl-C"
    with hold_lock(run.folder / ".lock", in_use):
        end_left_over(run)
        write_json(
            run.folder / "pipeline.json", {"pipeline": pipeline.name, "stages": [s.name for s in pipeline.stages]}
        )
        fingerprints: dict[str, str] = {}
        redone: set[str] = set()
        for number, stage in enumerate(pipeline.stages, start=1):
            fingerprints[stage.name] = state = fingerprint(stage, fingerprints)
            fresh = is_fresh(run, stage, state)
            if stage not in stages:
                if stage.name in {need for wanted in stages for need in wanted.needs} and not fresh:
                    raise UserError(
                        f"stage {stage.name} is not done yet: run `myllm run {pipeline.name} --from {stage.name}`"
                    )
                continue
            position = f"{number}/{len(pipeline.stages)}"
            if fresh and not redone.intersection(stage.needs):
                print(f"[{position}] {stage.name}: done before, skipped", flush=True)
                continue
            run_stage(stage, run, state, position)
            redone.add(stage.name)
