"""Fine-tuning with the real LLaMA-Factory: it learns, a kill costs a few steps, out comes a whole chat model.

The model is a random one of 0.1M weights with a tokenizer trained here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from posttrain_kit import (
    file_hash,
    finish,
    kill_after_checkpoint,
    measured,
    sft_arguments,
    start,
)

from artifacts.layout import REPOSITORY
from launch.posttraining import work_folder as posttrain_work


def test_sft_learns_and_hands_over_a_whole_chat_model(ground: Path, sft: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = json.loads(sft.with_name("metrics.json").read_text(encoding="utf-8"))
    assert metrics["eval_loss_after"] < 0.8 * metrics["eval_loss_before"]
    assert metrics["steps"] == 60 and metrics["resumed_at_step"] == 0

    base = ground / "base"
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja"):
        assert (sft / name).read_bytes() == (base / name).read_bytes()
    before = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    after = json.loads((sft / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert after == {**before, "eos_token": "<|im_end|>"}

    tokenizer = AutoTokenizer.from_pretrained(sft)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    config = json.loads((sft / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == 1000.0
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 1000.0}
    assert config["eos_token_id"] == ends and config["pad_token_id"] == ends[1] and config["dtype"] == "float32"
    assert json.loads((sft / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == ends
    assert {p.name for p in sft.iterdir()} == {p.name for p in base.iterdir()} | {"posttrain.json"}

    model = AutoModelForCausalLM.from_pretrained(sft)
    assert model.config.rope_theta == 1000.0 and str(model.dtype) == "torch.float32"


def test_a_finished_output_is_left_alone(ground: Path, sft: Path) -> None:
    before = (sft / "model.safetensors").stat().st_mtime_ns
    assert "nothing to do" in finish(start(*sft_arguments(ground, sft)))
    assert (sft / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_in_the_same_weights(
    ground: Path, sft: Path, warm: Path, tmp_path: Path
) -> None:
    """Killed after the second checkpoint; the newest is then made half written, so that the first must serve."""
    output = tmp_path / "sft"
    raw = tmp_path / "sft.work" / "output"
    kill_after_checkpoint(start(*sft_arguments(ground, output)), raw, 2)
    assert not output.exists()
    steps = sorted(int(p.name.partition("-")[2]) for p in raw.glob("checkpoint-*") if posttrain_work.is_whole(p))
    newest = raw / f"checkpoint-{steps[-1]}"
    weights = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (raw / "checkpoint-999").mkdir()

    printed = finish(start(*sft_arguments(ground, output), warm=warm))
    assert f"resuming from step {steps[-2]}" in printed
    assert "checkpoint-999 is incomplete" in printed
    assert file_hash(output / "model.safetensors") == file_hash(sft / "model.safetensors")
    metrics = json.loads((tmp_path / "sft.work" / "metrics.json").read_text(encoding="utf-8"))
    undisturbed = json.loads(sft.with_name("metrics.json").read_text(encoding="utf-8"))
    for key in ("train_loss", "loss_curve", "eval_loss_before", "eval_loss_after", "steps"):
        assert metrics[key] == undisturbed[key], key


@pytest.mark.slow
def test_a_failed_training_is_one_line_and_leaves_no_output(ground: Path, tmp_path: Path) -> None:
    process = start(*sft_arguments(ground, tmp_path / "sft"), "--set", "optim=no_such_optimizer")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: llamafactory-cli failed: ValueError" in printed.splitlines()[-1]
    assert not (tmp_path / "sft").exists()


@pytest.mark.slow
def test_the_recipe_as_it_lies_is_llamafactorys(ground: Path, tmp_path: Path) -> None:
    """`--prepare` writes what LLaMA-Factory needs and prints the command; the recipe itself takes paths after it."""
    options = ("--model", ground / "base", "--data", ground / "data", "--output-folder", tmp_path / "prepared")
    printed = finish(start("sft_lora", *options, "--prepare"))
    assert "llamafactory-cli train" in printed.splitlines()[-1] and not (tmp_path / "prepared").exists()
    output = tmp_path / "output"
    values = {"model_name_or_path": ground / "base", "dataset_dir": tmp_path / "prepared.work", "output_dir": output,
              "use_cpu": "true", "max_steps": 2, "max_samples": 16, "logging_steps": 1}  # fmt: skip
    tool = Path(sys.executable).with_name("llamafactory-cli")
    with (tmp_path / "log").open("w") as log:
        subprocess.run(
            [tool, "train", "llamafactory_configs/sft_lora.yaml", *(f"{key}={value}" for key, value in values.items())],
            cwd=REPOSITORY, check=True, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 2 and (output / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_no_model(ground: Path, warm: Path, tmp_path: Path) -> None:
    """The trainer would log the last loss that was one, and LLaMA-Factory would save the weights."""
    options = ("--model", ground / "base", "--data", ground / "data", "--output", tmp_path / "out")
    keys = ("learning_rate=1e20", "max_steps=8", "max_grad_norm=1e20", "lr_scheduler_type=constant", "warmup_ratio=0")
    process = start("sft_full", *options, *(part for key in keys for part in ("--set", key)), warm=warm)
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 2 and "is nan: lower learning_rate" in told.splitlines()[-1], told[-2000:]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_lora_sft_lowers_the_held_out_loss_and_merges(ground: Path, warm: Path, tmp_path: Path) -> None:
    adapter, quick = tmp_path / "adapter", ("--set", "per_device_train_batch_size=8", "--set", "num_train_epochs=2")
    options = ("--model", ground / "base", "--data", ground / "data", "--output", adapter)
    found = measured(tmp_path, warm, "sft_lora", *options, *quick)
    assert found["eval_loss_after"] < found["eval_loss_before"] - 0.5
    merging = ("merge", "--model", ground / "base", "--adapter", adapter, "--output", tmp_path / "merged")
    finish(start(*merging, warm=warm))
    assert (tmp_path / "merged" / "model.safetensors").exists()
