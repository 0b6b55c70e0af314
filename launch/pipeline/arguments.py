"""Arguments that the commands on whole pipelines and runs share: which pipeline, which stages, which run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from artifacts.errors import UserError, nearest
from artifacts.layout import REPOSITORY, Run
from launch.pipeline.definition import Pipeline, Stage, load_pipeline


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", help="a file in launch/pipelines/, without .yaml, or the path of your own")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="first stage to run (default: the first)")
    parser.add_argument("--to", dest="last", metavar="STAGE", help="last stage to run (default: the last)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace one of the pipeline's `values`; repeatable",
    )
    parser.add_argument("--run-folder", type=Path, help="folder of the run (default runs/<pipeline>)")


def name_of(pipeline: str) -> str:
    """The name of a pipeline given by name or path; `zh-0.5b` has a dot and no suffix."""
    return Path(pipeline).name.removesuffix(".yaml").removesuffix(".yml")


def read_pipeline(given: argparse.Namespace) -> tuple[Pipeline, Run, list[Stage]]:
    """The pipeline of a command line, its run, and the stages that are asked for.

    The stages of a pipeline that was given by its path can import the modules beside it.
    """
    run = Run(given.run_folder or REPOSITORY / "runs" / name_of(given.pipeline))
    pipeline = load_pipeline(given.pipeline, run.folder, given.set)
    if given.pipeline.endswith((".yaml", ".yml")):
        beside = str(Path(given.pipeline).resolve().parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [beside, os.environ.get("PYTHONPATH")]))
    return pipeline, run, pipeline.between(given.first, given.last)


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="name of a run in runs/, or its folder")


def find_run(name: str) -> Run:
    """A run by name or folder. Raises UserError, which names the nearest run, if it does not exist."""
    for folder in (REPOSITORY / "runs" / name, Path(name)):
        if (folder / "pipeline.json").exists():
            return Run(folder)
    known = [p.parent.name for p in (REPOSITORY / "runs").glob("*/pipeline.json")]
    raise UserError(f"there is no run {name!r}{nearest(name, known)}; runs/ holds {', '.join(known) or 'none'}")
