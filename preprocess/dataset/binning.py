"""Tokenize documents into a Megatron indexed dataset: `PREFIX.bin` (token ids) and `PREFIX.idx` (their offsets).

    myllm binning --input F.jsonl --tokenizer tokenizer --output-prefix dataset/wiki-train
    myllm binning --input corpus/c4/shards --split train --tokenizer T --output-prefix dataset/c4-train
    myllm binning --sources corpus/clean/shards --tokenizer T --output-folder dataset    # SOURCE-train, -valid, -test

Each non-empty document ends with the end-of-text id. A literal special token in the text is encoded as ordinary
characters, so that a web page cannot end a document. For text without such literals, the files are byte-identical to
those of Megatron-LM's `tools/preprocess_data.py --append-eod` (format: `megatron/core/datasets/indexed_dataset.py`):
ids are uint16 below 65,500 entries, else int32; an empty document adds no sequence but repeats the document index.

With --split only documents of that split are binned, chosen by a hash of their ids as in `myllm split`:
the same shards give train, valid and test without a copy of the corpus. --sources bins the three splits of every
source that `myllm corpora` left in a folder, and keeps the text of the test split as SOURCE-test.jsonl.zst.

The input is split into shards, one task each; finished shards are kept in `.PREFIX.shards/` until all are merged. The
result depends neither on the number of workers nor on interruptions: run the same command again to resume. A `.jsonl`
is split every --shard-megabytes; a compressed file is one shard, so use many files. Needs free disk space of twice the
result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import (
    atomic_file,
    only_run,
    packing_of,
    read_json,
    read_jsonl,
    sha256,
    unpacked,
    write_json,
    write_jsonl,
    write_text,
)
from artifacts.json_rows import described, parse
from artifacts.processes import die_with_parent
from artifacts.stage import report_metrics, track
from preprocess.dataset.encoding import ENGINES, Encoder, eos_token, load_encoder, load_tokenizer, tokenizer_file
from preprocess.dataset.indexed import merge, part
from preprocess.dataset.split import SPLITS, split_of
from preprocess.sources.documents import own_id, without_text
from preprocess.sources.lines import blocks, files_of, source_folders
from preprocess.tokenizer.probe import PROBES

__all__ = ["bin_files", "load_tokenizer"]

SAMPLE_BYTES = 500_000  # of JSONL, encoded with both engines before anything is written, to compare their ids
NAMED = 5  # broken rows reported per shard


@dataclass(frozen=True)
class Shard:
    """Bytes [start, end) of a file; `end` None is its end. A line belongs to the shard in which it starts."""

    path: str
    start: int
    end: int | None


@dataclass(frozen=True)
class Split:
    """The split to bin, `name`, and the shares of documents that go to valid and test."""

    name: str
    valid: float
    test: float

    def holds(self, row: dict[str, Any], text: str) -> bool:
        """Whether a row is in this split, by its `id`, or by its text if it has no id."""
        return split_of(own_id(row) or text, self.valid, self.test) == self.name


@dataclass(frozen=True)
class Settings:
    """The settings that the result depends on, besides the inputs."""

    tokenizer: str
    engine: str  # the engine in use
    key: str
    split: Split | None = None
    keeps_text: bool = False  # also write the texts of the split, beside the dataset


def cut(paths: list[Path], shard_bytes: int) -> list[Shard]:
    """Split the files into shards, in order. Raises UserError if a file is missing, or all are empty."""
    shards = []
    for path in paths:
        if packing_of(path):
            shards.append(Shard(str(path), 0, None))
        else:
            size = path.stat().st_size
            shards += [Shard(str(path), start, start + shard_bytes) for start in range(0, size, shard_bytes)]
    if not shards:
        raise UserError(f"{paths[0]} is empty: write it again, or leave it out")
    return shards


def texts_of(lines: list[bytes], key: str, split: Split | None = None) -> tuple[list[str], list[tuple[int, str]], int]:
    """Texts of the rows of a split, (index, reason) of broken rows, and the number of rows with a lone surrogate.

    Blank lines are ignored.
    """
    texts, broken, mended = [], [], 0
    for index, line in enumerate(lines):
        try:
            row, replaced = parse(line)
        except ValueError as error:
            if line.strip():
                broken.append((index, described(line, error)))
            continue
        text = row.get(key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            broken.append((index, f"has {without_text(row, key)}" if isinstance(row, dict) else described(line)))
        elif split is None or split.holds(row, text):
            texts.append(text)
            mended += bool(replaced)
    return texts, broken, mended


def line_number(path: str, offset: int, index: int) -> str:
    """`line N` for the line `index` lines after byte `offset`. Reads the file, so use it only for error messages."""
    count = 0
    with unpacked(path) as pieces:
        for piece in pieces:
            count += piece[:offset].count(b"\n")
            offset -= len(piece)
            if offset <= 0:
                break
    return f"line {count + index + 1}"


def encode_shard(shard: Shard, encoder: Encoder, settings: Settings, folder: Path, number: int) -> None:
    """Write a shard's ids (`.bin`), its documents' lengths (`.npy`, int32), and last `.json`, which marks it done."""
    import numpy as np

    lengths: list[Any] = []
    named: list[str] = []
    kept: list[str] = []
    broken = rows = mended = 0
    with atomic_file(part(folder, number, "bin")) as aside, aside.open("wb") as stream:
        for offset, lines in blocks(shard.path, shard.start, shard.end):
            texts, bad, replaced = texts_of(lines, settings.key, settings.split)
            rows += len(texts) + len(bad)
            broken += len(bad)
            mended += replaced
            for index, reason in bad[: NAMED - len(named)]:
                named.append(f"{shard.path} {line_number(shard.path, offset, index)} {reason}")
            if settings.keeps_text:
                kept += [json.dumps({"text": text}, ensure_ascii=False) for text in texts if text.strip()]
            if texts:
                ids, counts = encoder.documents(texts)
                stream.write(ids.data)
                lengths.append(counts.astype(np.int32))
    with atomic_file(part(folder, number, "npy")) as aside, aside.open("wb") as stream:
        np.save(stream, np.concatenate(lengths) if lengths else np.zeros(0, np.int32))
    if settings.keeps_text:
        write_text(part(folder, number, "text"), "".join(line + "\n" for line in kept))
    write_json(part(folder, number, "json"), {"rows": rows, "broken": broken, "named": named, "mended": mended})


@cache
def encoder_of(tokenizer: str, engine: str) -> Encoder:
    """A worker's encoder, loaded once."""
    return load_encoder(Path(tokenizer), engine)


def start_worker(parent: int, tokenizer: str, engine: str) -> None:
    """Load the most likely encoder early, while the parent process checks which engine may be used."""
    die_with_parent(parent)
    with suppress(UserError):
        encoder_of(tokenizer, "gigatoken" if engine == "auto" else engine)


def worker_shard(shard: Shard, settings: Settings, folder: Path, number: int) -> int:
    encode_shard(shard, encoder_of(settings.tokenizer, settings.engine), settings, folder, number)
    return number


@contextmanager
def started_workers(count: int, tokenizer: Path, engine: str) -> Iterator[ProcessPoolExecutor | None]:
    """A pool of `count` processes that are already starting; None for one. Raises UserError if a worker is killed."""
    if count <= 1:
        yield None
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), start_worker, (os.getpid(), str(tokenizer), engine))
    try:
        for _ in range(count):
            pool.submit(os.getpid)  # the pool starts a process for each task if none is idle
        yield pool
    except BrokenProcessPool:
        pool.shutdown(cancel_futures=True)
        raise UserError(
            "a worker was killed, perhaps out of memory: run again with fewer --workers; finished shards are kept"
        ) from None
    except BaseException:
        pool.shutdown(cancel_futures=True)  # no worker may write into the folder after this run unlocks it
        raise
    pool.shutdown(wait=False)  # workers take a third of a second to exit; the merge starts meanwhile


def encode_shards(
    tasks: list[tuple[int, Shard]],
    settings: Settings,
    encoder: Encoder,
    folder: Path,
    pool: ProcessPoolExecutor | None,
) -> Iterator[int]:
    """Encode shards in the workers of `pool`, or in this process; yields the number of each finished shard."""
    if pool is None:
        for number, shard in tasks:
            encode_shard(shard, encoder, settings, folder, number)
            yield number
        return
    futures = [pool.submit(worker_shard, shard, settings, folder, number) for number, shard in tasks]
    for future in as_completed(futures):
        yield future.result()


def plan_of(shards: list[Shard], tokenizer: Path, key: str, split: Split | None) -> dict[str, Any]:
    """What the parts depend on; if it changes, they are made again. Files are identified by path, size and time."""
    files = {shard.path: os.stat(shard.path) for shard in shards}
    return {
        "inputs": {path: [found.st_size, found.st_mtime_ns] for path, found in files.items()},
        "shards": [asdict(shard) for shard in shards],
        "tokenizer_sha256": sha256(tokenizer_file(tokenizer)),
        "eos_token": eos_token(tokenizer),
        "key": key,
        "split": asdict(split) if split else None,
    }


def is_done(prefix: Path, report_file: Path, plan: dict[str, Any], engine: str) -> bool:
    """Whether the dataset exists and its report has the same inputs and the requested engine."""
    if not all(prefix.with_name(prefix.name + suffix).exists() for suffix in (".bin", ".idx", ".binning.json")):
        return False
    report = read_json(report_file)
    return plan.items() <= report.items() and engine in ("auto", report["engine"])


def sample_texts(shards: list[Shard], key: str) -> list[str]:
    """The probe strings, and about `SAMPLE_BYTES` of rows from shards spread over the inputs."""
    texts = list(PROBES)
    chosen = shards[:: max(1, len(shards) // 4)][:4]
    share = SAMPLE_BYTES // len(chosen)
    for shard in chosen:
        end = None if shard.end is None else min(shard.end, shard.start + share)
        for _, lines in blocks(shard.path, shard.start, end):
            taken = sum(size <= share for size in accumulate(map(len, lines)))
            texts += texts_of(lines[: max(1, taken)], key)[0]
            break
    return texts


def too_small(shards: list[Shard], key: str, split: Split) -> str:
    """The error for a split without documents: how many there are, and a share that gives the split about ten."""
    count = sum(
        len(texts_of(lines, key)[0]) for shard in shards for _, lines in blocks(shard.path, shard.start, shard.end)
    )
    folder, share = Path(shards[0].path).parent, {"valid": split.valid, "test": split.test}.get(split.name, 1.0)
    enough = next((given for given in (0.01, 0.02, 0.05, 0.1, 0.2) if given * count >= 10), 0.2)
    option = f"--valid {enough} --test {enough}" if split.name != "train" else "smaller --valid and --test"
    return (
        f"{folder} has {count:,} documents, and a share of {share:g} leaves {split.name} without any: "
        f"give {option}, or add text"
    )


def holds_any(files: list[Path], key: str, split: Split) -> bool:
    """Whether the files have a document of the split; reading stops at the first one."""
    return any(texts_of(lines, key, split)[0] for file in files for _, lines in blocks(file))


def bin_files(
    inputs: list[Path],
    tokenizer: Path,
    prefix: Path,
    workers: int = 1,
    engine: str = "auto",
    key: str = "text",
    shard_bytes: int = 64 << 20,
    broken_allowed: float = 0.0,
    split: Split | None = None,
    keeps_text: bool = False,
) -> dict[str, Any]:
    """Bin JSONL files; returns documents, tokens, broken rows, the engine and how many shards were already done.

    With `keeps_text`, the documents are also written to `PREFIX.jsonl.zst`, e.g. to measure bits per byte on them.

    Raises UserError if a file is missing or empty, or if the share of rows without text exceeds `broken_allowed` (the
    first of them are printed with file and line).
    """
    shards = cut(inputs, shard_bytes)
    folder = prefix.with_name(f".{prefix.name}.shards")
    plan_file, report_file = folder / "plan.json", prefix.with_name(prefix.name + ".binning.json")
    with only_run(folder):
        plan = plan_of(shards, tokenizer, key, split) | ({"keeps_text": True} if keeps_text else {})
        if is_done(prefix, report_file, plan, engine):
            print(f"{prefix} is already made from these inputs: nothing to do", flush=True)
            shutil.rmtree(folder)
            return read_json(report_file)
        begun = plan_file.exists() and plan.items() <= read_json(plan_file).items()
        left = sum(not part(folder, number, "json").exists() for number in range(len(shards))) if begun else len(shards)
        with started_workers(min(workers, left), tokenizer, engine) as pool:
            encoder = load_encoder(tokenizer, engine, sample_texts(shards, key))
            settings = Settings(str(tokenizer), encoder.name, key, split, keeps_text)
            plan["engine"] = encoder.name
            if not plan_file.exists() or read_json(plan_file) != plan:
                for path in folder.iterdir():
                    if path.name != "lock":
                        path.unlink()
                write_json(plan_file, plan)
            todo = [
                (number, shard)
                for number, shard in enumerate(shards)
                if not all(part(folder, number, suffix).exists() for suffix in ("bin", "npy", "json"))
            ]
            if len(todo) < len(shards):
                print(f"{len(shards) - len(todo)} of {len(shards)} shards are already done", flush=True)
            for _ in track(encode_shards(todo, settings, encoder, folder, pool), len(todo), "shards"):
                pass
        marks = [read_json(part(folder, number, "json")) for number in range(len(shards))]
        broken, rows = sum(mark["broken"] for mark in marks), sum(mark["rows"] for mark in marks)
        named = [text for mark in marks for text in mark["named"]][:NAMED]
        for text in named:
            print(f"skipped: {text}", flush=True)
        if mended := sum(mark.get("mended", 0) for mark in marks):
            print(f"{mended:,} rows had a lone surrogate, half of a character; it was replaced by U+FFFD", flush=True)
        if broken > broken_allowed * rows:
            raise UserError(
                f"{named[0]} ({broken:,} of {rows:,} rows are broken): correct them, or set --broken-allowed"
            )
        if split and not rows:
            raise UserError(too_small(shards, key, split))
        if not rows:
            raise UserError(f"{inputs[0]} has no row: write it again, or leave it out")
        if keeps_text:
            texts = prefix.with_name(f"{prefix.name}.jsonl.zst")
            write_jsonl(texts, (row for n in range(len(shards)) for row in read_jsonl(part(folder, n, "text"))))
        documents, tokens = merge(folder, len(shards), encoder.dtype, prefix)
        report = {"documents": documents, "tokens": tokens, "broken_rows": broken, "broken": named,
                  "engine": encoder.name, "dtype": encoder.dtype, "shards": len(shards),
                  "shards_found_done": len(shards) - len(todo)}  # fmt: skip
        write_json(report_file, {**report, **plan})
    shutil.rmtree(folder)
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, action="append", help=".jsonl, .jsonl.zst or a folder; repeatable")
    given.add_argument("--sources", type=Path, help="folder with a folder of shards for each source: `myllm corpora`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--output-prefix", type=Path, help="with --input: path of .bin and .idx without the suffix")
    parser.add_argument("--output-folder", type=Path, help="with --sources: folder of the datasets, SOURCE-SPLIT")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: gigatoken if its ids are equal")
    parser.add_argument("--key", default="text", help="key of a row's text (default text)")
    parser.add_argument("--shard-megabytes", type=int, default=64, help="size of a shard of a .jsonl (default 64)")
    parser.add_argument("--broken-allowed", type=float, default=0.0, help="allowed share of broken rows (default 0)")
    parser.add_argument("--split", choices=SPLITS, help="bin only the documents of this split")
    parser.add_argument("--valid", type=float, default=0.001, help="with --split: the share of valid (default 0.001)")
    parser.add_argument("--test", type=float, default=0.001, help="with --split: the share of test (default 0.001)")


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    ahead.wants(arguments.tokenizer)
    check_shares(arguments)
    if arguments.sources is None:
        for path in arguments.input:
            ahead.wants(path)
        prefixes = [prefix for _, prefix, _ in datasets_of(arguments, [])]
    else:
        ahead.wants(arguments.sources)
        prefixes = [p for _, p, _ in datasets_of(arguments, ahead.folders_in(arguments.sources))]
    for prefix in prefixes:
        ahead.makes(f"{prefix}.idx")


def run(arguments: argparse.Namespace) -> None:
    check_shares(arguments)
    if arguments.workers < 1 or arguments.shard_megabytes < 1:
        raise UserError("--workers and --shard-megabytes must be 1 or more")
    folders = source_folders(arguments.sources) if arguments.sources else []
    for given, prefix, split in datasets_of(arguments, folders):
        files = [file for path in given for file in files_of(path)]
        if arguments.sources and split and split.name != "train" and not holds_any(files, arguments.key, split):
            print(f"{prefix}: {split.name} has no document of {given[0].name}, whose share of it is none", flush=True)
            continue
        report = bin_files(
            files, arguments.tokenizer, prefix, arguments.workers, arguments.engine, arguments.key,
            arguments.shard_megabytes << 20, arguments.broken_allowed, split,
            keeps_text=bool(arguments.sources) and split is not None and split.name == "test",
        )  # fmt: skip
        print(f"{prefix}: {report['documents']:,} documents, {report['tokens']:,} tokens, {report['engine']}")
        kept = {name: report[name] for name in ("documents", "tokens", "broken_rows", "engine")}
        report_metrics(**{prefix.name: kept})


def check_shares(arguments: argparse.Namespace) -> None:
    if not (arguments.valid >= 0 and arguments.test >= 0 and arguments.valid + arguments.test < 1):
        raise UserError(
            f"--valid {arguments.valid:g} and --test {arguments.test:g} must be 0 or more, and together below 1"
        )


def datasets_of(arguments: argparse.Namespace, folders: list[Path]) -> Iterator[tuple[list[Path], Path, Split | None]]:
    """The inputs, prefix and split of each dataset to make; `folders` are those of --sources.

    Raises:
        UserError: an option is missing, or has no effect.
    """
    if arguments.sources is None:
        if arguments.output_prefix is None:
            raise UserError("--input needs --output-prefix, the path of the dataset without .bin")
        split = Split(arguments.split, arguments.valid, arguments.test) if arguments.split else None
        yield arguments.input, arguments.output_prefix, split
        return
    if arguments.output_folder is None or arguments.split:
        raise UserError("--sources bins every split: give --output-folder, and leave --split out")
    for folder in folders:
        for name in SPLITS:
            split = Split(name, arguments.valid, arguments.test)
            yield [folder], arguments.output_folder / f"{folder.name}-{name}", split


if __name__ == "__main__":
    main(__name__)
