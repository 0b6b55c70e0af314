"""Split a source into train, valid and test by a hash of each document's id.

    myllm split --input F.jsonl.zst --output-folder corpus/wiki --valid 0.01 --test 0.02

The split of a document depends only on its id, or on its text if it has none, so it never changes when others are
added. A training document that shares a line with a held-out one is dropped (decontamination), so that no held-out line
is trained on.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import write_jsonl
from artifacts.stage import report_metrics
from preprocess.cleaning.clean import Document, split_out
from preprocess.deduplication.deduplicate import fingerprint, lines_of
from preprocess.sources.documents import read_documents

SPLITS = ("train", "valid", "test")


def split_of(identity: str, valid: float, test: float) -> str:
    """The split of an id; `valid` and `test` are shares between 0 and 1."""
    point = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    return "test" if point < test else "valid" if point < test + valid else "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="documents, .jsonl or .jsonl.zst")
    parser.add_argument("--output-folder", type=Path, required=True, help="folder for train, valid and test .jsonl.zst")
    parser.add_argument("--valid", type=float, default=0.01, help="share of documents (default 0.01)")
    parser.add_argument("--test", type=float, default=0.02, help="share of documents (default 0.02)")


def run(arguments: argparse.Namespace) -> None:
    if min(arguments.valid, arguments.test) < 0 or arguments.valid + arguments.test >= 1:
        raise UserError("--valid and --test are shares of the documents: give 0 or more each, and less than 1 together")

    def part(name: str) -> Iterator[Document]:
        rows = read_documents(arguments.input)
        return (row for row in rows if split_of(row["id"], arguments.valid, arguments.test) == name)

    counts: Counter[str] = Counter()
    held_out: set[int] = set()
    for name in ("test", "valid"):
        rows = list(part(name))
        held_out.update(fingerprint(line) for row in rows for line in lines_of(row["text"]))
        counts[name] = write_jsonl(arguments.output_folder / f"{name}.jsonl.zst", rows)

    def train() -> Iterator[tuple[Document, str | None]]:
        for row in part("train"):
            leaks = any(fingerprint(line) in held_out for line in lines_of(row["text"]))
            counts["shares a line with a held-out document" if leaks else "train"] += 1
            yield row, "shares a line with a held-out document" if leaks else None

    split_out(train(), arguments.output_folder / "train.jsonl.zst")
    for name, share in (("valid", arguments.valid), ("test", arguments.test)):
        if share and not counts[name]:
            print(f"{name} is empty: a share of {share:g} of these documents is less than one", flush=True)
    report_metrics(**{name: counts.pop(name, 0) for name in SPLITS}, dropped=dict(counts))


if __name__ == "__main__":
    main(__name__)
