"""The three sizes of a vocabulary, in one place: the tokenizer's, Megatron's padded one, and Hugging Face's.

Megatron pads the embedding so that it divides over tensor-parallel ranks. The added rows are no tokens: an export cuts
them, since a model that keeps them can emit ids that decode to nothing; an import puts them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from artifacts.vocabulary import padded_size


@dataclass(frozen=True)
class Vocabulary:
    """`tokenizer` <= `hugging_face` <= `padded`; the rows between the last two are padding."""

    tokenizer: int
    hugging_face: int
    padded: int


def of_checkpoint(arguments: Any, tokenizer: int) -> Vocabulary:
    """Sizes of a Megatron run exported with a tokenizer of so many tokens.

    A run that names its `--vocab-size` (an imported model has more rows than tokens) keeps that size; else the
    tokenizer's counts. Raises UserError when the rows to be cut are not just padding: the tokenizer is another one.
    """
    size = getattr(arguments, "vocab_size", None) or tokenizer
    padded = arguments.padded_vocab_size
    if tokenizer > size or size > padded:
        raise UserError(
            f"the tokenizer has {tokenizer} tokens, the checkpoint's embedding {min(size, padded)} rows: "
            "it belongs to another model"
        )
    divisible_by, tensor_parallel = arguments.make_vocab_size_divisible_by, arguments.tensor_model_parallel_size
    wanted = padded_size(size, divisible_by, tensor_parallel)
    if padded != wanted:
        raise UserError(
            f"the checkpoint's embedding has {padded} rows, and padding {size} tokens (divisible by {divisible_by}, "
            f"tensor parallel {tensor_parallel}) gives {wanted}: the tokenizer belongs to another model, or give the "
            "model's own size with --vocab-size"
        )
    return Vocabulary(tokenizer, size, padded)
