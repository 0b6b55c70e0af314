"""Traditional to Simplified Chinese with OpenCC, in processes (OpenCC gains nothing from threads).

    python -m preprocess.simplify --input F.jsonl.zst --output G.jsonl.zst --config t2s

`text` and the string values of `metadata` are converted. `t2s` suits mainland-style Traditional text, `tw2s` text
written in Taiwan (it also mends 看著 to 看着).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_jsonl, write_jsonl
from artifacts.stage import report_metrics

BATCH = 4096
CONFIGS = ("t2s", "tw2s", "hk2s")
_converter: Any = None


def _start(config: str) -> None:
    global _converter
    from opencc import OpenCC

    _converter = OpenCC(config)


def simplify_batch(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert a batch of documents in one call: OpenCC's cost is per call more than per character."""
    fields: list[str] = []
    for row in rows:
        fields.append(row["text"])
        fields.extend(value for value in row["metadata"].values() if isinstance(value, str))
    converted = iter(_converter.convert("\0".join(fields)).split("\0"))
    for row in rows:
        row["text"] = next(converted)
        for key, value in row["metadata"].items():
            if isinstance(value, str):
                row["metadata"][key] = next(converted)
    return rows


def simplify(source: Path, config: str, processes: int) -> Iterator[dict[str, Any]]:
    """Documents of `source`, in its order, simplified; the result does not depend on `processes`."""
    rows = read_jsonl(source)
    batches = iter(lambda: list(islice(rows, BATCH)), [])
    done = 0
    with get_context("spawn").Pool(processes, _start, (config,)) as pool:
        for batch in pool.imap(simplify_batch, batches):
            done += len(batch)
            yield from batch
            print(f"simplified {done} documents", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", default="t2s", help=f"OpenCC configuration: {', '.join(CONFIGS)}")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    arguments = parser.parse_args()
    if arguments.config not in CONFIGS:
        raise UserError(f"--config {arguments.config} is not one of {', '.join(CONFIGS)}")
    documents = write_jsonl(arguments.output, simplify(arguments.input, arguments.config, arguments.processes))
    report_metrics(documents=documents)


if __name__ == "__main__":
    run_main(main)
