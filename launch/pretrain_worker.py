"""One rank of a pretraining run: stock `megatron.training.pretrain()` on GPT datasets. torchrun starts it.

`launch.pretrain` turns a recipe into torchrun's command line; every argument here is Megatron's own.
On a machine without a GPU, `artifacts.megatron_on_cpu` is installed first. The checkpoint writer of Megatron starts
processes that import this file again: keep the `__main__` guard, and install the patch on import.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

ON_CPU = not torch.cuda.is_available()
if ON_CPU:
    from artifacts import megatron_on_cpu

    megatron_on_cpu.patch_torch()

BATCH_KEYS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this rank when torchrun dies (prctl(2)): it runs in a session of its own, so a
    `kill -9` of the launcher's process group would leave it training, and writing checkpoints, alone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def forward_step(iterator: Any, model: Any) -> tuple[Any, Any]:
    """One micro-batch through this pipeline stage: its output, and how the last stage turns that into a loss."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_attr_wrapped_model
    from megatron.training.utils import is_first_or_last_pipeline_stage

    batch: dict[str, Any] = dict.fromkeys(BATCH_KEYS)
    if is_first_or_last_pipeline_stage(get_attr_wrapped_model(model, "vp_stage")):
        # every tensor-parallel rank reads the same memory-mapped dataset, so nothing has to be broadcast
        sample = next(iterator)
        batch.update({key: sample[key].cuda(non_blocking=True) for key in BATCH_KEYS if key in sample})
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
    )
    assert parallel_state.get_context_parallel_world_size() == 1, "context parallel needs Transformer Engine"
    return output, partial(loss_of, batch["loss_mask"])


def loss_of(loss_mask: Any, per_token: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Summed loss, number of tokens that count, and both together as Megatron's logger averages them."""
    mask = loss_mask.view(-1).float()
    loss = torch.sum(per_token.view(-1).float() * mask)
    tokens = mask.sum().detach().to(torch.int)
    return loss, tokens, {"lm loss": torch.cat([loss.detach().view(1), tokens.view(1)])}


def datasets(samples: list[int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """Train, valid and test `GPTDataset`s for the blend that the arguments name.

    Args:
        samples: how many sequences each of the three must serve.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training import get_args
    from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        tokenizer=build_tokenizer(args),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
    )
    on_this_rank = partial(is_first_or_last_pipeline_stage, vp_stage)
    train, valid, test = BlendedMegatronDatasetBuilder(GPTDataset, samples, on_this_rank, config).build()
    return train, valid, test


datasets.is_distributed = True  # type: ignore[attr-defined]  # Megatron: call it on every rank


def main() -> None:
    die_with_parent()
    if ON_CPU:
        megatron_on_cpu.patch_megatron()
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    args = parse_and_validate_args()
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(config, datasets, ModelType.encoder_or_decoder, forward_step)


if __name__ == "__main__":
    main()
