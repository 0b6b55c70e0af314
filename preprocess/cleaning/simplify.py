"""Convert Traditional to Simplified Chinese with OpenCC, in several processes (OpenCC gains nothing from threads).

    myllm simplify --input F.jsonl.zst --output G.jsonl.zst --config t2s

`text` and the string values of `metadata` are converted. Use `t2s` for mainland-style Traditional text, `tw2s` for text
written in Taiwan (it also converts 看著 to 看着).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError, nearest
from artifacts.files import write_jsonl
from artifacts.stage import report_metrics
from preprocess.sources.documents import read_documents

BATCH = 256  # documents: small batches fit in the CPU cache
CONFIGS = ("t2s", "tw2s", "hk2s")
SEPARATOR = "\x1e"  # not NUL: OpenCC's tw2s stops there


@cache
def converter(config: str) -> Callable[[str], str]:
    """A function that converts a text. Raises UserError if the configuration is not in CONFIGS."""
    from opencc import OpenCC

    if config not in CONFIGS:
        raise UserError(f"--config {config} is not one of {', '.join(CONFIGS)}{nearest(config, CONFIGS)}")
    return OpenCC(config).convert


def convert_many(texts: list[str], config: str) -> list[str]:
    """Convert texts in one call: the cost per call of OpenCC outweighs that per character."""
    convert = converter(config)
    converted = convert(SEPARATOR.join(texts)).split(SEPARATOR)
    if len(converted) != len(texts):  # a text contains the separator or NUL: convert one by one, split at both
        return [re.sub("[^\x00\x1e]+", lambda match: convert(match[0]), text) for text in texts]
    return converted


def simplify_rows(rows: list[dict[str, Any]], config: str) -> None:
    """Convert `text` and the string values of `metadata` of a batch, in place."""
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        fields: list[str] = []
        for row in batch:
            fields.append(row["text"])
            fields.extend(value for value in row["metadata"].values() if isinstance(value, str))
        converted = iter(convert_many(fields, config))
        for row in batch:
            row["text"] = next(converted)
            for key, value in row["metadata"].items():
                if isinstance(value, str):
                    row["metadata"][key] = next(converted)


def simplify_batch(rows: list[dict[str, Any]], config: str) -> list[dict[str, Any]]:
    simplify_rows(rows, config)
    return rows


def simplify(source: Path, config: str, processes: int) -> Iterator[dict[str, Any]]:
    """Yield the documents of `source`, converted, in order. The result does not depend on `processes`."""
    rows = read_documents(source)
    batches = iter(lambda: list(islice(rows, 8 * BATCH)), [])
    done = 0
    with get_context("spawn").Pool(processes) as pool:
        for batch in pool.imap(partial(simplify_batch, config=config), batches):
            done += len(batch)
            yield from batch
            print(f"simplified {done} documents", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="documents: a .jsonl or .jsonl.zst file")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl or .jsonl.zst file")
    parser.add_argument("--config", default="t2s", help=f"OpenCC configuration: {', '.join(CONFIGS)}")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))


def run(arguments: argparse.Namespace) -> None:
    converter(arguments.config)
    documents = write_jsonl(arguments.output, simplify(arguments.input, arguments.config, arguments.processes))
    report_metrics(documents=documents)


if __name__ == "__main__":
    main(__name__)
