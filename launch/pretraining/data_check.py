"""Check the training data before the first step: token ids, blend, text. Runs on rank 0 of a training.

It prints a few samples as text, for a person to read. It stops the training if an id lies outside the vocabulary, if
the blend is not the one in blend.json, or if the data was made with another tokenizer.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from artifacts.errors import UserError

TOKENS_READ = 1 << 26  # most tokens to check in each source
PIECES = 64  # evenly spaced pieces that they are read in
SAMPLES = 2  # samples printed as text
SHOWN = 160  # characters of each sample
DOCUMENTS, IDS = 20, 500  # first documents of a source to decode, and ids of each
SAME_IDS = 0.9  # share of these ids that must be equal after decoding and encoding
BLEND_TOLERANCE = 0.01  # share of all samples


def sources(dataset: Any) -> list[Any]:
    """The datasets of a blend; for a single dataset, a list with it."""
    return list(getattr(dataset, "datasets", [dataset]))


def check_ids(indexed: Any, vocabulary: int, limit: int = TOKENS_READ) -> int:
    """The largest id among up to `limit` tokens, spread evenly over an `IndexedDataset`.

    Raises:
        UserError: the id is outside the vocabulary.
    """
    total = int(indexed.sequence_lengths.sum())
    width = np.dtype(indexed.index.dtype).itemsize
    pieces = 1 if total <= limit else PIECES
    each = min(total, limit) // pieces
    largest = -1
    with open(f"{indexed.path_prefix}.bin", "rb") as stream:
        for piece in range(pieces):
            stream.seek((total - each) * piece // max(pieces - 1, 1) * width)
            found = np.frombuffer(stream.read(each * width), dtype=indexed.index.dtype)
            largest = max(largest, int(found.max(initial=0)))
    if largest >= vocabulary:
        raise UserError(
            f"{indexed.path_prefix}.bin holds id {largest}, but the tokenizer has {vocabulary} ids: run "
            "`myllm binning` again with this tokenizer"
        )
    return largest


def check_text(indexed: Any, tokenizer: Any) -> None:
    """Decode a source's first documents and encode them again; with another tokenizer's data, the ids differ.

    Raises:
        UserError: fewer than 90 % of the ids are equal.
    """
    special = set(getattr(tokenizer, "all_special_ids", None) or []) | {tokenizer.eod}
    total = same = 0
    for number in range(min(len(indexed), DOCUMENTS)):
        body = [int(i) for i in indexed[number][:IDS] if int(i) not in special]
        if body:
            again = tokenizer.tokenize(tokenizer.detokenize(body))
            total, same = total + len(body), same + sum((Counter(body) & Counter(again)).values())
    if same < SAME_IDS * total:
        raise UserError(
            f"{indexed.path_prefix}.bin was made with another tokenizer: only {same / total:.0%} of its first {total} "
            "ids are equal after decoding and encoding; run `myllm binning` again with this run's tokenizer"
        )


def check_blend(dataset: Any, weights: list[float] | None) -> list[float]:
    """The share of the samples that comes from each source, compared with the weights of blend.json.

    Raises:
        UserError: a share is off by more than 1 % of all samples plus one sample.
    """
    parts = sources(dataset)
    if len(parts) == 1:
        return [1.0]
    index = dataset.dataset_index
    counts = np.bincount(index, minlength=len(parts)) / len(index)
    if weights:
        expected = np.array(weights) / sum(weights)
        worst = int(np.argmax(np.abs(counts - expected)))
        if abs(counts[worst] - expected[worst]) > BLEND_TOLERANCE + 1 / len(index):
            raise UserError(
                f"{parts[worst].dataset.path_prefix} gives {counts[worst]:.1%} of the samples, but blend.json says "
                f"{expected[worst]:.1%}: delete dataset/cache and run the same command again"
            )
    return [float(share) for share in counts]


def look(train: Any, tokenizer: Any, vocabulary: int, weights: list[float] | None) -> None:
    """Run all checks on the training data and print its first samples as text.

    Args:
        train: Megatron's `BlendedDataset` or `GPTDataset`.
        tokenizer: Megatron's tokenizer, built from the run's folder.
        vocabulary: number of ids.
        weights: weights in blend.json, in the order of its sources, or None.

    Raises:
        UserError: the first check that fails.
    """
    shares = check_blend(train, weights)
    for number, part in enumerate(sources(train)):
        indexed = part.dataset
        largest = check_ids(indexed, vocabulary)
        check_text(indexed, tokenizer)
        share = f"{shares[number]:.2%} of the samples"
        tokens = int(indexed.sequence_lengths.sum())
        print(
            f"data: {indexed.path_prefix}: {tokens:,} tokens, largest id {largest} < {vocabulary}, {share}", flush=True
        )
    for number in range(min(SAMPLES, len(train))):
        sample = train[number]
        text = tokenizer.detokenize([int(i) for i in sample["tokens"]])
        print(f"data: sample {number} begins: {text[:SHOWN]!r}", flush=True)
