"""The parity check: compare the fp32 logits of Megatron's own forward and of Hugging Face's on fixed prompts.

The two forwards share only the prompts. Megatron reads its checkpoint with its own `dist_checkpointing`, in a separate
process (`converters.megatron_forward`); transformers reads the Hugging Face folder.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY

MAX_DIFFERENCE = 1e-4  # of fp32 logits

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
RANDOM_PROMPTS = 6  # of random token ids; a folder without a tokenizer is checked with these only
RANDOM_TOKENS = 24
LONG_TOKENS = 512  # of one more: a wrong rotary frequency hardly shows in short prompts


def prompt_ids(folder: Path, vocab: int, positions: int) -> list[list[int]]:
    """Token ids of PROMPTS by the folder's `tokenizer.json`, if there is one, and of the random prompts."""
    prompts: list[list[int]] = []
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
        prompts = [loaded.encode(prompt).ids for prompt in PROMPTS]
    draw = random.Random(0)
    lengths = [*[RANDOM_TOKENS] * RANDOM_PROMPTS, LONG_TOKENS]
    prompts += [[draw.randrange(vocab) for _ in range(length)] for length in lengths]
    return [ids[:positions] for ids in prompts]


def hugging_face_logits(folder: Path, prompts: list[list[int]]) -> list[Any]:
    """fp32 logits `[tokens, vocabulary]` of each prompt. Raises UserError for a missing or unexpected weight."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise UserError(f"{folder}: transformers finds missing, unexpected or misshapen weights: {wrong[:3]}")
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0] for ids in prompts]


def megatron_logits(iteration: Path, prompts: list[list[int]]) -> list[Any]:
    """fp32 logits `[tokens, padded vocabulary]` of each prompt from Megatron's own forward."""
    import torch

    with tempfile.TemporaryDirectory(prefix="parity-") as work:
        requests, answers = Path(work, "prompts.json"), Path(work, "logits.pt")
        requests.write_text(json.dumps(prompts))
        files = [str(iteration.resolve()), str(requests), str(answers)]
        command = [sys.executable, "-m", "converters.megatron_forward", *files]
        print("$ " + " ".join(command), flush=True)
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if result.returncode != 0:
            print(result.stdout + result.stderr, flush=True)
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"Megatron's forward of {iteration} failed: {last}. Its output is above")
        loaded: list[Any] = torch.load(answers)
        return loaded


def compare(megatron: list[Any], hugging_face: list[Any]) -> dict[str, Any]:
    """Compute the parity figures over all positions. Raises UserError if a logit is NaN or infinite.

    Megatron's logits may have extra columns for the padding. The difference and the divergence exclude them, the argmax
    includes them, and their total probability is reported.

    Returns:
        max_abs_diff, argmax_agreement (percent), kl (mean, nats), padding_probability (mean), prompts, positions,
        threshold, passed.
    """
    import torch
    import torch.nn.functional as F

    difference, agree, positions, divergence, padding = 0.0, 0, 0, 0.0, 0.0
    for theirs, ours in zip(megatron, hugging_face, strict=True):
        vocab = ours.shape[-1]
        cut = theirs[:, :vocab]
        difference = max(difference, (cut - ours).abs().max().item())
        agree += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        found, wanted = (logits.double().log_softmax(-1) for logits in (ours, cut))
        divergence += F.kl_div(found, wanted, log_target=True, reduction="sum").item()
        padding += theirs.softmax(-1)[:, vocab:].sum().item()
        positions += len(ours)
        if not torch.isfinite(theirs).all() or not torch.isfinite(ours).all():
            raise UserError("the logits are not finite, so the model diverged: look at the loss curve")
    agreement = 100.0 * agree / positions
    return {
        "max_abs_diff": difference,
        "argmax_agreement": agreement,
        "kl": divergence / positions,
        "padding_probability": padding / positions,
        "prompts": len(megatron),
        "positions": positions,
        "threshold": MAX_DIFFERENCE,
        "passed": difference <= MAX_DIFFERENCE and agreement == 100.0,
    }


def refusal(parity: dict[str, Any], evidence: Path) -> UserError:
    return UserError(
        f"the converted model differs from the original: max difference {parity['max_abs_diff']:.2e}, argmax agreement "
        f"{parity['argmax_agreement']:.2f} %. All figures: {evidence}"
    )
