"""Drop documents that stand in the corpus already.

    python -m preprocess.deduplicate --input F.jsonl.zst --output G.jsonl.zst

A document goes when its whole text was seen before, or when at least half of its lines were (the same poem handed
down with other readings, the same page in two versions). The first of them stays. Lines are remembered by 64-bit
hashes, so memory is about 100 bytes a line; the corpus itself is never held.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import run_main
from artifacts.files import read_jsonl
from artifacts.stage import report_metrics
from preprocess.clean import Document, split_out, verse_lines

SHARED_LINES = 0.5


def fingerprint(text: str) -> int:
    """64 bits of BLAKE2b: the chance of any collision among 10 million lines is about 3 in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def deduplicate(source: Path, reasons: Counter[str]) -> Iterator[tuple[Document, str | None]]:
    """Every document with the reason for dropping it, or None, in the order of `source`."""
    texts: set[int] = set()
    lines_seen: set[int] = set()
    for document in read_jsonl(source):
        reason = None
        whole = fingerprint("".join(document["text"].split()))
        lines = [fingerprint(line) for line in verse_lines(document["text"])]
        known = sum(line in lines_seen for line in lines)
        if whole in texts:
            reason = "same text"
        elif lines and known >= SHARED_LINES * len(lines):
            reason = "half of its lines stand elsewhere"
        else:
            texts.add(whole)
            lines_seen.update(lines)
        reasons[reason or "kept"] += 1
        yield document, reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl.zst file")
    arguments = parser.parse_args()
    reasons: Counter[str] = Counter()
    split_out(deduplicate(arguments.input, reasons), arguments.output)
    report_metrics(documents_in=reasons.total(), documents=reasons.pop("kept", 0), dropped=dict(reasons))


if __name__ == "__main__":
    run_main(main)
