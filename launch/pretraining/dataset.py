"""Build Megatron's dataset configuration from Megatron's arguments.

Megatron does this in `pretrain_gpt.py`, which its wheel does not contain. A field that is not filled here would make
its flag silently useless: tests/pretraining/test_served_flags.py compares the fields with the installed Megatron's.
"""

from __future__ import annotations

import json
from typing import Any

from artifacts.errors import UserError

LEFT_ALONE = {
    "drop_last_partial_validation_sequence": "no flag of Megatron sets it; pretrain_gpt.py uses the same default",
    "add_extra_token_to_sequence": "no flag of Megatron sets it; pretrain_gpt.py uses the same default",
    "inter_document_masking": "needs packed sequences, which the worker does not support: see served_flags.py",
    "hybrid_context_parallel": "context parallel is not supported: see served_flags.py",
}


def dataset_fields(args: Any, tokenizer: Any, blend: Any, blend_per_split: Any) -> dict[str, Any]:
    """The arguments of `GPTDatasetConfig`, without those in `LEFT_ALONE`.

    Args:
        args: Megatron's validated arguments.
        blend, blend_per_split: results of `megatron.training.utils.get_blend_and_blend_per_split`.
    """
    return {
        "random_seed": args.seed,
        "sequence_length": args.seq_length,
        "blend": blend,
        "blend_per_split": blend_per_split,
        "multiple_validation_sets": args.multiple_validation_sets,
        "full_validation": args.full_validation,
        "split": args.split,
        "num_dataset_builder_threads": args.num_dataset_builder_threads,
        "path_to_cache": args.data_cache_path,
        "mmap_bin_files": args.mmap_bin_files,
        "tokenizer": tokenizer,
        "mid_level_dataset_surplus": args.mid_level_dataset_surplus,
        "allow_ambiguous_pad_tokens": args.allow_ambiguous_pad_tokens,
        "fast_cache_load": args.dataloader_fast_cache_load,
        "defer_npy_index_mmap": args.dataloader_defer_npy_index_mmap,
        "reset_position_ids": args.reset_position_ids,
        "reset_attention_mask": args.reset_attention_mask,
        "eod_mask_loss": args.eod_mask_loss,
        "create_attention_mask": args.create_attention_mask_in_dataloader,
        "object_storage_cache_path": args.object_storage_cache_path,
        "data_parallel_size": args.data_parallel_size,
        "sequence_parallel_size": args.tensor_model_parallel_size * args.sequence_parallel,
        "context_parallel_size": args.context_parallel_size,
        "sequences_per_dataset": sequences_per_dataset(args.per_dataset_sequences_path),
    }


def sequences_per_dataset(path: str | None) -> dict[str, Any] | None:
    """Number of sequences and documents of each dataset, by path without suffix, so that Megatron need not count them.

    Raises:
        UserError: the file is missing, or is not JSON.
    """
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            found: dict[str, Any] = json.load(stream)
    except (OSError, ValueError) as error:
        raise UserError(
            f"per-dataset-sequences-path {path} cannot be read ({error}): correct it, or --set "
            "per-dataset-sequences-path=null"
        ) from None
    return found


def validation_samples(args: Any) -> int:
    """Sequences that the validations of this start read, after those that earlier starts have read.

    Megatron counts as if every start had validated at today's `eval-interval`. After a phase or a start with another
    one, its own number is too small and the last validation runs out of data.
    """
    if not args.eval_interval or not args.eval_iters:
        return 0
    coming = (args.train_iters - args.iteration) // args.eval_interval + 2  # and the one at the end
    return int(args.consumed_valid_samples + coming * args.eval_iters * args.global_batch_size)
