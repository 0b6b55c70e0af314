"""Show which stages of a run are done, and its Slurm jobs.

myllm status poetry-tiny
"""

from __future__ import annotations

import argparse

from artifacts.errors import UserError
from artifacts.files import read_json
from launch.pipeline.arguments import add_run_argument, find_run
from launch.pipeline.runner import read_manifest
from launch.slurm.submit import describe, states

add_arguments = add_run_argument


def run(given: argparse.Namespace) -> None:
    found = find_run(given.run)
    jobs, unknown = {}, ""
    try:
        jobs = states(found)
    except UserError as error:  # away from the cluster, still show which stages are done
        unknown = str(error)
    for stage in read_json(found.folder / "pipeline.json")["stages"]:
        manifest = read_manifest(found, stage)
        if manifest is None:
            line = f"{stage:<12} not done"
        else:
            line = f"{stage:<12} {manifest.status:<7} {manifest.seconds:7.1f} s  {manifest.peak_memory_mb:7.0f} MB"
        print(f"{line:<44} {describe(*jobs[stage])}" if stage in jobs else line)
    if unknown:
        print(f"Slurm states unknown: {unknown}")
