"""Rehearse a pipeline: the same file, the same commands, the same gates, in small, on this machine, in minutes.

    myllm rehearse zh-0.5b                        # a table of what passed, and what the real run will need
    myllm rehearse my/pipeline.yaml --set vocab=8000
    myllm rehearse zh-0.5b --hardware gpu-1-80gb  # on a GPU, with this hardware file
    myllm rehearse zh-0.5b --full-size            # the model in its own shape, for three steps
    myllm rehearse zh-0.5b --dry-run              # print every command as it would be run
    myllm submit zh-0.5b --rehearse --site mine   # the same chain of Slurm jobs, in small

What is downloaded already is used, its first megabytes; else small made-up files in the published layout of each
source. The model keeps its flags and shrinks, and so do steps and data; nothing is left out. What is changed in each
command: `launch/rehearsal/shrink.py`. A stage that fails is the error of the real run, found before it costs; mend it
and run the same command again: finished stages are kept. It writes runs/<pipeline>-rehearsal/ with report.html.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from artifacts.ahead import Ahead, Needs
from artifacts.files import write_json
from artifacts.layout import Run, cache_folder, relative
from launch.pipeline.arguments import add_pipeline_arguments, read_pipeline
from launch.pipeline.check import look, parse, refuse, shown
from launch.pipeline.definition import Pipeline, Stage, is_myllm, load_pipeline
from launch.pipeline.rehearsed import LAST_STAGE, NEEDS, identity, rehearsal_folder
from launch.pipeline.runner import run_pipeline
from launch.rehearsal.shrink import Place, longest_training, rehearsed, value_of, vocabulary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)
    add_rehearsal_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")


def add_rehearsal_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware", default="cpu", help="hardware file of this machine, for pretraining and fine-tuning (default cpu)"
    )
    parser.add_argument("--price", type=float, help="price of a GPU-hour, for the cost of the real run")
    parser.add_argument("--full-size", action="store_true", help="keep the model's shape, for a few steps")


def workers_of(stage: Stage) -> int:
    """Processes of a stage at its own size; 0 if none of its commands has a number of them."""
    found = [value_of(command, option) for command in stage.commands for option in ("--workers", "--processes")]
    return max((int(text) for text in found if text and text.isdigit()), default=0)


def needs_of_real(pipeline: Pipeline, ahead: Ahead, price: float | None) -> dict[str, dict[str, object]]:
    """What each stage of the real run will need: numbers, a line of text, and its number of processes."""
    found: dict[str, dict[str, object]] = {}
    for stage in pipeline.stages:
        needs = ahead.of_stage.get(stage.name, Needs())
        found[stage.name] = {**asdict(needs), "text": shown(needs, price), "workers": workers_of(stage)}
    return found


def corpora_of(pipeline: Pipeline) -> list[str]:
    """The sources that the pipeline's corpora are made of, as `myllm corpora --source` names them."""
    commands = [command for stage in pipeline.stages for command in stage.commands if is_myllm(command, "corpora")]
    return [name for command in commands for name in parse(command[1:])[0].source]


@dataclass(frozen=True)
class Rehearsal:
    """A pipeline and the same made small; the small one's run and stages to run; what the real one needs."""

    real: Pipeline
    small: Pipeline
    run: Run
    stages: list[Stage]
    needs: Ahead


def small_pipeline(given: argparse.Namespace) -> Rehearsal:
    """The pipeline of a command line made small.

    Sets $MYLLM_CACHE, which the commands inherit, to the rehearsal's own cache.

    Raises:
        UserError: what is missing, or wrong, is no matter of this machine: the real run would fail.
    """
    real, elsewhere, _ = read_pipeline(given)
    ahead = look(real, real.stages, elsewhere, quick=True)
    chosen = {text.partition("=")[0] for text in given.set}
    smaller = [f"{name}={value}" for name, value in real.rehearsal.items() if name not in chosen]
    in_small = load_pipeline(given.pipeline, elsewhere.folder, [*given.set, *smaller])  # at its size, on smaller values
    refuse(look(in_small, in_small.stages, elsewhere, quick=True), real)
    run = Run((given.run_folder or rehearsal_folder(given.pipeline)).resolve())
    place = Place(
        run=run.folder,
        downloads=cache_folder(),
        hardware=given.hardware,
        full_size=given.full_size,
        longest=longest_training(real),
        vocab=vocabulary(real),
    )
    os.environ["MYLLM_CACHE"] = str(place.cache)
    small = rehearsed(load_pipeline(given.pipeline, run.folder, [*given.set, *smaller]), place)
    table = ["python", "-m", "launch.rehearsal.table", "--run", relative(run.folder)]
    commands = [[*table, "--downloads", str(place.downloads)], ["myllm", "report", relative(run.folder)]]
    small = replace(small, stages=[*small.stages, Stage(LAST_STAGE, commands, [small.stages[-1].name])])
    stages = small.between(given.first, given.last or LAST_STAGE)
    return Rehearsal(real, small, run, stages, ahead)


def prepare(rehearsal: Rehearsal, given: argparse.Namespace) -> None:
    """Write what the table needs: the real run's needs, and what is rehearsed."""
    real = rehearsal.real
    content = {
        "pipeline": real.name,
        "of": identity(real.file, real.values),
        "hardware": given.hardware,
        "full_size": given.full_size,
        "corpora": corpora_of(real),
        "elsewhere": [f"{stage}: {text}" for stage, text in rehearsal.needs.elsewhere],
        "stages": needs_of_real(real, rehearsal.needs, given.price),
    }
    write_json(rehearsal.run.folder / NEEDS, content)


def run(given: argparse.Namespace) -> None:
    rehearsal = small_pipeline(given)
    small, folders, stages = rehearsal.small, rehearsal.run, rehearsal.stages
    if given.dry_run:
        run_pipeline(small, folders, stages, dry_run=True)
        return
    refuse(look(small, stages, folders), small, here=True)
    prepare(rehearsal, given)
    print(f"rehearsing {small.name} in {folders.folder}", flush=True)
    run_pipeline(small, folders, stages)
    log = Path(folders.logs / f"{LAST_STAGE}.log")
    if log.exists() and stages[-1].name == LAST_STAGE:
        text = log.read_text(encoding="utf-8").splitlines()
        print("\n".join(line for line in text if not line.startswith(("$ ", "metrics "))))
