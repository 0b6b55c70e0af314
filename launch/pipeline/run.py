"""Run the stages of a pipeline on this machine; the same command resumes.

    myllm run poetry-tiny                         # from raw text to a scored chat model
    myllm run poetry-tiny --from sft --to score   # some of its stages
    myllm run poetry-tiny --dry-run               # print the commands, run nothing
    myllm run my/pipeline.yaml --set vocab=8000   # a pipeline of your own, with another value

First it looks at every stage for what is missing, as `myllm check` does. A stage that is done is skipped until its
commands, the recipes that it reads, or a stage that it needs change.
"""

from __future__ import annotations

import argparse

from launch.pipeline.arguments import add_pipeline_arguments, read_pipeline
from launch.pipeline.check import look, refuse
from launch.pipeline.gpu_notice import notice
from launch.pipeline.runner import run_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--no-check", action="store_true", help="start although `myllm check` finds something missing")


def run(given: argparse.Namespace) -> None:
    pipeline, folders, stages = read_pipeline(given)
    if not given.dry_run:
        if line := notice(pipeline, stages):
            print(line, flush=True)
        if not given.no_check:
            refuse(look(pipeline, stages, folders), pipeline, here=True)
        if pipeline.notes:
            print(pipeline.notes, flush=True)
    run_pipeline(pipeline, folders, stages, given.dry_run)
