"""Cancel the pending and running Slurm jobs of a run.

myllm cancel poetry-tiny
"""

from __future__ import annotations

import argparse

from launch.pipeline.arguments import add_run_argument, find_run
from launch.slurm.submit import cancel_run

add_arguments = add_run_argument


def run(given: argparse.Namespace) -> None:
    ended = cancel_run(find_run(given.run))
    print(f"cancelled {', '.join(map(str, ended))}" if ended else "this run has no pending or running job")
