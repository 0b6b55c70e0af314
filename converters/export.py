"""A Megatron checkpoint to a Hugging Face folder, handed on only when it is proved equal.

    python -m converters.export --checkpoint runs/poetry-tiny/checkpoints --tokenizer runs/poetry-tiny/tokenizer \\
        --output runs/poetry-tiny/models/base

The gate, in this order: strict key sets and shapes; exact round trip (converting back differs by 0); fp32 logits of
Megatron's own forward against Hugging Face's on fixed prompts (max difference <= 1e-4, argmax agreement 100 %).
`parity.json` beside the weights holds the figures; a gate that fails leaves it as `<output>.parity-failed.json`,
exits non-zero and makes no output folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import atomic_folder, read_json, write_json
from artifacts.layout import REPOSITORY
from artifacts.stage import report_metrics
from converters import checkpoint, qwen2

MAX_DIFFERENCE = 1e-4  # of fp32 logits

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja")

PROMPTS = (
    "床前明月光，疑是地上霜。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "白日依山尽，",
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x ** 2\n",
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
    "　 \t𠮷🙂",
    "一",
)


def check_keys(weights: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError when the checkpoint lacks a weight, holds one too many, or one of another shape."""
    missing, extra = sorted(set(shapes) - set(weights)), sorted(set(weights) - set(shapes))
    if missing or extra:
        raise UserError(
            f"the checkpoint does not fit its own arguments: missing {missing or 'none'}, extra {extra or 'none'}"
        )
    for key, shape in shapes.items():
        if tuple(weights[key].shape) != shape:
            raise UserError(f"the checkpoint's {key} is {tuple(weights[key].shape)}, its arguments say {shape}")


def tokenizer_ids(folder: Path) -> dict[str, int]:
    """Size and special ids of a tokenizer folder; raises UserError when it is not whole."""
    missing = [name for name in TOKENIZER_FILES if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: make it with `python -m preprocess.tokenizer`")
    tokens = read_json(folder / "tokenizer_config.json")["added_tokens_decoder"]
    by_name = {token["content"]: int(identity) for identity, token in tokens.items()}
    vocabulary = read_json(folder / "vocab.json")
    end = read_json(folder / "tokenizer_config.json")["eos_token"]
    return {"size": max(*vocabulary.values(), *by_name.values()) + 1, "end": by_name[end]}


def check_round_trip(weights: dict[str, Any], converted: dict[str, Any], shape: qwen2.Shape) -> None:
    """Raise UserError unless converting back gives every weight bit for bit (padded rows aside)."""
    import torch

    for key, tensor in qwen2.to_megatron(converted, shape).items():
        expected = weights[key][: shape.vocab] if key in (qwen2.EMBEDDING, qwen2.OUTPUT) else weights[key]
        if not torch.equal(tensor, expected):
            raise UserError(f"converting {key} to Hugging Face and back changes it: the adapter is wrong")


def write_folder(folder: Path, weights: dict[str, Any], shape: qwen2.Shape, tokenizer: Path, end: int) -> None:
    """Write weights, configuration and tokenizer as transformers 4.57, 5.x and vLLM read them."""
    from safetensors.torch import save_file

    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", qwen2.config(shape, end, dtype))
    write_json(folder / "generation_config.json", {"eos_token_id": [end], "pad_token_id": end, "do_sample": False})
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((tokenizer / name).read_bytes())


def prompt_ids(tokenizer: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return [loaded.encode(prompt).ids for prompt in PROMPTS]


def hugging_face_logits(folder: Path, prompts: list[list[int]]) -> list[Any]:
    """fp32 logits `[tokens, vocabulary]` of each prompt; raises UserError on a missing or unexpected weight."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise UserError(f"transformers does not load {folder} as it is: {wrong[:3]}")
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0] for ids in prompts]


def megatron_logits(iteration: Path, prompts: list[list[int]], work: Path) -> list[Any]:
    """The same from Megatron's own forward, in a process of its own (it patches torch on a CPU)."""
    import torch

    requests, answers = work / "prompts.json", work / "logits.pt"
    requests.write_text(json.dumps(prompts))
    command = [sys.executable, "-m", "converters.megatron_forward", str(iteration), str(requests), str(answers)]
    print("$ " + " ".join(command), flush=True)
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if result.returncode != 0:
        print(result.stdout + result.stderr, flush=True)
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"Megatron's own forward of {iteration} failed: {last}")
    logits = torch.load(answers)
    for path in (requests, answers):
        path.unlink()
    return logits


def compare(expected: list[Any], found: list[Any]) -> dict[str, Any]:
    """Max absolute difference, share of equal argmax in percent, mean KL divergence in nats, over all positions."""
    import torch
    import torch.nn.functional as F

    difference, agree, positions, divergence = 0.0, 0, 0, 0.0
    for a, b in zip(expected, found, strict=True):
        difference = max(difference, (a - b).abs().max().item())
        agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        divergence += F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="sum").item()
        positions += len(a)
    if not torch.isfinite(torch.tensor(difference)):
        raise UserError("the logits are not finite: the model diverged, look at the loss curve")
    return {
        "max_abs_diff": difference,
        "argmax_agreement": 100.0 * agree / positions,
        "kl": divergence / positions,
        "prompts": len(expected),
        "positions": positions,
        "threshold": MAX_DIFFERENCE,
    }


def export(checkpoint_folder: Path, tokenizer: Path, output: Path) -> dict[str, Any]:
    """Convert, prove, and put the folder in place; returns the parity figures. Raises UserError when a gate fails."""
    iteration = checkpoint.latest_iteration(checkpoint_folder)
    arguments = checkpoint.arguments(iteration)
    ids = tokenizer_ids(tokenizer)
    if ids["size"] > arguments.padded_vocab_size:
        raise UserError(
            f"{tokenizer} has {ids['size']} tokens, the checkpoint's embedding {arguments.padded_vocab_size} rows: "
            "it belongs to another model"
        )
    shape = qwen2.shape_of(arguments, ids["size"])
    weights = checkpoint.weights(iteration)
    check_keys(weights, qwen2.megatron_shapes(shape, arguments.padded_vocab_size))
    converted = qwen2.to_hugging_face(weights, shape)
    check_round_trip(weights, converted, shape)
    failed = output.with_name(output.name + ".parity-failed.json")
    failed.unlink(missing_ok=True)
    with atomic_folder(output) as folder:
        write_folder(folder, converted, shape, tokenizer, ids["end"])
        prompts = prompt_ids(tokenizer)
        theirs = [logits[:, : shape.vocab] for logits in megatron_logits(iteration, prompts, folder)]
        parity = compare(theirs, hugging_face_logits(folder, prompts))
        parity.update(checkpoint=iteration.name, passed=parity["max_abs_diff"] <= MAX_DIFFERENCE)
        parity["passed"] = parity["passed"] and parity["argmax_agreement"] == 100.0
        write_json(folder / "parity.json" if parity["passed"] else failed, parity)
        if not parity["passed"]:
            raise UserError(
                f"the converted model differs from Megatron's: max difference {parity['max_abs_diff']:.2e}, argmax "
                f"agreement {parity['argmax_agreement']:.2f} %; see {failed}"
            )
        parameters = sum(tensor.numel() for tensor in converted.values())
        (folder / "README.md").write_text(
            f"---\nlibrary_name: transformers\nlanguage: zh\n---\n\n# {output.parent.parent.name}: {output.name}\n\n"
            f"{qwen2.ARCHITECTURE}, {parameters:,} parameters, from Megatron checkpoint {iteration.name}. Converted "
            f"logits differ from Megatron's by at most {parity['max_abs_diff']:.1e} (`parity.json`).\n"
        )
    return {**parity, "parameters": parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="folder that Megatron saved to, or one iter_NNNNNNN"
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer it was trained with")
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face folder to make")
    arguments = parser.parse_args()
    report_metrics(**export(arguments.checkpoint, arguments.tokenizer, arguments.output))


if __name__ == "__main__":
    run_main(main)
