"""Megatron's padded vocabulary size, for recipes, converters and estimates."""


def padded_size(size: int, divisible_by: int, tensor_parallel: int) -> int:
    """Rows of Megatron's embedding: `size` rounded up to a multiple of `divisible_by` x tensor parallel.

    Rule: `vocab_size_with_padding` of megatron-core 0.19.2, flag `--make-vocab-size-divisible-by`.
    """
    multiple = divisible_by * tensor_parallel
    return -(-size // multiple) * multiple
