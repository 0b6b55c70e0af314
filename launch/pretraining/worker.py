"""One rank of a pretraining run: stock `megatron.training.pretrain()` on GPT datasets, started by torchrun.

`launch.pretraining.pretrain` turns a recipe into torchrun's command line; every argument here is Megatron's own.
Without a GPU, the patches of `artifacts.megatron_on_cpu` are applied first. Megatron's checkpoint writer starts
processes that import this file again: keep the `__main__` guard, and apply the patch on import.

The data is checked before the first step (`launch.pretraining.data_check`), the loss in every step
(`launch.pretraining.loss_watch`). The launcher passes its own settings in the environment: MYLLM_STOP_AT_SPIKE,
MYLLM_FUSED_ADAM, MYLLM_SWANLAB_PROJECT.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

ON_CPU = not torch.cuda.is_available()
if ON_CPU:
    from artifacts import megatron_on_cpu

    megatron_on_cpu.patch_torch()

from artifacts.errors import UserError, run_main  # noqa: E402
from artifacts.megatron_adam import fused_adam, resume_with_plain_adam  # noqa: E402
from artifacts.megatron_wheel import start_writers_without_signals, use_compiled_helpers  # noqa: E402
from artifacts.processes import die_with_parent  # noqa: E402
from launch.pretraining.dataset import dataset_fields, validation_samples  # noqa: E402
from launch.pretraining.loss_watch import LossWatch, Numbered, documents_of  # noqa: E402

WAIT_FOR_CULPRIT = 3.0  # seconds
BATCH_KEYS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def forward_step(iterator: Any, model: Any) -> tuple[Any, Any]:
    """Run one micro-batch through this pipeline stage; returns its output and the function that computes the loss."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_attr_wrapped_model
    from megatron.training.utils import is_first_or_last_pipeline_stage

    batch: dict[str, Any] = dict.fromkeys(BATCH_KEYS)
    numbers: Any = None
    if is_first_or_last_pipeline_stage(get_attr_wrapped_model(model, "vp_stage")):
        # every tensor-parallel rank reads the same memory-mapped dataset, so no broadcast is needed
        sample = next(iterator)
        batch.update({key: sample[key].cuda(non_blocking=True) for key in BATCH_KEYS if key in sample})
        numbers = sample["sample"]
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
    )
    assert parallel_state.get_context_parallel_world_size() == 1, (
        "launch.pretraining.served_flags refuses context parallel"
    )
    return output, partial(loss_of, batch["loss_mask"], numbers)


def loss_of(loss_mask: Any, numbers: Any, per_token: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Summed loss, number of unmasked tokens, and both together for Megatron's logger to average."""
    mask = loss_mask.view(-1).float()
    loss = torch.sum(per_token.view(-1).float() * mask)
    tokens = mask.sum().detach().to(torch.int)
    if torch.is_grad_enabled():
        check_loss(loss, tokens, numbers)
    return loss, tokens, {"lm loss": torch.cat([loss.detach().view(1), tokens.view(1)])}


_watch: LossWatch | None = None
_step: list[tuple[Any, Any, Any]] = []  # summed loss, tokens and sample numbers of the step's micro batches so far


def check_loss(loss: Any, tokens: Any, numbers: Any) -> None:
    """Check a step's loss after its last micro batch. Raises UserError if the run must stop.

    A step costs one sum and one maximum over the data-parallel ranks and one transfer to the CPU, however many micro
    batches it has.
    """
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.training import get_args

    global _watch
    args = get_args()
    _step.append((loss.detach().clone(), tokens.clone(), numbers))  # Megatron scales both in place
    if len(_step) < get_num_microbatches():
        return
    sums = torch.stack([torch.stack([loss, tokens.float()]) for loss, tokens, _ in _step]).sum(0)
    samples = [int(number) for _, _, numbers in _step for number in numbers]
    _step.clear()
    own = torch.nan_to_num(sums[0] / sums[1].clamp(min=1), nan=math.inf)
    group, highest = parallel_state.get_data_parallel_group(), own.clone()
    if parallel_state.get_data_parallel_world_size() > 1:
        torch.distributed.all_reduce(sums, group=group)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX, group=group)
    total, count, mine, worst = torch.stack([*sums, own, highest]).tolist()
    if _watch is None:
        spike = os.environ.get("MYLLM_STOP_AT_SPIKE")
        imported = bool(args.pretrained_checkpoint or args.finetune)
        size = args.vocab_size or args.padded_vocab_size
        _watch = LossWatch(float(spike) if spike else None, size, imported, lambda found: documents_of(_train, found))
    try:
        _watch.look(total / max(count, 1), args.curr_iteration + 1, samples)
    except UserError:
        if mine < worst:
            time.sleep(WAIT_FOR_CULPRIT)  # let the rank with the bad batch report first
        raise


_train: Any = None  # Megatron's training dataset, to look up documents


def datasets(samples: list[int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """Build the train, valid and test `GPTDataset`s of the blend; rank 0 checks the training data.

    Args:
        samples: number of sequences that each of the three must provide.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training import get_args
    from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

    global _train
    args = get_args()
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, {signal.SIGTERM}
    )  # Megatron's handler is in place (launch.pretraining.pretrain)
    tokenizer = build_tokenizer(args)
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(**dataset_fields(args, tokenizer, blend, blend_per_split))
    on_this_rank = partial(is_first_or_last_pipeline_stage, vp_stage)
    enough = [samples[0], max(samples[1], validation_samples(args)), *samples[2:]]
    train, valid, test = BlendedMegatronDatasetBuilder(GPTDataset, enough, on_this_rank, config).build()
    if train is not None and _train is None:
        _train = train
        if args.dataloader_defer_npy_index_mmap:
            train[0]  # opens the indices, which the data check and `documents_of` read
        if torch.distributed.get_rank() == 0:
            from launch.pretraining.data_check import look

            wanted = blend_per_split[0] if blend_per_split else blend
            look(train, tokenizer, args.vocab_size or tokenizer.vocab_size, wanted[1] if wanted else None)
    return tuple(dataset and Numbered(dataset) for dataset in (train, valid, test))  # type: ignore[return-value]


datasets.is_distributed = True  # type: ignore[attr-defined]  # Megatron then calls it on every rank


def model_config(args: Any) -> Any:
    """Megatron's description of the model, with --rope-scaling-factor: megatron-core 0.19.2 reads that flag and then
    trains with 8, whatever it says (`gpt_config_from_args`)."""
    from megatron.training.argument_utils import gpt_config_from_args

    config = gpt_config_from_args(args)
    config.rope_scaling_factor = args.rope_scaling_factor
    return config


def main() -> None:
    die_with_parent()  # torchrun starts each rank in a new session, so a kill of the launcher's group would miss it
    if ON_CPU:
        megatron_on_cpu.patch_megatron()
    resume_with_plain_adam()
    use_compiled_helpers()
    start_writers_without_signals()
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    args = parse_and_validate_args()
    if project := os.environ.get("MYLLM_SWANLAB_PROJECT"):
        if args.rank == args.world_size - 1:  # the rank that writes to TensorBoard
            track_with_swanlab(project, args)
    config = pretrain_cfg_container_from_args(args, model_config(args))
    with fused_adam(bool(os.environ.get("MYLLM_FUSED_ADAM"))):
        pretrain(config, datasets, ModelType.encoder_or_decoder, forward_step)


def track_with_swanlab(project: str, args: Any) -> None:
    """Send what Megatron logs to TensorBoard to SwanLab too; SWANLAB_MODE=local or offline needs no account."""
    try:
        import swanlab
    except ImportError:
        raise UserError(
            "swanlab-project is set, but swanlab is not installed: run .venv/bin/pip install swanlab"
        ) from None
    name = Path(args.save).resolve().parent.name
    swanlab.init(
        project=project, experiment_name=name, logdir=str(Path(args.save).parent / "swanlab"), config=vars(args)
    )
    swanlab.sync_tensorboard_torch()


if __name__ == "__mp_main__":  # a checkpoint writer that a rank spawned: after a kill it would wait for ever
    die_with_parent()
if __name__ == "__main__":
    run_main(main)
