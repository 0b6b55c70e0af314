"""Convert a Hugging Face folder to a Megatron checkpoint for continued pretraining, and check that the logits match.

    myllm import --model Qwen2-0.5B --output checkpoints/qwen2-0.5b

`myllm pretrain --set pretrained-checkpoint=checkpoints/qwen2-0.5b` (Megatron's `--load`) reads it in any parallel
layout: `torch_dist` checkpoints are resharded on load. It has weights only, so it is a `release` checkpoint: training
begins at step 0 with a new optimizer. The checks are those of `converters.export`. Padding rows of the vocabulary are
zeros.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import atomic_folder, read_json, write_json
from artifacts.stage import report_gate, report_metrics, track
from artifacts.vocabulary import padded_size
from converters import architectures, checkpoint, families, parity, plan, safetensors_files
from converters.export import EVIDENCE, check_output
from converters.rules import VOCABULARY_ROWS, Shape

DIVISIBLE_BY = 128  # Megatron's default of --make-vocab-size-divisible-by
CHECKPOINT_VERSION = 3.0
# Modules with an extra state in `torch_dist` (Transformer Engine's fp8 scales). Megatron's load requires the keys; the
# values are not needed. Names: `sharded_state_dict` of local and Transformer Engine layers, megatron-core 0.19.2.
EXTRA_STATES = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention",
                "mlp.linear_fc1", "mlp.linear_fc2")  # fmt: skip
EXTRA_STATES_OF_NORMS = ("self_attention.q_layernorm", "self_attention.k_layernorm")
EXTRA_STATES_MODEL = ("decoder.final_layernorm", "output_layer")


def check_weights(stored: dict[str, safetensors_files.Stored], adapter: Any, shape: Shape, folder: Path) -> str:
    """Return the weights' dtype. Raises UserError for missing or extra weights, wrong shapes or mixed dtypes."""
    import torch

    wanted = dict(plan.hugging_face_entries(adapter, shape))
    if shape.tied and "lm_head.weight" in stored:
        head, embedding = (safetensors_files.read(stored[n]) for n in ("lm_head.weight", "model.embed_tokens.weight"))
        if not torch.equal(head, embedding):
            raise UserError(
                f"{folder}: config.json ties the embeddings, but lm_head.weight and model.embed_tokens.weight differ: "
                "set tie_word_embeddings to false, or remove lm_head.weight if it is not used"
            )
        del stored["lm_head.weight"]
    plan.check_keys({name: tensor.shape for name, tensor in stored.items()}, wanted, str(folder))
    dtypes = sorted({tensor.dtype for tensor in stored.values()})
    if len(dtypes) > 1:
        raise UserError(f"{folder} mixes {' and '.join(dtypes)} weights: save the model in one dtype")
    return dtypes[0]


def write_weights(
    stored: dict[str, safetensors_files.Stored], adapter: Any, shape: Shape, padded: int, writer: checkpoint.Writer
) -> None:
    """Convert every weight and check that it converts back bit for bit. One weight is in memory at a time."""
    import torch

    todo = list(plan.pieces(adapter, shape))
    for piece in track(todo, len(todo), "weights"):
        parts = [safetensors_files.read(stored[name]) for name in piece.hugging_face]
        if piece.megatron is None:
            if any(part.any() for part in parts):
                raise UserError(
                    f"{piece.hugging_face[0]} is not zero, and Megatron's model has no such bias: "
                    "this model cannot be imported"
                )
            continue
        tensor = piece.rule.join(parts, shape)
        back = piece.rule.split(tensor, shape)
        if not all(a is b or torch.equal(a, b) for a, b in zip(back, parts, strict=True)):
            raise UserError(
                f"{piece.hugging_face[0]} does not convert back to the same values: this is a bug in {adapter.__name__}"
            )
        writer.write(piece.megatron, tensor, piece.layer)
        if piece.megatron in VOCABULARY_ROWS and padded > shape.vocab:
            rows = torch.zeros((padded - shape.vocab, *tensor.shape[1:]), dtype=tensor.dtype)
            writer.write(piece.megatron, rows, row=shape.vocab)


def import_folder(
    model: Path, output: Path, divisible_by: int = DIVISIBLE_BY, tensor_parallel: int = 1
) -> dict[str, Any]:
    """Convert a Hugging Face folder, check the result and write `output`. Returns the figures of `parity.compare`.

    Args:
        divisible_by: Megatron's --make-vocab-size-divisible-by of the run that will load the checkpoint.
        tensor_parallel: --tensor-model-parallel-size of that run; the padding depends on it too.

    Raises:
        UserError: an input is unusable, or a check fails; no output folder is made.
    """
    check_output(output)
    config = read_json(model / "config.json")
    adapter = architectures.adapter_of_config(config)
    shape = adapter.shape_of(config)
    stored = safetensors_files.contents(model)
    dtype = check_weights(stored, adapter, shape, model)
    padded = padded_size(shape.vocab, divisible_by, tensor_parallel)
    described = families.megatron_arguments(shape, padded, divisible_by, tensor_parallel)
    failed = output.with_name(output.name + ".parity-failed.json")
    failed.unlink(missing_ok=True)
    with atomic_folder(output) as folder:
        release = folder / checkpoint.RELEASE
        shapes = plan.megatron_shapes(adapter, shape, padded)
        with checkpoint.Writer(release, shapes, dtype) as writer:
            write_weights(stored, adapter, shape, padded, writer)
            for layer in range(shape.layers):
                for name in (*EXTRA_STATES, *(EXTRA_STATES_OF_NORMS if shape.qk_norm else ())):
                    key = f"{plan.LAYER_PREFIX}{name}._extra_state/shard_{layer}_{shape.layers}"
                    writer.write_object(key, None)
            for name in EXTRA_STATES_MODEL:
                writer.write_object(f"{name}._extra_state/shard_0_1", None)
            writer.write_object(
                checkpoint.COMMON,
                {
                    "args": argparse.Namespace(**described),
                    "checkpoint_version": CHECKPOINT_VERSION,
                    "iteration": 0,
                    "num_floating_point_operations_so_far": 0.0,
                    "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
                },
            )
        (folder / checkpoint.LATEST).write_text(checkpoint.RELEASE)
        prompts = parity.prompt_ids(model, shape.vocab, shape.positions)
        figures = parity.compare(parity.megatron_logits(release, prompts), parity.hugging_face_logits(model, prompts))
        figures.update(
            model=model.name, architecture=adapter.ARCHITECTURE, vocab_size=shape.vocab, padded_vocab_size=padded
        )
        write_json(folder / EVIDENCE if figures["passed"] else failed, figures)
        if not figures["passed"]:
            raise parity.refusal(figures, failed)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder: config.json and safetensors")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to make")
    parser.add_argument(
        "--divisible-by", type=int, default=DIVISIBLE_BY, help="--make-vocab-size-divisible-by of the run"
    )
    parser.add_argument("--tensor-parallel", type=int, default=1, help="tensor parallel size of the run")


def run(given: argparse.Namespace) -> None:
    made = import_folder(given.model, given.output, given.divisible_by, given.tensor_parallel)
    report_gate("imported logits", f"differ from Hugging Face's by at most {made['max_abs_diff']:.1e}")
    report_metrics(**made)


if __name__ == "__main__":
    main(__name__)
