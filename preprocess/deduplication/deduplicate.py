"""Drop duplicate documents; the first of each group is kept.

    myllm deduplicate --input F.jsonl --output G.jsonl
    myllm deduplicate --by lines --input lyrics.jsonl.zst --output G.jsonl.zst

`--by similarity`, the default, drops a document if an earlier one has the same text (white space ignored), or
character 5-grams with a Jaccard similarity of 0.8 or more (`preprocess.deduplication.minhash`). A document whose id an
earlier one has with another text is kept: `7` in row 12 becomes `7@12`. Memory is bounded by `--memory-megabytes`; keys
are kept in a folder beside the output while it runs. The last stages of `myllm corpora` do the same for many shards.

`--by lines` is for texts of short lines (lyrics, couplets, dialogue): a document is dropped if an earlier one has the
same text, or if at least half of its lines occur in earlier ones. A line ends at punctuation or a line break and has at
least 4 characters. Lines are stored as 64-bit hashes, about 100 bytes per line.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from artifacts.command import main
from artifacts.stage import report_metrics
from preprocess.cleaning.clean import Document, split_out
from preprocess.sources.documents import REPEATED, read_documents, unique_id

SHARED_LINES = 0.5
LINE_END = re.compile(r"[，。！？；：、\n]")
SHORTEST_LINE = 4  # characters: shorter lines are titles, names and interjections, common to many documents


def fingerprint(text: str) -> int:
    """64 bits of BLAKE2b. The probability of any collision among 10 million lines is about 3 in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def lines_of(text: str) -> list[str]:
    """The lines of a text without their punctuation; lines of fewer than 4 characters are left out."""
    return [line for line in LINE_END.split(text) if len(line) >= SHORTEST_LINE]


def deduplicate(source: Path, reasons: Counter[str]) -> Iterator[tuple[Document, str | None]]:
    """Yield every document with the reason for dropping it, or None, in the order of `source`."""
    texts: set[int] = set()
    lines_seen: set[int] = set()
    for document in read_documents(source):
        reason = None
        whole = fingerprint("".join(document["text"].split()))
        lines = [fingerprint(line) for line in lines_of(document["text"])]
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


def deduplicate_by_similarity(
    source: Path, reasons: Counter[str], work: Path, memory: int
) -> Iterator[tuple[Document, str | None]]:
    """Yield every document with the reason for dropping it, or None. `work` is a folder for keys; it is emptied first.

    `memory` limits the memory of matching, in bytes. A duplicate gets the row of the earlier document as `repeats`. An
    id that an earlier document has with another text is made unique, and counted in `reasons` as REPEATED.
    """
    from preprocess.deduplication import minhash
    from preprocess.sources.read import in_batches

    shutil.rmtree(work, ignore_errors=True)
    (work / "signatures").mkdir(parents=True)
    writer = minhash.KeyWriter(work / "signatures", 0)
    for rows in in_batches(read_documents(source)):
        writer.add(minhash.keys([row["text"] for row in rows], [row["id"] for row in rows]))
    writer.flush()
    for kind in range(minhash.KINDS):
        minhash.match(work, kind, memory)
    minhash.collect(work, 0, in_batches(read_documents(source)))
    verdicts, repeated = minhash.verdicts(work, 0), minhash.repeated_ids(work, 0)
    for place, document in enumerate(read_documents(source)):
        reason, first = verdicts.get(place, (None, None))
        reasons[reason or "kept"] += 1
        if place in repeated and reason is None:
            document["id"] = unique_id(document["id"], str(place + 1))
            reasons[REPEATED] += 1
        yield {**document, "repeats": first + 1} if first is not None else document, reason


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="documents: a .jsonl or .jsonl.zst file")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl or .jsonl.zst file")
    parser.add_argument("--by", choices=("similarity", "lines"), default="similarity")
    parser.add_argument("--memory-megabytes", type=int, default=1024, help="memory for matching (default 1024)")


def run(arguments: argparse.Namespace) -> None:
    reasons: Counter[str] = Counter()
    work = arguments.output.with_name(f".{arguments.output.name}.work")
    try:
        if arguments.by == "lines":
            rows = deduplicate(arguments.input, reasons)
        else:
            memory = arguments.memory_megabytes << 20
            rows = deduplicate_by_similarity(arguments.input, reasons, work, memory)
        split_out(rows, arguments.output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if renamed := reasons.pop(REPEATED, 0):
        print(f"{renamed:,} {REPEATED}", flush=True)
    report_metrics(documents_in=reasons.total(), documents=reasons.pop("kept", 0), dropped=dict(reasons))


if __name__ == "__main__":
    main(__name__)
