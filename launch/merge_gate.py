"""Is a merged model the adapter's? Its logits are compared with those of model and adapter, on a few conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# The merged float32 weights, compared with the adapter's in float64 arithmetic: in float32 the order of the sums alone
# moves a logit of 9 by 1.2e-5 (in float64 the same pair differs by 3.7e-6). Both are recorded, the first one decides.
MERGE_PRECISIONS = ("float64", "float32")
MERGE_TOLERANCE = 1e-4  # of a logit, as for conversion; a model merged without its adapter was 8.3 away
# Prompts of the merge check: different lengths, Chinese and ASCII, one turn and two.
CHECK_CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("你好",),
    ("请写出下一句：床前明月光",),
    ("Who wrote this? 白日依山尽，黄河入海流。", "王之涣", "再写一首五言绝句。"),
)


def check_inputs(model: Path) -> list[Any]:
    """Token ids of the check conversations, each of shape [1, tokens]."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    inputs = []
    for turns in CHECK_CONVERSATIONS:
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        inputs.append(torch.tensor([ids]))
    return inputs


def adapter_logits(model: Path, adapter: Path) -> tuple[dict[str, list[Any]], float]:
    """Logits of model and adapter for the check conversations, by precision, and how far the adapter moves any logit.

    Shapes: a list of [1, tokens, vocabulary] under each of MERGE_PRECISIONS.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    inputs = check_inputs(model)
    logits: dict[str, list[Any]] = {}
    moved = 0.0
    with torch.no_grad():
        for precision in MERGE_PRECISIONS:
            dtype = getattr(torch, precision)
            base = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype).eval()
            before = [base(input_ids=ids).logits for ids in inputs]
            adapted = PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False).to(dtype).eval()
            logits[precision] = [adapted(input_ids=ids).logits for ids in inputs]
            moved = largest_difference(before, logits[precision])
    return logits, moved


def merged_logits(origin: Path, merged: Path) -> dict[str, list[Any]]:
    """Logits of the merged model for the check conversations, by precision."""
    import torch
    from transformers import AutoModelForCausalLM

    inputs = check_inputs(origin)
    logits = {}
    with torch.no_grad():
        for precision in MERGE_PRECISIONS:
            model = AutoModelForCausalLM.from_pretrained(str(merged), dtype=getattr(torch, precision)).eval()
            logits[precision] = [model(input_ids=ids).logits for ids in inputs]
    return logits


def largest_difference(one: list[Any], other: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
