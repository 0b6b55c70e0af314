"""Convert a Megatron checkpoint to a Hugging Face folder and check that both give the same logits.

    myllm export --checkpoint runs/poetry-tiny/checkpoints --tokenizer runs/poetry-tiny/tokenizer \\
        --output runs/poetry-tiny/models/base

Takes any `torch_dist` checkpoint of a Qwen2 or Llama 2 model: any tensor, pipeline or data parallel layout, local or
Transformer Engine layers. Three checks run in this order: names and shapes match exactly; every weight converts back
bit for bit; on fixed prompts the fp32 logits of Megatron's forward and of Hugging Face's differ by at most 1e-4 and
have the same argmax everywhere. The figures are in `parity.json` in the output folder. If a check fails, no output
folder is made and the exit code is non-zero; the logits' figures go to `<output>.parity-failed.json`. With
`--dtype bfloat16` the checks run in fp32, before the cast.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import atomic_folder, read_json, write_json
from artifacts.stage import report_gate, report_metrics, track
from converters import architectures, checkpoint, families, parity, plan, safetensors_files, vocabulary
from converters.rules import VOCABULARY_ROWS, Shape

REQUIRED = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_FILES = (*REQUIRED, "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
                   "tokenizer.model", "chat_template.jinja")  # fmt: skip
EVIDENCE = "parity.json"


def tokenizer_ids(folder: Path) -> dict[str, Any]:
    """Read `size` and the ids `end` and `begin` (or None) of a tokenizer. Raises UserError if a file is unusable."""
    from tokenizers import Tokenizer

    missing = [name for name in REQUIRED if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} has no {', '.join(missing)}: make the tokenizer with `myllm tokenizer`")
    configuration = read_json(folder / "tokenizer_config.json")
    try:
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"{folder / 'tokenizer.json'} is not a tokenizer ({error}): make it again with `myllm tokenizer`"
        ) from None

    def special(key: str) -> int | None:
        token = configuration.get(key)
        return ids.get(token["content"] if isinstance(token, dict) else token)

    end = special("eos_token")
    if end is None:
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: eos_token is missing, or is not in the vocabulary. "
            "Set it to a token of tokenizer.json"
        )
    return {"size": max(ids.values()) + 1, "end": end, "begin": special("bos_token")}


def write_weights(source: checkpoint.Checkpoint, adapter: Any, shape: Shape, folder: Path) -> int:
    """Convert every weight and check that it converts back bit for bit. Returns the number of parameters.

    One weight is in memory at a time. Raises UserError if a weight does not convert back.
    """
    import torch

    entries = plan.hugging_face_entries(adapter, shape)
    todo = list(plan.pieces(adapter, shape))
    count = 0
    with safetensors_files.Writer(folder, entries, source.dtype) as writer:
        for piece in track(todo, len(todo), "weights"):
            if piece.megatron is None:
                sizes = piece.rule.hugging_face_shapes(shape)
                parts = [torch.zeros(size, dtype=getattr(torch, source.dtype)) for size in sizes]
            else:
                tensor = source.read(piece.megatron, piece.layer)
                if piece.megatron in VOCABULARY_ROWS:
                    tensor = tensor[: shape.vocab]
                parts = piece.rule.split(tensor, shape)
                back = piece.rule.join(parts, shape)
                if back is not tensor and not torch.equal(back, tensor):
                    raise UserError(
                        f"{piece.megatron} does not convert back to the same values: "
                        f"this is a bug in {adapter.__name__}"
                    )
            for name, part in zip(piece.hugging_face, parts, strict=True):
                writer.write(name, part)
                count += part.numel()
    return count


def write_description(folder: Path, adapter: Any, shape: Shape, ids: dict[str, Any], dtype: str) -> None:
    """Write `config.json` and `generation_config.json` for transformers 4.57 and 5.x, vLLM and LMDeploy."""
    tokens = {"bos_token_id": ids["begin"], "eos_token_id": ids["end"], "pad_token_id": ids["end"]}
    described = {"architectures": [adapter.ARCHITECTURE], "model_type": adapter.MODEL_TYPE, "torch_dtype": dtype}
    write_json(folder / "config.json", {**described, **adapter.config(shape), **tokens})
    generation = {"eos_token_id": [ids["end"]], "pad_token_id": ids["end"], "do_sample": False}
    write_json(folder / "generation_config.json", generation)


def cast(folder: Path, adapter: Any, shape: Shape, dtype: str) -> None:
    """Rewrite the folder's weights in another dtype, one tensor at a time."""
    stored = safetensors_files.contents(folder)
    aside = folder / "cast"
    aside.mkdir()
    with safetensors_files.Writer(aside, plan.hugging_face_entries(adapter, shape), dtype) as writer:
        for name, tensor in track(stored.items(), len(stored), f"weights to {dtype}"):
            writer.write(name, safetensors_files.read(tensor))
    for old in {tensor.path for tensor in stored.values()} | {folder / safetensors_files.INDEX}:
        old.unlink(missing_ok=True)
    for new in aside.iterdir():
        new.rename(folder / new.name)
    aside.rmdir()


def check_output(output: Path) -> None:
    """Raise UserError if the output folder has files that no conversion made."""
    if output.is_file():
        raise UserError(f"{output} is a file: give the folder to make with --output")
    if output.exists() and any(output.iterdir()) and not (output / EVIDENCE).exists():
        raise UserError(f"{output} has files that no conversion made: give another --output, or delete them")


def export(
    checkpoint_folder: Path,
    tokenizer: Path,
    output: Path,
    dtype: str | None = None,
    architecture: str | None = None,
    vocab_size: int | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint, check the result and write `output`. Returns the figures of `parity.compare`.

    Args:
        dtype: torch's name of the dtype to write; None keeps the checkpoint's.
        architecture: a module of `converters.architectures`; None chooses by the run's flags.
        vocab_size: embedding rows to keep, for a model with more rows than its tokenizer has tokens.

    Raises:
        UserError: an input is unusable, or a check fails; no output folder is made.
    """
    check_output(output)
    iteration = checkpoint.latest_iteration(checkpoint_folder)
    arguments = checkpoint.arguments(iteration)
    if vocab_size is not None:
        arguments.vocab_size = vocab_size
    ids = tokenizer_ids(tokenizer)
    sizes = vocabulary.of_checkpoint(arguments, ids["size"])
    adapter = architectures.adapter_of_arguments(arguments, architecture)
    shape = families.shape_of_arguments(arguments, sizes.hugging_face, adapter.FLAGS)
    source = checkpoint.Checkpoint(iteration)
    plan.check_keys(source.shapes, plan.megatron_shapes(adapter, shape, sizes.padded), str(iteration))
    failed = output.with_name(output.name + ".parity-failed.json")
    failed.unlink(missing_ok=True)
    with atomic_folder(output) as folder:
        parameters = write_weights(source, adapter, shape, folder)
        write_description(folder, adapter, shape, ids, source.dtype)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, folder / name)
        prompts = parity.prompt_ids(tokenizer, ids["size"], shape.positions)
        figures = parity.compare(
            parity.megatron_logits(iteration, prompts), parity.hugging_face_logits(folder, prompts)
        )
        figures.update(checkpoint=iteration.name, architecture=adapter.ARCHITECTURE, gated_in="float32")
        write_json(folder / EVIDENCE if figures["passed"] else failed, figures)
        if not figures["passed"]:
            raise parity.refusal(figures, failed)
        if dtype not in (None, source.dtype):
            assert dtype is not None
            cast(folder, adapter, shape, dtype)
            write_description(folder, adapter, shape, ids, dtype)
        (folder / "README.md").write_text(
            f"---\nlibrary_name: transformers\nlanguage: zh\n---\n\n# {output.parent.parent.name}: {output.name}\n\n"
            f"{adapter.ARCHITECTURE}, {parameters:,} parameters, {dtype or source.dtype}, {shape.layers} layers, "
            f"hidden size {shape.hidden}, vocabulary {shape.vocab}, from Megatron checkpoint {iteration.name}. In fp32 "
            f"its logits differ from Megatron's by at most {figures['max_abs_diff']:.1e} (`{EVIDENCE}`).\n"
        )
    return {**figures, "parameters": parameters}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="Megatron's checkpoint folder, or one iter_NNNNNNN in it"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="tokenizer folder that the model was trained with"
    )
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face folder to make")
    parser.add_argument("--dtype", choices=safetensors_files.NAMES, help="dtype to write (default: the checkpoint's)")
    parser.add_argument("--architecture", choices=architectures.names(), help="default: chosen by the run's flags")
    parser.add_argument("--vocab-size", type=int, help="embedding rows to keep, for a model with more rows than tokens")


def look_ahead(given: argparse.Namespace, ahead: Ahead) -> None:
    ahead.wants(given.checkpoint, "pretrain it in an earlier stage, or correct the path")
    ahead.wants(given.tokenizer)
    facts = ahead.facts(given.checkpoint)
    size = facts.get("parameters", 0) * (2 if facts.get("bf16") else 4)
    ahead.needs(disk=float(size))
    ahead.makes(given.output, **facts)


def run(given: argparse.Namespace) -> None:
    made = export(given.checkpoint, given.tokenizer, given.output, given.dtype, given.architecture, given.vocab_size)
    report_gate("converted logits", f"differ from Megatron's by at most {made['max_abs_diff']:.1e}")
    report_metrics(**made)


if __name__ == "__main__":
    main(__name__)
