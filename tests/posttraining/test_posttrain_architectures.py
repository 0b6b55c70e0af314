"""Qwen3 and Llama 3 after pretraining: SFT, DPO and merge by LLaMA-Factory, then vLLM's tokens against Hugging Face's.

Two steps of each: what the stages learn is shown on Qwen2.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from in_process import typed
from posttrain_kit import ALPHABET, finish, make_data, start

from artifacts.files import write_jsonl
from artifacts.layout import REPOSITORY
from converters import architectures
from converters.rules import Shape
from launch.scoring import model_probe

COMMON = dict(
    layers=2, hidden=64, ffn=128, heads=4, groups=2, head_dim=32, vocab=512, positions=512, rope_theta=10000.0,
    norm_epsilon=1e-6, tied=True, qkv_bias=False,
)  # fmt: skip
SHAPES = {
    "qwen3": Shape(**{**COMMON, "qk_norm": True}),
    "llama3": Shape(**{**COMMON, "rope_factor": 32.0, "rope_theta": 500000.0, "head_dim": 32}),
}


def make_base(folder: Path, name: str, text: Path) -> None:
    """A random model of an architecture with a tokenizer of this project's own, as `myllm export` leaves them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = typed("preprocess.tokenizer.train", "--style", "qwen2", "--vocab-size", "420", "--input", text, "--output",
                 folder)  # fmt: skip
    assert made.returncode == 0, made.stderr
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    end = next(token["id"] for token in added if token["content"] == "<|endoftext|>")
    adapter = architectures.adapter(name)
    config = AutoConfig.for_model(
        adapter.MODEL_TYPE, **adapter.config(SHAPES[name]), bos_token_id=None, eos_token_id=end, pad_token_id=end
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_fine_tuned_and_served(name: str, warm: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    text = tmp_path / "text.jsonl"
    write_jsonl(text, [{"text": "".join(draw.choices(ALPHABET, k=40)) + "下一句是什么？"} for _ in range(200)])
    make_base(tmp_path / "base", name, text)
    make_data(tmp_path / "data")
    few = ("--set", "max_steps=2", "--set", "per_device_train_batch_size=8")
    for recipe, model, output in (("sft_full", "base", "sft"), ("dpo", "sft", "dpo-adapter")):
        where = ("--model", tmp_path / model, "--data", tmp_path / "data", "--output", tmp_path / output)
        finish(start(recipe, *where, *few, warm=warm))
    adapter = ("--adapter", tmp_path / "dpo-adapter", "--output", tmp_path / "dpo")
    finish(start("merge", "--model", tmp_path / "sft", *adapter, warm=warm))
    assert json.loads((tmp_path / "dpo" / "merge.json").read_text())["max_abs_diff"] <= 1e-5
    architecture = architectures.adapter(name).ARCHITECTURE
    assert json.loads((tmp_path / "dpo" / "config.json").read_text())["architectures"] == [architecture]
    if not (REPOSITORY / ".venv-serve").exists():
        pytest.skip("the rest needs .venv-serve (make env-serve)")
    (found,) = model_probe.compare(tmp_path / "dpo")
    assert [version.split(".")[0] for version in found["transformers"]] == ["4", "5"]
    served = typed("launch.serving.gate", "--model", tmp_path / "dpo", "--output", tmp_path / "gate")
    assert served.returncode == 0, served.stderr
    assert json.loads((tmp_path / "gate" / "serve.json").read_text())["identical"] == 20
