"""The table at the end of a rehearsal: what passed in each stage, and what the real run will need there.

    python -m launch.rehearsal.table --run runs/zh-0.5b-rehearsal --downloads ~/.cache/myllm

It is the last stage of a rehearsal and writes `rehearsal.json`, which `myllm report` shows and `myllm submit` asks for.
Hours of a stage that reads the corpora follow from the seconds measured here, the bytes that the rehearsal read and the
bytes of the real sources; those of pretraining from the GPU's peak (`myllm estimate`). What is not known is said.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.files import read_json, write_json
from artifacts.layout import Run
from artifacts.stage import report_metrics
from launch.pipeline.rehearsed import LAST_STAGE, NEEDS, RECORD
from launch.pipeline.runner import DONE, read_manifest
from launch.rehearsal.shrink import WORKERS


def size_of(folder: Path) -> int:
    files = [folder] if folder.is_file() else [p for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []
    return sum(file.stat().st_size for file in files if not file.name.startswith("."))


def read_bytes(cache: Path, downloads: Path, corpora: list[str]) -> tuple[int, int, list[str]]:
    """Bytes of the corpora in the rehearsal's cache, bytes of the same in the downloads, and those not downloaded."""
    small = real = 0
    lacking = []
    for place in sorted(place for place in cache.glob("*") if place.name in corpora):
        small += size_of(place)
        there = size_of(downloads / place.name)
        real += there
        if not there:
            lacking.append(place.name)
    return small, real, lacking


def hours_of_data(seconds: float, workers: int, small: int, real: int) -> float:
    """Hours of a stage that reads `real` bytes with `workers` processes of this machine's speed."""
    return seconds * real / small * WORKERS / workers / 3600


def rows_of(run: Run, downloads: Path) -> list[dict[str, Any]]:
    """A row for each stage: name, status, seconds, peak memory, gates, what the real run needs."""
    needs = read_json(run.folder / NEEDS)
    small, real, lacking = read_bytes(run.folder / "cache", downloads, needs["corpora"])
    rows = []
    for name in read_json(run.folder / "pipeline.json")["stages"]:
        if name == LAST_STAGE:
            continue
        manifest, of = read_manifest(run, name), needs["stages"].get(name, {})
        text = str(of.get("text", ""))
        workers = int(of.get("workers", 0))
        if workers and manifest and small:
            if lacking:
                more = f"hours not known before {', '.join(lacking)} is downloaded"
            else:
                hours = hours_of_data(manifest.seconds, workers, small, real)
                more = f"about {hours:,.1f} h in {workers} processes like this machine's, for {real / 1e9:,.1f} GB"
            text = f"{text}; {more}" if text else more
        rows.append(
            {
                "stage": name,
                "status": manifest.status if manifest else "not run",
                "seconds": manifest.seconds if manifest else 0.0,
                "peak_memory_mb": manifest.peak_memory_mb if manifest else 0.0,
                "gates": manifest.metrics.get("gates", {}) if manifest else {},
                "needs": text or "not known",
            }
        )
    return rows


def shown(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    wide = max(len(row["stage"]) for row in rows)
    lines = [f"{'stage':<{wide}}  {'seconds':>7}  {'MB':>6}  gates passed, and what the real run needs"]
    for row in rows:
        lines.append(f"{row['stage']:<{wide}}  {row['seconds']:>7.0f}  {row['peak_memory_mb']:>6.0f}  {row['status']}")
        lines += [f"{'':<{wide}}  {'':>15}  gate {name}: {result}" for name, result in row["gates"].items()]
        lines.append(f"{'':<{wide}}  {'':>15}  real run: {row['needs']}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="folder of the rehearsal")
    parser.add_argument("--downloads", type=Path, required=True, help="cache of the real downloads")


def run(arguments: argparse.Namespace) -> None:
    folder = Run(arguments.run)
    needs, rows = read_json(folder.folder / NEEDS), rows_of(folder, arguments.downloads)
    passed = all(row["status"] == DONE for row in rows)
    told = {key: value for key, value in needs.items() if key != "stages"}
    write_json(folder.folder / RECORD, {**told, "passed": passed, "stages": rows})
    print(shown(rows))
    for text in needs["elsewhere"]:
        print(f"on the machine of the real run: {text}")
    gates = sum(len(row["gates"]) for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    count = f"{len(rows)} stages, {gates} gates, {seconds / 60:.1f} minutes"
    print(f"the rehearsal of {needs['pipeline']} {'passed' if passed else 'did not pass'}: {count}")
    report_metrics(stages=len(rows), gates_passed=gates)


if __name__ == "__main__":
    main(__name__)
