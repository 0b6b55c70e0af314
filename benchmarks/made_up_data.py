"""Create a run's folder with a tokenizer and two sources of made-up text, for tests and benchmarks that need any text.

The text has 300 characters, some much more frequent than others, so that there is something to learn.
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from artifacts.layout import REPOSITORY

CHARACTERS = 300
VOCABULARY = 512
DOCUMENTS = {"a": 1200, "b": 700, "valid": 100}


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


def write_texts(folder: Path) -> None:
    """Write `a.jsonl`, `b.jsonl` and `valid.jsonl`: documents of 20 to 120 characters."""
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CHARACTERS + 1)
    for name, documents in DOCUMENTS.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for _ in range(documents):
                drawn = random.choice(CHARACTERS, random.integers(20, 120), p=frequency / frequency.sum())
                text = "".join(chr(0x4E00 + character) for character in drawn)
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def bin_texts(texts: Path, run: Path, vocabulary: int = VOCABULARY) -> Path:
    """Make the tokenizer and the blended dataset of a run with the project's own stages. Returns the run's folder."""
    tokenizer = ("--tokenizer", str(run / "tokenizer"))
    options = (
        "--vocab-size",
        str(vocabulary),
        "--split-characters",
        "--environments",
        "none",
        "--output",
        str(run / "tokenizer"),
    )
    _python("preprocess.tokenizer.train", "--input", str(texts / "a.jsonl"), *options)
    for name in DOCUMENTS:
        output = ("--output-prefix", str(run / "dataset" / name))
        _python("preprocess.dataset.binning", "--input", str(texts / f"{name}.jsonl"), *tokenizer, *output)
    splits = ("--train", "a", "--train", "b", "--valid", "valid", "--test", "valid")
    _python("preprocess.dataset.blend", "--folder", str(run / "dataset"), *tokenizer, *splits)
    return run


@cache
def _made() -> Path:
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_texts(folder)
    return bin_texts(folder, folder / "run")


def write_tasks(folder: Path, rows: int = 64) -> None:
    """Write instruction data, requests for GRPO and multiple-choice questions of made-up lines."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True)

    def line() -> str:
        return "".join(chr(0x4E00 + character) for character in random.integers(0, CHARACTERS, 5)) + "。"

    for name in ("sft", "rl"):
        for part in ("train", "valid"):
            made = [{"instruction": f"续写：{line()}", "input": "", "output": line()} for _ in range(rows)]
            (folder / f"{name}_{part}.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(rows):
            question = {"id": str(number), "context": line(), "choices": [line() for _ in range(4)], "answer": 0}
            stream.write(json.dumps(question, ensure_ascii=False) + "\n")


def copy_run(source: Path, folder: Path) -> Path:
    """Create a new run's folder with the tokenizer and dataset of another run."""
    folder.mkdir(parents=True)
    for part in ("tokenizer", "dataset"):
        shutil.copytree(source / part, folder / part)
    blend = folder / "dataset" / "blend.json"
    blend.write_text(blend.read_text().replace(str(source), str(folder)))
    return folder


def make_run(folder: Path) -> Path:
    """Create a new run's folder. The data is made once per process and copied."""
    return copy_run(_made(), folder)
