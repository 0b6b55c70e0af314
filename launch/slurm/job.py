"""Run one stage of a submitted pipeline inside a Slurm job. `launch/slurm/stage.sbatch` starts it, one task per node.

    python -m launch.slurm.job --submission runs/mine/slurm/1 --stage pretrain
    python -m launch.slurm.job --submission runs/mine/slurm/1 --stage pretrain --is-done    # exit code 0 or 1
    python -m launch.slurm.job --train --model qwen2-0.5b … --run runs/mine                 # launch/slurm/train.sbatch

The first node runs the stage as `myllm run` does; the other nodes join if the stage trains on several machines. The
result is written for the job script to `<submission>/<stage>.outcome` (`<run>/slurm/train.outcome`): `done`,
`advanced …` (stopped with a newer checkpoint), `stopped …` (stopped without a newer checkpoint) or `failed …`. No file
means that this process was killed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from artifacts.errors import UserError, run_main
from artifacts.files import read_json, write_text
from artifacts.layout import REPOSITORY, Run
from launch.pipeline.definition import Pipeline, Stage, fingerprint, is_myllm
from launch.pipeline.runner import StageUnfinished, end_once, is_fresh, run_pipeline, run_stage, start
from launch.pretraining.checkpoints import reached

STEP = re.compile(r"checkpoint-(\d+)$")  # a checkpoint folder of Hugging Face's trainers


def read_frozen(submission: Path) -> tuple[Pipeline, Run]:
    """The pipeline and the run of a submission. Raises UserError if the folder is not a submission."""
    found = read_json(submission / "pipeline.json")
    stages = [
        Stage(s["name"], s["commands"], s["needs"], [REPOSITORY / name for name in s["reads"]]) for s in found["stages"]
    ]
    return Pipeline(found["name"], stages), Run(Path(found["run"]))


def trains(stage: Stage) -> list[str] | None:
    """The stage's `myllm pretrain` command, which several machines run together; None if it has none."""
    return next((command for command in stage.commands if is_myllm(command, "pretrain")), None)


def done_before(pipeline: Pipeline, run: Run, stage: Stage) -> bool:
    """Whether the stage is done, with the same inputs as now."""
    known: dict[str, str] = {}
    for each in pipeline.stages:
        known[each.name] = fingerprint(each, known)
    return is_fresh(run, stage, known[stage.name])


def progress(run: Run) -> dict[str, int]:
    """Progress of each training in the run: Megatron's newest iteration, and the newest step of each post-training."""
    found = {"checkpoints": reached(run.checkpoints)}
    for later in run.folder.glob("checkpoints-*"):  # of later phases
        if ".old-" not in later.name:
            found[later.name] = reached(later)
    for folder in run.models.glob("*.work/output/checkpoint-*"):
        if step := STEP.search(folder.name):
            name = str(folder.parent.relative_to(run.folder))
            found[name] = max(found.get(name, 0), int(step[1]))
    return found


def furthest(before: dict[str, int], after: dict[str, int]) -> str:
    """What advanced, as text, e.g. `checkpoints 25 -> 54`; empty if nothing did."""
    return ", ".join(f"{name} {before.get(name, 0)} -> {n}" for name, n in after.items() if n > before.get(name, 0))


def run_first(run: Run, execute: Callable[[], object]) -> str:
    """Run a stage on this node and return its outcome. A failure is printed as an error with the log's path."""
    before = progress(run)
    try:
        execute()
        return "done"
    except KeyboardInterrupt:
        reason = "interrupted"
    except StageUnfinished as error:
        reason = str(error)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return f"failed {str(error).splitlines()[0]}"
    if advance := furthest(before, progress(run)):
        return f"advanced {advance}"
    return f"stopped no newer checkpoint ({reason})"


def join(run: Run, stage: Stage, node: int) -> int:
    """Train with the first node: run the same command, which reads node rank and rendezvous from the environment."""
    command = trains(stage)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # Slurm signals the trainer too, which saves and exits
    if command is None:
        print(f"stage {stage.name} runs on one node; node {node} has nothing to do", flush=True)
        return 0
    run.logs.mkdir(parents=True, exist_ok=True)
    name = f"{stage.name}.node-{node}"
    with (run.logs / f"{name}.log").open("wb") as log:
        # without the run's mark: on a host with several nodes the first node would kill this as left over
        process = start(command, run, log, run.logs / f"{name}.metrics.json", marked=False)
        return process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submission", type=Path, help="folder that `myllm submit` made")
    parser.add_argument("--stage", help="stage of the submission's pipeline")
    parser.add_argument("--is-done", action="store_true", help="run nothing; exit with 0 if the stage is done, else 1")
    parser.add_argument(
        "--train", action="store_true", help="pretrain, with the options of launch.pretraining.pretrain"
    )
    parser.add_argument("--run", type=Path, help="folder of the run (with --train)")
    arguments, rest = parser.parse_known_args()
    signal.signal(signal.SIGTERM, end_once)
    if arguments.train:
        if arguments.run is None:
            raise UserError("--train needs --run FOLDER")
        run = Run(arguments.run.resolve())
        stage = Stage("train", [["myllm", "pretrain", *rest, "--run", str(run.folder)]])
        outcome = run.folder / "slurm" / "train.outcome"
        execute: Callable[[], object] = partial(run_stage, stage, run, fingerprint(stage, {}), "1/1")
    else:
        if rest or arguments.submission is None or arguments.stage is None:
            parser.error("give --submission FOLDER and --stage NAME, or --train")
        submission: Path = arguments.submission.resolve()
        pipeline, run = read_frozen(submission)
        stage = pipeline.between(arguments.stage, arguments.stage)[0]
        if arguments.is_done:
            return 0 if done_before(pipeline, run, stage) else 1
        outcome = submission / f"{stage.name}.outcome"
        execute = partial(run_pipeline, pipeline, run, [stage])
    node = int(os.environ.get("SLURM_NODEID", "0"))
    if node > 0:
        return join(run, stage, node)
    try:
        found = run_first(run, execute)
    except KeyboardInterrupt:
        found = "stopped before it began"
    write_text(outcome, found + "\n")
    print(f"stage {stage.name}: {found}", flush=True)
    return 0 if found == "done" else 1


if __name__ == "__main__":
    run_main(main)
