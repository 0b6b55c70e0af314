"""Run `megatron.training.pretrain()` without this project's launcher: the baseline for the launcher's overhead.

    torchrun --nproc-per-node 2 benchmarks/bare_megatron.py <Megatron's flags>

It neither checks the data nor watches the loss. `--mock-data` trains on made-up tokens. Only the patches that Megatron
needs to start are applied: the wheel's dataset helpers, and on a machine without a GPU the patch of `torch.cuda`.
"""

from __future__ import annotations

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

KEYS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def forward_step(iterator: Any, model: Any) -> tuple[Any, Any]:
    from megatron.core.utils import get_attr_wrapped_model
    from megatron.training.utils import is_first_or_last_pipeline_stage

    batch: dict[str, Any] = dict.fromkeys(KEYS)
    if is_first_or_last_pipeline_stage(get_attr_wrapped_model(model, "vp_stage")):
        sample = next(iterator)
        batch.update({key: sample[key].cuda(non_blocking=True) for key in KEYS if key in sample})
    mask = batch["loss_mask"]
    output = model(
        batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"], loss_mask=mask
    )
    return output, partial(loss_of, mask)


def loss_of(mask: Any, per_token: Any) -> tuple[Any, Any, dict[str, Any]]:
    mask = mask.view(-1).float()
    loss, tokens = torch.sum(per_token.view(-1).float() * mask), mask.sum().detach().to(torch.int)
    return loss, tokens, {"lm loss": torch.cat([loss.detach().view(1), tokens.view(1)])}


def datasets(samples: list[int], vp_stage: int | None = None) -> Any:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training import get_args
    from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

    args = get_args()
    blend, per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=per_split,
        split=args.split,
        path_to_cache=args.data_cache_path,
        tokenizer=build_tokenizer(args),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=args.create_attention_mask_in_dataloader,
    )
    kind = MockGPTDataset if args.mock_data else GPTDataset
    here = partial(is_first_or_last_pipeline_stage, vp_stage)
    return BlendedMegatronDatasetBuilder(kind, samples, here, config).build()


datasets.is_distributed = True  # type: ignore[attr-defined]


def prepare() -> None:
    """Apply the patches that Megatron needs to start here."""
    from artifacts.megatron_wheel import use_compiled_helpers

    if ON_CPU:
        megatron_on_cpu.patch_megatron()
    use_compiled_helpers()


def main() -> None:
    prepare()
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    args = parse_and_validate_args()
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(config, datasets, ModelType.encoder_or_decoder, forward_step)


if __name__ == "__main__":
    main()
