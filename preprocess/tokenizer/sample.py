"""Sample the training text of a tokenizer evenly from every source, within a memory limit.

Used by `preprocess.tokenizer.train`; not a command. BPE training keeps every distinct word with its positions. Most
Chinese clauses are distinct, so memory grows with the text, and limiting the sample limits memory. A source is read
once as a stream; kept lines are thinned evenly whenever they exceed the source's share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import UserError
from artifacts.json_rows import parse, refusal
from preprocess.sources.documents import without_text
from preprocess.sources.lines import blocks, files_of

LONGEST_DOCUMENT = 1 << 20  # bytes of a JSON line; of a longer document only the beginning is used
# Peak bytes of memory per byte of sample if all words are distinct, and of a process without a sample: the upper ends
# of the measurements of `python -m benchmarks.preprocess_tokens`
BYTES_PER_BYTE = {"qwen2": 105.0, "llama2": 62.0}
BYTES_PER_BYTE_SPLIT = 8.0  # with each Chinese character as a separate word
BASE_GB = 0.2
GOLDEN = 0.6180339887498949


def estimate_gb(sample_bytes: int, style: str, split_characters: bool) -> float:
    """Estimated peak memory of training, in GB, if every word of the sample is distinct."""
    return BASE_GB + sample_bytes * (BYTES_PER_BYTE_SPLIT if split_characters else BYTES_PER_BYTE[style]) / 1e9


def largest_sample(max_memory_gb: float, style: str, split_characters: bool) -> int:
    """Largest sample, in bytes, that trains within `max_memory_gb`. Raises UserError if it is less than 1 MB."""
    per_byte = (estimate_gb(10**9, style, split_characters) - BASE_GB) / 1e9
    size = int((max_memory_gb - BASE_GB) / per_byte)
    if size < 1_000_000:
        raise UserError(f"--max-memory-gb {max_memory_gb} is too small for any sample: give at least 0.5")
    return size


def text_of(path: Path, line: bytes, number: int) -> str:
    try:
        row = parse(line)[0]
    except ValueError as error:
        raise UserError(refusal(f"{path} line {number}", line, error)) from None
    if not isinstance(row, dict):
        raise UserError(refusal(f"{path} line {number}", line))
    text = row.get("text")
    if not isinstance(text, str):
        raise UserError(f"{path} line {number} has {without_text(row, 'text')}: correct or remove that line")
    return text


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    return enumerate((line for _, lines in blocks(file) for line in lines), start=1)


def thinned(path: Path, share: int) -> list[str]:
    """Texts of a source, in its order and at most `share` bytes: all of them, or an even sample.

    Lines are chosen by a low-discrepancy sequence (multiples of the golden ratio modulo 1 that lie below a rate; the
    rate is lowered whenever the share overflows). The choice is deterministic, spread over the source, and fills nine
    tenths of the share. Memory is the share and one line. Raises UserError with file and line of a broken row.
    """
    rate, kept, held = 1.0, [], 0
    rows = ((file, row, line) for file in files_of(path) for row, line in lines_of(file))
    for number, (file, row, line) in enumerate(rows):
        place = number * GOLDEN % 1.0
        if place >= rate or not line.strip():
            continue
        text = text_of(file, line, row)
        if len(line) > LONGEST_DOCUMENT:
            text = text[: LONGEST_DOCUMENT // 3]
        kept.append((place, text, len(text.encode())))
        held += kept[-1][2]
        while held > share and kept:
            rate *= 0.95
            kept = [entry for entry in kept if entry[0] < rate]
            held = sum(entry[2] for entry in kept)
    return [text for _, text, _ in kept]


def sample(paths: list[Path], sample_bytes: int) -> dict[Path, list[str]]:
    """Sample texts by source. Sources get equal shares; the unused part of small ones goes to larger ones.

    Raises UserError if there is no document in any of them.
    """
    sizes = {path: sum(os.path.getsize(file) for file in files_of(path)) for path in paths}
    left, found = sample_bytes, {}
    by_size = sorted(sizes, key=lambda path: sizes[path])
    for index, path in enumerate(by_size):
        found[path] = thinned(path, left // (len(by_size) - index))
        left -= sum(len(text.encode()) for text in found[path])
    if not any(found.values()):
        raise UserError(f"{', '.join(map(str, found))}: no document to learn from: write the files again, or add text")
    return {path: found[path] for path in dict.fromkeys(paths)}
