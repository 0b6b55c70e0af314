"""Blocks of a datatrove pipeline that pass batches of documents, not single documents.

A batch is a list of rows `{"id", "text", "metadata"}` of about half a million characters, so that numpy, OpenCC and
zstandard process large inputs. Every block writes a report (`preprocess.corpora.data_card`) when its task ends. Dropped
documents are written with the reason to `dropped/STEP/TASK.jsonl.zst`. Files are written completely or not at all.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import datatrove.utils.logging as datatrove_logging
import multiprocess
from datatrove.pipeline.base import PipelineStep

from artifacts.errors import UserError
from artifacts.files import atomic_file
from artifacts.json_rows import dumped
from artifacts.processes import die_with_parent
from preprocess.corpora import keep
from preprocess.corpora.data_card import Report, write_report
from preprocess.deduplication import minhash
from preprocess.sources.containers import TABLES, container
from preprocess.sources.documents import REPEATED, unique_id
from preprocess.sources.read import Batches, Piece, Problems, Row, in_batches, is_lined, records
from preprocess.sources.shapes import WrongShape, document, shape_of

LEVEL = 3  # zstandard's compression level
PLACE = "read_at"  # key of where a document with an id of its own was read, up to deduplication

# datatrove prints every task's log, with tracebacks of user errors, on stderr; the files under logs/ have all of it
if "SLURM_JOB_ID" not in os.environ:
    datatrove_logging.sys = SimpleNamespace(stderr=open(os.devnull, "w"))  # type: ignore[attr-defined]
    datatrove_logging.setup_default_logger()


@contextmanager
def row_writer(path: Path) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes batches of rows to a `.jsonl` or `.jsonl.zst` file, which appears only when complete."""
    import zstandard

    with atomic_file(path) as aside, aside.open("wb") as raw:
        stream: IO[bytes] | Any = raw
        if path.suffix == ".zst":
            stream = zstandard.ZstdCompressor(level=LEVEL).stream_writer(raw, closefd=False)

        def write(rows: list[Row]) -> None:
            if rows:
                stream.write(b"".join([dumped(row) for row in rows]))

        yield write
        if stream is not raw:
            stream.close()


def read_shard(path: Path) -> Batches:
    """Read a shard of an earlier step in batches."""
    return in_batches(row for _, row in records(Piece(str(path)), Problems(), sys.maxsize))


class Block(PipelineStep):
    """A named step. Subclasses process batches in `work` and count documents in the report.

    Tasks are numbered over all sources of a run; `first` is the number of the first task of this block's source.
    """

    type = "corpora"

    def __init__(self, name: str, folder: Path, first: int = 0) -> None:
        self.name, self.first = name, first
        self.folder = Path(folder)
        super().__init__()

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        raise NotImplementedError

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        if multiprocess.parent_process() is not None:  # a worker of the local executor
            die_with_parent()
        report, task = Report(), self.first + rank
        started = time.monotonic()
        for rows in self.work(data, task, report):
            report.leave(rows)
            yield rows
        report.seconds = round(time.monotonic() - started, 3)
        self.stat_update("documents", value=report.documents_out)
        write_report(self.folder, self.name, task, report)


def names_of(paths: set[str]) -> dict[str, str]:
    """A name for each file, for the ids of its records: its own without its endings, or as much more as tells it apart.

    `c4-zh.00001.jsonl.gz` is `c4-zh` if it is alone, else `c4-zh.00001`; files of one name in several folders keep the
    folders below the first that they share.
    """

    def stem(name: str) -> str:
        return re.sub(r"(\.(jsonl?|ndjson|txt|csv|parquet|arrow|gz|bz2|xz|zst))+$", "", name)

    shared = os.path.commonprefix(list(paths)).rfind("/") + 1
    for short in (
        lambda path: os.path.basename(path).split(".")[0],
        lambda path: stem(os.path.basename(path)),
        lambda path: stem(path[shared:]),
        lambda path: path[shared:],
    ):
        names = {path: short(path) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    raise AssertionError(f"paths that are equal: {paths}")


class Read(Block):
    """Read documents from the raw files that `plan` gives the task. UserError if more than the share `bad` is bad.

    With `keeps_place`, a document that brings an id also says where it was read (PLACE): ids may repeat in other files.
    """

    def __init__(
        self,
        folder: Path,
        plan: list[list[Piece]],
        source: str,
        reader: str,
        text_key: str | None,
        bad: float,
        longest: int,
        first: int = 0,
        keeps_place: bool = False,
    ) -> None:
        super().__init__("read", folder, first)
        self.keeps_place = keeps_place
        self.plan, self.source, self.reader, self.text_key = plan, source, reader, text_key
        self.bad, self.longest = bad, longest
        self.names = names_of({piece.path for pieces in plan for piece in pieces})

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        problems = Problems()
        for rows in in_batches(self.documents(task, problems)):
            report.enter(rows)
            problems.check(self.bad, final=False)
            yield rows
        problems.check(self.bad, final=True)
        problems.locate()
        report.documents_in = problems.records
        report.dropped, report.problems = problems.counts, problems.examples
        report.counts.update(problems.mended)

    def documents(self, task: int, problems: Problems) -> Iterator[Row]:
        shape = shape_of(self.reader, self.text_key)
        for piece in self.plan[task - self.first]:
            name, lined = self.names[piece.path], is_lined(piece.path)
            for place, record in records(piece, problems, self.longest):
                made = f"{self.source}/{name}/{place}"
                try:
                    row = document(shape, record, made)
                except WrongShape as error:
                    if lined:
                        problems.add(str(error), piece.path, byte=place)
                    else:
                        problems.add(str(error), piece.path, row=place + (container(piece.path)[0] in TABLES))
                    problems.check(self.bad, final=False)
                    continue
                if self.keeps_place and row["id"] != made:
                    row[PLACE] = f"{name}/{place}"
                yield row


class Change(Block):
    """Apply `function`, which changes the rows of a batch in place and may return counts."""

    def __init__(
        self, name: str, folder: Path, function: Callable[[list[Row]], Counter[str] | None], first: int = 0
    ) -> None:
        super().__init__(name, folder, first)
        self.function = function

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        for rows in data:
            report.enter(rows)
            report.counts.update(self.function(rows) or {})
            yield rows


class Drop(Block):
    """Drop rows by `function`, which returns for each row of a batch the reason for dropping it, or None."""

    def __init__(
        self, name: str, folder: Path, function: Callable[[list[Row]], list[str | None]], first: int = 0
    ) -> None:
        super().__init__(name, folder, first)
        self.function = function

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        with row_writer(self.folder / "dropped" / self.name / f"{task:05d}.jsonl.zst") as write:
            for rows in data:
                report.enter(rows)
                yield _sort_out(rows, self.function(rows), report, write)


def _sort_out(rows: list[Row], reasons: list[str | None], report: Report, write: Callable) -> list[Row]:
    kept, dropped = [], []
    for row, reason in zip(rows, reasons):
        if reason is None:
            kept.append(row)
        else:
            report.drop(reason, row)
            dropped.append({**row, "dropped": reason})
    write(dropped)
    return kept


class Keep(Block):
    """Drop documents that break a rule on their metadata, and count histograms of the values, `score` among them.

    Raises UserError if no document of a task has a rule's key: it is misspelt, or another corpus's.
    """

    def __init__(self, folder: Path, source: str, rules: tuple[str, ...], score: str | None, first: int = 0) -> None:
        super().__init__("keep", folder, first)
        self.source, self.score = source, score
        self.rules = [keep.rule_of(rule) for rule in rules]

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        names = {rule.name for rule in self.rules} | ({self.score} if self.score else set())
        found: set[str] = set()
        with row_writer(self.folder / "dropped" / self.name / f"{task:05d}.jsonl.zst") as write:
            for rows in data:
                report.enter(rows)
                for row in rows:
                    found.update(row["metadata"])
                report.scores.update(keep.count_scores(rows, sorted(names), self.source))
                yield _sort_out(rows, keep.judge(rows, self.rules), report, write)
        for rule in self.rules:
            if report.documents_in and rule.name not in found:
                known = ", ".join(sorted(found)) or "none"
                raise UserError(f"--keep {rule.text}: no document of {self.source} has {rule.name}; they have {known}")


class Sign(Block):
    """Write the `minhash` keys of every document of a source.

    Ids that `Read` made are unique and get no key; a source's own ids are compared within that source only.
    """

    def __init__(self, folder: Path, work_folder: Path, source: str, first: int = 0) -> None:
        super().__init__("sign", folder, first)
        self.work_folder, self.source = work_folder, source

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        (self.work_folder / "signatures").mkdir(parents=True, exist_ok=True)
        writer = minhash.KeyWriter(self.work_folder / "signatures", task)
        for rows in data:
            report.enter(rows)
            if rows:
                own = [f"{self.source} {row['id']}" if PLACE in row else None for row in rows]
                writer.add(minhash.keys([row["text"] for row in rows], own))
            yield rows
        writer.flush()


class Write(Block):
    """Write the documents of a task as one shard; `targets` are the shards of all tasks of the run."""

    def __init__(self, folder: Path, targets: list[Path], first: int = 0) -> None:
        super().__init__("write", folder, first)
        self.targets = targets

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        with row_writer(self.targets[task]) as write:
            for rows in data:
                report.enter(rows)
                write(rows)
                yield rows


class Match(Block):
    """Write the candidate pairs of one kind of key; task k matches kind k."""

    def __init__(self, folder: Path, work_folder: Path, memory: int) -> None:
        super().__init__("match", folder)
        self.work_folder, self.memory = work_folder, memory

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        minhash.match(self.work_folder, task, self.memory)
        yield from ()


class Collect(Block):
    """Write the 5-grams of a shard's candidates."""

    def __init__(self, folder: Path, work_folder: Path, documents: list[Path]) -> None:
        super().__init__("collect", folder)
        self.work_folder, self.documents = work_folder, documents

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        minhash.collect(self.work_folder, task, read_shard(self.documents[task]))
        yield from ()


class Deduplicate(Block):
    """Write the final shard, without documents that repeat an earlier one of this or another shard, of any source.

    The same id with another text is another document: it stays, and its place makes its id unique.

    `sources` are the names of the sources in order, with as many shards each. The report counts whom the dropped
    documents repeat.
    """

    def __init__(
        self, folder: Path, work_folder: Path, documents: list[Path], targets: list[Path], sources: list[str]
    ) -> None:
        super().__init__("deduplicate", folder)
        self.work_folder, self.documents, self.targets, self.sources = work_folder, documents, targets, sources

    def work(self, data: Batches, task: int, report: Report) -> Batches:
        verdicts = minhash.verdicts(self.work_folder, task)
        repeated = minhash.repeated_ids(self.work_folder, task)
        each = len(self.documents) // len(self.sources)
        dropped = self.folder / "dropped" / self.name / f"{task:05d}.jsonl.zst"
        with row_writer(dropped) as drop, row_writer(self.targets[task]) as write:
            place = 0
            for rows in read_shard(self.documents[task]):
                report.enter(rows)
                found = [verdicts.get(place + index) for index in range(len(rows))]
                for index, (row, verdict) in enumerate(zip(rows, found)):
                    read_at = row.pop(PLACE, f"{task}/{place + index}")
                    if place + index in repeated and not verdict:
                        row["id"] = unique_id(row["id"], read_at)
                        report.counts[REPEATED] += 1
                    if verdict:
                        shard = verdict[1] >> 32
                        row["repeats"] = f"{shard:05d}:{verdict[1] & 0xFFFFFFFF}"  # shard and line
                        report.repeats[self.sources[shard // each]] += 1
                place += len(rows)
                kept = _sort_out(rows, [verdict and verdict[0] for verdict in found], report, drop)
                write(kept)
                yield kept
