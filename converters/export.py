"""A Megatron checkpoint to a Hugging Face folder, handed on only when it is proved equal.

    myllm export --checkpoint runs/poetry-tiny/checkpoints --tokenizer runs/poetry-tiny/tokenizer \\
        --output runs/poetry-tiny/models/base

Any `torch_dist` checkpoint of a Qwen2 or Llama 2 model: any tensor, pipeline or data parallel layout, local or
Transformer Engine layers. The gate, in this order: strict key sets and shapes; exact round trip (converting each weight
back differs by 0); fp32 logits of Megatron's own forward against Hugging Face's on fixed prompts (max difference <=
1e-4, argmax agreement 100 %). `parity.json` beside the weights holds the figures; a gate that fails leaves it as
`<output>.parity-failed.json`, exits non-zero and makes no output folder. `--dtype bfloat16` is gated in fp32 first.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import atomic_folder, read_json, write_json
from artifacts.stage import report_metrics, track
from converters import architectures, checkpoint, families, parity, plan, safetensors_files, vocabulary
from converters.rules import VOCABULARY_ROWS, Shape

REQUIRED = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER_FILES = (*REQUIRED, "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
                   "tokenizer.model", "chat_template.jinja")  # fmt: skip
EVIDENCE = "parity.json"


def tokenizer_ids(folder: Path) -> dict[str, Any]:
    """`size`, `end` and `begin` (or None) of a tokenizer folder; raises UserError when it is not whole."""
    from tokenizers import Tokenizer

    missing = [name for name in REQUIRED if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: make it with `myllm tokenizer`")
    configuration = read_json(folder / "tokenizer_config.json")
    try:
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{folder / 'tokenizer.json'} is no tokenizer ({error}): make it again") from None

    def special(key: str) -> int | None:
        token = configuration.get(key)
        return ids.get(token["content"] if isinstance(token, dict) else token)

    end = special("eos_token")
    if end is None:
        raise UserError(f"{folder / 'tokenizer_config.json'} names no eos_token that the tokenizer has")
    return {"size": max(ids.values()) + 1, "end": end, "begin": special("bos_token")}


def write_weights(source: checkpoint.Checkpoint, adapter: Any, shape: Shape, folder: Path) -> int:
    """Convert every weight, proving that each comes back bit for bit; returns the number of parameters.

    One weight is in memory at a time. Raises UserError when a weight does not come back.
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
                    raise UserError(f"converting {piece.megatron} there and back changes it: the adapter is wrong")
            for name, part in zip(piece.hugging_face, parts, strict=True):
                writer.write(name, part)
                count += part.numel()
    return count


def write_description(folder: Path, adapter: Any, shape: Shape, ids: dict[str, Any], dtype: str) -> None:
    """`config.json` and `generation_config.json` as transformers 4.57, 5.x, vLLM and LMDeploy read them."""
    tokens = {"bos_token_id": ids["begin"], "eos_token_id": ids["end"], "pad_token_id": ids["end"]}
    described = {"architectures": [adapter.ARCHITECTURE], "model_type": adapter.MODEL_TYPE, "torch_dtype": dtype}
    write_json(folder / "config.json", {**described, **adapter.config(shape), **tokens})
    generation = {"eos_token_id": [ids["end"]], "pad_token_id": ids["end"], "do_sample": False}
    write_json(folder / "generation_config.json", generation)


def cast(folder: Path, adapter: Any, shape: Shape, dtype: str) -> None:
    """Rewrite the folder's weights in another type, a tensor at a time."""
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
    """Raise UserError when the output folder holds something that this program did not make."""
    if output.exists() and any(output.iterdir()) and not (output / EVIDENCE).exists():
        raise UserError(f"{output} is not empty, and no conversion made it: give another --output, or empty it")


def export(
    checkpoint_folder: Path,
    tokenizer: Path,
    output: Path,
    dtype: str | None = None,
    architecture: str | None = None,
    vocab_size: int | None = None,
) -> dict[str, Any]:
    """Convert, prove, and put the folder in place; returns the parity figures. Raises UserError when a gate fails.

    Args:
        dtype: torch's name of the type to write; None keeps the checkpoint's.
        architecture: a module of `converters.architectures`; None chooses by the run's flags.
        vocab_size: rows to keep, for a model with more rows than its tokenizer has tokens.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="folder that Megatron saved to, or one iter_NNNNNNN"
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer it was trained with")
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face folder to make")
    parser.add_argument("--dtype", choices=safetensors_files.NAMES, help="type to write (default: the checkpoint's)")
    parser.add_argument("--architecture", choices=architectures.names(), help="default: by the run's flags")
    parser.add_argument("--vocab-size", type=int, help="rows to keep, where a model has more rows than tokens")
    given = parser.parse_args()
    made = export(given.checkpoint, given.tokenizer, given.output, given.dtype, given.architecture, given.vocab_size)
    report_metrics(**made)


if __name__ == "__main__":
    run_main(main)
