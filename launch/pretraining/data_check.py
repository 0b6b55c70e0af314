"""Look at what the model is about to see, before the first step: ids, blend, text. Runs on rank 0 of a training.

Every training prints a few samples as text, for a person to read, and is refused when an id lies outside the
vocabulary, when the blend is not what was asked for, or when the ids are another tokenizer's.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from artifacts.errors import UserError

LOOKED_AT = 1 << 26  # tokens of each source that are read, spread over it
PIECES = 64
SAMPLES = 2  # shown as text
SHOWN = 160  # characters of each
DOCUMENTS, IDS = 20, 500  # first documents of a source that are decoded, and how much of each
SAME_IDS = 0.9  # of their ids must come back when the text is encoded again
BLEND_TOLERANCE = 0.01  # of all samples


def sources(dataset: Any) -> list[Any]:
    """The datasets of a blend, or the one dataset that is none."""
    return list(getattr(dataset, "datasets", [dataset]))


def check_ids(indexed: Any, vocabulary: int, limit: int = LOOKED_AT) -> int:
    """The largest id among up to `limit` tokens, spread over an `IndexedDataset`.

    Raises:
        UserError: it is outside the vocabulary.
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
            f"{indexed.path_prefix}.bin holds id {largest}, and the tokenizer has {vocabulary}: bin it again with it"
        )
    return largest


def check_text(indexed: Any, tokenizer: Any) -> None:
    """Decode a source's first documents and encode them again: ids of another tokenizer do not come back.

    Raises:
        UserError: when they do not.
    """
    special = set(getattr(tokenizer, "all_special_ids", None) or []) | {tokenizer.eod}
    asked = same = 0
    for number in range(min(len(indexed), DOCUMENTS)):
        body = [int(i) for i in indexed[number][:IDS] if int(i) not in special]
        if body:
            again = tokenizer.tokenize(tokenizer.detokenize(body))
            asked, same = asked + len(body), same + sum((Counter(body) & Counter(again)).values())
    if same < SAME_IDS * asked:
        raise UserError(
            f"{indexed.path_prefix}.bin was made with another tokenizer: of its first {asked} ids only "
            f"{same / asked:.0%} come back when their text is encoded again; bin it again with this run's tokenizer"
        )


def check_blend(dataset: Any, weights: list[float] | None) -> list[float]:
    """Shares of the samples that each source gives, held against the weights asked for.

    Raises:
        UserError: a share is off by more than 1 % of all samples, where enough samples are drawn to tell.
    """
    parts = sources(dataset)
    if len(parts) == 1:
        return [1.0]
    index = dataset.dataset_index
    counts = np.bincount(index, minlength=len(parts)) / len(index)
    if weights:
        asked = np.array(weights) / sum(weights)
        worst = int(np.argmax(np.abs(counts - asked)))
        if abs(counts[worst] - asked[worst]) > BLEND_TOLERANCE + 1 / len(index):
            raise UserError(
                f"{parts[worst].dataset.path_prefix} gives {counts[worst]:.1%} of the samples, {asked[worst]:.1%} was "
                "asked for in blend.json: delete dataset/cache and try again"
            )
    return [float(share) for share in counts]


def look(train: Any, tokenizer: Any, vocabulary: int, weights: list[float] | None) -> None:
    """All checks on the training data, and its samples as text, printed.

    Args:
        train: Megatron's `BlendedDataset` or `GPTDataset`.
        tokenizer: Megatron's own, built from the run's folder.
        vocabulary: how many ids there are.
        weights: asked for in the blend, in its order, or None.

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
