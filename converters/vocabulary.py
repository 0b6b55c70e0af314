"""The three sizes of a vocabulary: the tokenizer's, Megatron's padded one, and Hugging Face's.

Megatron pads the embedding so that it divides over tensor-parallel ranks. The added rows are not tokens. Export removes
them, because a model that keeps them can emit ids that decode to nothing; import adds them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from artifacts.vocabulary import padded_size


@dataclass(frozen=True)
class Vocabulary:
    """`tokenizer` <= `hugging_face` <= `padded`. Rows from `hugging_face` to `padded` are padding."""

    tokenizer: int
    hugging_face: int
    padded: int


def of_checkpoint(arguments: Any, tokenizer: int) -> Vocabulary:
    """Vocabulary sizes of a Megatron run that is exported with a tokenizer of `tokenizer` tokens.

    If the run sets `--vocab-size` (an imported model has more rows than tokens), that size is kept, else the
    tokenizer's. Raises UserError if the rows to remove are not just padding: then the tokenizer is not the run's.
    """
    size = getattr(arguments, "vocab_size", None) or tokenizer
    padded = arguments.padded_vocab_size
    if tokenizer > size or size > padded:
        raise UserError(
            f"the tokenizer has {tokenizer} tokens, the checkpoint's embedding {min(size, padded)} rows: "
            "give the tokenizer that the model was trained with"
        )
    divisible_by, tensor_parallel = arguments.make_vocab_size_divisible_by, arguments.tensor_model_parallel_size
    wanted = padded_size(size, divisible_by, tensor_parallel)
    if padded != wanted:
        raise UserError(
            f"the checkpoint's embedding has {padded} rows, but {size} tokens padded (divisible by {divisible_by}, "
            f"tensor parallel {tensor_parallel}) give {wanted}: give the tokenizer that the model was trained with, or "
            "the model's size with --vocab-size"
        )
    return Vocabulary(tokenizer, size, padded)
