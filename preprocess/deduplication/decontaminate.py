"""Drop documents that share a run of 13 characters with an item of an evaluation set.

    myllm decontaminate --input F.jsonl --output G.jsonl --evaluation ceval.jsonl --report R.json
    myllm decontaminate --input F.jsonl --output G.jsonl --evaluation ceval cmmlu     # sets that were downloaded

GPT-3 uses runs of 13 words (Brown et al. 2020, appendix C); here they are characters. Only Chinese characters, letters
and digits count, so that different punctuation or spacing does not hide a match, and Traditional characters count as
their Simplified ones, on both sides. An evaluation set is a set of `myllm download`, or any JSON, JSONL, CSV or Parquet
file or a folder of them: all its strings are compared. A string shorter than a run could match by chance and is left
out; the report gives the number of such strings.

The report lists for every dropped document the set, the item and the shared run. `--gate` is for a corpus that is
already in use: the command fails if a document has to be dropped.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import read_yaml, write_json
from artifacts.json_rows import GBK, MENDS, UTF8
from artifacts.stage import report_gate, report_metrics
from preprocess.cleaning.characters import CHINESE, DIGIT, GARBLED, LETTER, Characters, window_hashes
from preprocess.cleaning.clean import split_out
from preprocess.cleaning.conversion import converted_characters
from preprocess.sources.documents import read_documents
from preprocess.sources.download import SOURCES
from preprocess.sources.read import Piece, Problems, records
from preprocess.sources.unpack import sets_folder

RUN = 13  # characters
BATCH = 512
ENDINGS = (".csv", ".json", ".jsonl", ".parquet")
_SIEVE = 1 << 24  # entries of a table that rules out most runs before the exact look-up


@dataclass(frozen=True)
class Index:
    """The hashes of all runs of the evaluation sets, sorted, and the first item that contains each."""

    hashes: np.ndarray  # uint64
    items: np.ndarray  # int64, index into `names`
    names: list[tuple[str, str, int]]  # evaluation set, its file, and number of the record in the file, from 1
    sieve: np.ndarray  # bool [_SIEVE]
    short: int  # number of strings shorter than a run


def content(texts: list[str]) -> Characters:
    """Only the Chinese characters (each as its Simplified one), letters (in lower case) and digits of each text.

    Each character is converted for itself: 乾 becomes 干 in Simplified text too, where `simplify` leaves it.
    """
    characters = Characters.of([text.lower() for text in texts])
    kinds = characters.kinds
    kept = characters.only((kinds == CHINESE) | (kinds == GARBLED) | (kinds == LETTER) | (kinds == DIGIT))
    return replace(kept, codes=converted_characters("tw2s")[kept.codes])


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a record, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _items(path: str) -> Iterator[Any]:
    if path.endswith(".csv"):
        with open(path, encoding="utf-8-sig", newline="") as stream:
            try:
                yield from csv.DictReader(stream)
            except UnicodeDecodeError:
                raise UserError(f"{path} is {UTF8}: if it comes from Chinese Windows, {MENDS[GBK]}") from None
        return
    problems = Problems()
    yield from (record for _, record in records(Piece(path), problems, 64 << 20))
    problems.check(0.0, final=True)


def place_of_set(given: str) -> Path:
    """Where an evaluation set lies, there or not: one of `sources.yaml` under OpenCompass's data, else the path."""
    unpack = read_yaml(SOURCES).get(given, {}).get("unpack")
    return sets_folder() / unpack["into"] if unpack else Path(given)


def files_of_sets(sets: tuple[str, ...]) -> dict[str, list[str]]:
    """The files of each evaluation set: of one that `myllm download` knows, of a folder, or the file itself.

    Raises:
        UserError: a set was not downloaded, or a path does not exist or holds no such file.
    """
    found = {}
    for given in sets:
        place = place_of_set(given)
        if not place.exists():
            mend = "pass the file of an evaluation set with --evaluation"
            if place != Path(given):
                mend = f"run `myllm download {given}`, or leave it out of --evaluation"
            raise UserError(f"{place} does not exist: {mend}")
        files = [p for p in place.rglob("*") if p.suffix in ENDINGS] if place.is_dir() else [place]
        if not files:
            raise UserError(f"{place} has no {', '.join(ENDINGS)} file: pass an evaluation set with --evaluation")
        found[given] = sorted(map(str, files))
    return found


@lru_cache(maxsize=1)
def index_of(sets: tuple[str, ...]) -> Index:
    """Index the runs of the evaluation sets. Raises UserError if a set is missing, damaged, or has no run."""
    hashes: list[np.ndarray] = []
    items: list[np.ndarray] = []
    names: list[tuple[str, str, int]] = []
    short = 0
    for given, paths in files_of_sets(sets).items():
        before = len(hashes)
        for path, number, record in ((file, *row) for file in paths for row in enumerate(_items(file), start=1)):
            found = content(list(strings(record)) or [""])
            short += int(np.count_nonzero(found.window_counts(RUN) == 0))
            runs = window_hashes(found.codes, RUN)[found.window_starts(RUN)]
            if len(runs):
                hashes.append(runs)
                items.append(np.full(len(runs), len(names)))
                names.append((given, path, number))
        if len(hashes) == before:
            raise UserError(f"{given} has no text of {RUN} characters or more: give another set with --evaluation")
    every, first = np.unique(np.concatenate(hashes), return_index=True)
    sieve: np.ndarray = np.zeros(_SIEVE, dtype=bool)
    sieve[every & np.uint64(_SIEVE - 1)] = True
    return Index(every, np.concatenate(items)[first], names, sieve, short)


def judge(rows: list[dict[str, Any]], sets: tuple[str, ...]) -> list[str | None]:
    """The reason for dropping each row, or None. A row to drop gets the match under the key `contaminated`."""
    index = index_of(sets)
    texts = content([row["text"] for row in rows])
    starts = texts.window_starts(RUN)
    runs = window_hashes(texts.codes, RUN)[starts]
    likely = np.flatnonzero(index.sieve[runs & np.uint64(_SIEVE - 1)])
    at = np.minimum(np.searchsorted(index.hashes, runs[likely]), len(index.hashes) - 1)
    hit = index.hashes[at] == runs[likely]
    places, items = starts[likely[hit]], index.items[at[hit]]
    owners: Any = np.searchsorted(texts.starts, places, side="right") - 1
    reasons: list[str | None] = [None] * len(rows)
    for owner, place, item in zip(owners.tolist(), places.tolist(), items.tolist()):
        if reasons[owner] is None:
            given, path, number = index.names[item]
            reasons[owner] = f"shares text with {Path(given).name}"
            shared = "".join(map(chr, texts.codes[place : place + RUN].tolist()))
            rows[owner]["contaminated"] = {"evaluation": given, "file": Path(path).name, "item": number, "run": shared}
    return reasons


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="documents: a .jsonl or .jsonl.zst file")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl or .jsonl.zst file")
    parser.add_argument(
        "--evaluation", nargs="+", action="extend", required=True, metavar="SET",
        help="evaluation set: its name in sources.yaml, a file or a folder; repeatable",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, help="JSON report (default: the output's name with .contaminated.json)")
    parser.add_argument("--gate", action="store_true", help="fail if a document was dropped")


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    ahead.wants(arguments.input)
    for given in arguments.evaluation:
        ahead.wants(place_of_set(given), f"run `myllm download {given}`, or give another --evaluation")
    ahead.makes(arguments.output)


def run(arguments: argparse.Namespace) -> None:
    given = tuple(arguments.evaluation)
    reasons: Counter[str] = Counter()
    removed: list[dict[str, Any]] = []

    def judged() -> Iterator[tuple[dict[str, Any], str | None]]:
        rows = read_documents(arguments.input)
        while batch := list(islice(rows, BATCH)):
            for row, reason in zip(batch, judge(batch, given)):
                reasons[reason or "kept"] += 1
                if reason:
                    removed.append({"id": row["id"], **row["contaminated"]})
                yield row, reason

    split_out(judged(), arguments.output)
    report = arguments.report or arguments.output.with_name(arguments.output.name.split(".")[0] + ".contaminated.json")
    kept = reasons.pop("kept", 0)
    short = index_of(given).short
    # paths relative to the report, so that a run gives the same bytes in any folder
    beside = {name: os.path.relpath(name, report.parent) if Path(name).exists() else name for name in given}
    counts = Counter(row["evaluation"] for row in removed)
    sets = [{"evaluation": beside[name], "removed": counts[name]} for name in given]
    removed = [{**row, "evaluation": beside[row["evaluation"]]} for row in removed]
    write_json(report, {"run": RUN, "kept": kept, "short_strings": short, "sets": sets, "removed": removed})
    report_metrics(documents_in=kept + len(removed), documents=kept, dropped=dict(reasons))
    if arguments.gate and not removed:
        report_gate("decontamination", f"none of {kept:,} documents shares text with {', '.join(beside.values())}")
    if arguments.gate and removed:
        raise UserError(
            f"{len(removed)} documents of {arguments.input} share {RUN} characters with an evaluation set ({report}): "
            f"train on {arguments.output} instead"
        )


if __name__ == "__main__":
    main(__name__)
