"""Every post-training stage on the other architecture: Llama 2, untied, with a tokenizer that falls back to bytes.

Two steps of each: what the stages learn is shown on Qwen2 (test_posttrain_*.py, test_grpo.py).
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from posttrain_kit import ALPHABET, finish, make_data, start
from test_grpo import make_questions

from artifacts.files import write_jsonl
from artifacts.layout import REPOSITORY
from launch.scoring import model_probe


def make_llama2(folder: Path, text: Path) -> None:
    """A random Llama 2 and a tokenizer of this project's own making, as `converters.export` leaves them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    command = [
        sys.executable,
        "-m",
        "preprocess.tokenizer.train",
        "--style",
        "llama2",
        "--vocab-size",
        "420",
        "--input",
    ]
    subprocess.run([*command, str(text), "--output", str(folder)], cwd=REPOSITORY, check=True, capture_output=True)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    torch.manual_seed(0)
    end = next(token["id"] for token in added if token["content"] == "<|endoftext|>")
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=128, max_position_embeddings=256, rope_theta=1000.0, tie_word_embeddings=False,
        eos_token_id=end, pad_token_id=end, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama2")
    draw = random.Random(0)
    text = folder / "text.jsonl"
    write_jsonl(text, [{"text": "".join(draw.choices(ALPHABET, k=40)) + "下一句是什么？"} for _ in range(200)])
    make_llama2(folder / "base", text)
    make_data(folder / "data")
    make_questions(folder / "questions")
    for file in (folder / "questions").iterdir():
        shutil.copy(file, folder / "data")
    return folder


def trained(ground: Path, warm: Path, recipe: str, model: str, output: str, *more: object, **keys: object) -> Path:
    keys = {"max_steps": 2, **keys}
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    where = ["--model", ground / model, "--data", ground / "data", "--output", ground / output]
    finish(start(recipe, *where, *more, *sets, warm=warm))
    return ground / output


def merged(ground: Path, warm: Path, model: str, adapter: Path) -> Path:
    output = adapter.with_name(adapter.name.removesuffix("-adapter"))
    finish(start("merge", "--model", ground / model, "--adapter", adapter, "--output", output, warm=warm))
    assert json.loads((output / "merge.json").read_text())["max_abs_diff"] <= 1e-5
    return output


@pytest.mark.slow
def test_every_stage_trains_and_exports_llama2(ground: Path, warm: Path) -> None:
    small = {"per_device_train_batch_size": 8}
    train, merge = partial(trained, ground, warm), partial(merged, ground, warm)
    made = [train("sft_full", "base", "sft", **small)]
    made.append(merge("base", train("sft_lora", "base", "lora-adapter", **small)))
    judge = merge("sft", train("reward", "sft", "reward-adapter", **small))
    assert json.loads((judge / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    for recipe in ("dpo", "kto"):
        made.append(merge("sft", train(recipe, "sft", f"{recipe}-adapter", **small)))
    asked = ("--reward-model", judge)
    answers = {"max_new_tokens": 8, "cutoff_len": 96, **small}
    made.append(merge("sft", train("ppo", "sft", "ppo-adapter", *asked, **answers)))
    rewards = {"reward_funcs": "[]", "reward_weights": "[1.0]", "max_completion_length": 8}
    made.append(train("grpo", "sft", "grpo", *asked, **rewards, **small))
    for folder, found in zip(made, model_probe.compare(*made), strict=True):
        assert [version.split(".")[0] for version in found["transformers"]] == ["4", "5"], folder.name
        assert found["eos_token"] == "<|im_end|>" and len(found["eos_token_id"]) == 2, folder.name
        assert found["rope_theta"] == 1000 and not found["tied"], folder.name
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
