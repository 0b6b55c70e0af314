"""Progress and metrics that a stage's process reports to the pipeline.

Progress is printed to the log as lines `progress 120/500 documents`; `launch.pipeline.runner` reads the newest one and
shows an ETA. Metrics go to the JSON file named by $MYLLM_METRICS. A stage run by hand writes no file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from artifacts.files import read_json, write_json

Item = TypeVar("Item")
GATES = "gates"  # metric: name of a gate -> its result


def report_metrics(**metrics: Any) -> None:
    """Add to the stage's metrics and print them; percentages are 0-100, durations seconds."""
    print("metrics " + " ".join(f"{key}={value}" for key, value in metrics.items()), flush=True)
    path = os.environ.get("MYLLM_METRICS")
    if path:
        known = read_json(path) if os.path.exists(path) else {}
        write_json(path, {**known, **metrics})


def report_gate(name: str, result: str) -> None:
    """Report that a gate was passed, with its value; the report and a rehearsal's table list the gates of a stage."""
    path = os.environ.get("MYLLM_METRICS")
    known = read_json(path).get(GATES, {}) if path and os.path.exists(path) else {}
    report_metrics(**{GATES: {**known, name: result}})


UNFINISHED = "unfinished"  # metric of a stage that exits with 0 but is not finished


def report_unfinished(reason: str) -> None:
    """Report that the stage saved and stopped before its end (time limit, SIGTERM), so it is not done."""
    report_metrics(**{UNFINISHED: reason})


def track(items: Iterable[Item], total: int, unit: str, every: float = 1.0) -> Iterator[Item]:
    """Yield the items, and print a progress line at most once every `every` seconds and at the end."""
    shown = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - shown >= every:
            shown = time.monotonic()
            print(f"progress {done}/{total} {unit}", flush=True)
    print(f"progress {done}/{max(done, total)} {unit}", flush=True)
