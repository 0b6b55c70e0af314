"""What a stage's process tells the one that started it: how far it is, and what it measured.

Progress goes to the log as lines `progress 120/500 documents`; `launch.pipeline.runner` reads the newest one and shows
an ETA. Metrics go to the JSON file named by $MYLLM_METRICS (nothing is written when a stage is run by hand).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from artifacts.files import read_json, write_json

Item = TypeVar("Item")


def report_metrics(**metrics: Any) -> None:
    """Add to the stage's metrics and print them; percentages are 0-100, durations seconds."""
    print("metrics " + " ".join(f"{key}={value}" for key, value in metrics.items()), flush=True)
    path = os.environ.get("MYLLM_METRICS")
    if path:
        known = read_json(path) if os.path.exists(path) else {}
        write_json(path, {**known, **metrics})


UNFINISHED = "unfinished"  # the metric by which a stage that exits 0 says that it has more to do


def report_unfinished(reason: str) -> None:
    """Say that the stage stopped in good order before its end (a time limit, SIGTERM): it is not done."""
    report_metrics(**{UNFINISHED: reason})


def track(items: Iterable[Item], total: int, unit: str, every: float = 1.0) -> Iterator[Item]:
    """Pass items through, printing a progress line at most once every `every` seconds, and at the end."""
    shown = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - shown >= every:
            shown = time.monotonic()
            print(f"progress {done}/{total} {unit}", flush=True)
    print(f"progress {done}/{max(done, total)} {unit}", flush=True)
