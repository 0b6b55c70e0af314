"""Check a merged model: compare its logits with those of model and adapter on a few conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.posttraining.chat_model import value_head

# The merged float32 weights are compared with the adapter's in float64 arithmetic: in float32 the order of summation
# alone changes a logit of 9 by 1.2e-5 (in float64 the same pair differs by 3.7e-6). Both are recorded; float64 decides.
MERGE_PRECISIONS = ("float64", "float32")
MERGE_TOLERANCE = 1e-4  # largest difference of a logit, as for conversion; without the adapter it was 8.3
# Prompts of the check: different lengths, Chinese and ASCII, one and two turns.
CHECK_CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("你好",),
    ("请写出下一句：床前明月光",),
    ("Who wrote this? 白日依山尽，黄河入海流。", "王之涣", "再写一首五言绝句。"),
)


def check_inputs(model: Path, answered: bool = False) -> list[Any]:
    """Token ids of the check conversations, each [1, tokens]; with `answered`, they end with an answer."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    inputs = []
    for turns in CHECK_CONVERSATIONS:
        turns = (*turns, "白日依山尽，黄河入海流。") if answered else turns
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=not answered, return_dict=False)
        inputs.append(torch.tensor([ids]))
    return inputs


def adapter_logits(model: Path, adapter: Path) -> tuple[dict[str, list[Any]], float]:
    """Logits of model and adapter for the check conversations, and the adapter's largest change of a logit.

    Shapes: for each of MERGE_PRECISIONS, a list of [1, tokens, vocabulary].
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
    """Logits of the merged model for the check conversations, for each precision."""
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


def check_merge(expected: dict[str, list[Any]], found: dict[str, list[Any]], moved: float) -> dict[str, Any]:
    """The results of the check: difference of the merged logits from the adapter's, and the tolerance."""
    differences = {kind: largest_difference(expected[kind], found[kind]) for kind in MERGE_PRECISIONS}
    return {
        "max_abs_diff": differences[MERGE_PRECISIONS[0]],
        "max_abs_diff_float32": differences["float32"],
        "arithmetic": MERGE_PRECISIONS[0],
        "tolerance": MERGE_TOLERANCE,
        "max_abs_change": moved,  # largest change of a logit by the adapter; 0 would mean that it learned nothing
        "prompts": len(CHECK_CONVERSATIONS),
    }


def adapter_rewards(model: Path, adapter: Path) -> tuple[list[float], float]:
    """Rewards of a reward model's adapter and value head for the check answers, without the bias; and the bias."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    weight, bias = value_head(adapter)
    base = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float64)
    adapted = PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False).to(torch.float64).eval()
    with torch.no_grad():
        last = [
            adapted(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
            for ids in check_inputs(model, answered=True)
        ]
        return [float(weight.double()[0] @ hidden) for hidden in last], float(bias[0])


def merged_rewards(merged: Path) -> list[float]:
    """Rewards of the sequence classifier for the check answers."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(str(merged), dtype=torch.float64).eval()
    with torch.no_grad():
        return [float(model(input_ids=ids).logits[0, 0]) for ids in check_inputs(merged, answered=True)]


def check_rewards(expected: tuple[list[float], float], found: list[float]) -> dict[str, Any]:
    """The results for a reward model: the largest difference of rewards, and the bias that the merged one lacks."""
    rewards, constant = expected
    worst = max(abs(one - other) for one, other in zip(rewards, found, strict=True))
    return {"max_reward_diff": worst, "reward_constant": constant}
