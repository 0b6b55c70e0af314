"""DPO, KTO and merging with the real LLaMA-Factory; pairs of a model's own answers, and which of a pair it prefers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from posttrain_kit import (
    file_hash,
    finish,
    kill_after_checkpoint,
    measured,
    start,
)

from artifacts.command import run_command
from artifacts.errors import UserError
from launch.instructions.lint import Rendering, lint
from launch.instructions.read import Example
from launch.posttraining import chat_model, merge_gate, posttrain
from launch.preferences import judged_pairs, pair_accuracy
from tests.posttraining.reward_of_characters import seasons


def dpo_arguments(ground: Path, sft: Path, output: Path) -> list[object]:
    quick = ["--set", "per_device_train_batch_size=8", "--set", "save_steps=5", "--seed", 5]
    return ["dpo", "--model", sft, "--data", ground / "data", "--output", output, *quick]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, ground: Path, sft: Path) -> Path:
    """The LoRA adapter of an undisturbed run."""
    output = tmp_path_factory.mktemp("dpo") / "adapter"
    finish(start(*dpo_arguments(ground, sft, output)))
    return output


@pytest.mark.slow
def test_a_killed_dpo_goes_on_and_ends_in_the_same_adapter(
    ground: Path, sft: Path, adapter: Path, warm: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    kill_after_checkpoint(start(*dpo_arguments(ground, sft, output)), tmp_path / "adapter.work" / "output", 1)
    assert not output.exists()
    assert "resuming from step" in finish(start(*dpo_arguments(ground, sft, output), warm=warm))
    assert file_hash(output / "adapter_model.safetensors") == file_hash(adapter / "adapter_model.safetensors")


@pytest.mark.slow
def test_kto_widens_the_margin_of_good_answers(ground: Path, sft: Path, warm: Path, tmp_path: Path) -> None:
    options = ("--model", sft, "--data", ground / "data", "--output", tmp_path / "kto")
    found = measured(tmp_path, warm, "kto", *options)
    assert found["eval_loss_after"] < found["eval_loss_before"] and found["eval_reward_margin_after"] > 0


@pytest.mark.slow
def test_dpo_and_merge_raise_the_preferred_answers(ground: Path, sft: Path, adapter: Path, tmp_path: Path) -> None:
    dpo = tmp_path / "dpo"
    assert {p.name for p in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "posttrain.json"}
    printed = finish(start("merge", "--model", sft, "--adapter", adapter, "--output", dpo))
    assert "llamafactory-cli export" in printed
    gate = json.loads((dpo / "merge.json").read_text(encoding="utf-8"))
    assert gate["max_abs_diff"] <= merge_gate.MERGE_TOLERANCE < gate["max_abs_change"]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (dpo / name).read_bytes() == (sft / name).read_bytes()

    result = tmp_path / "pairs.json"
    pairs = ground / "data" / "dpo_valid.json"
    models = ["--model", str(sft), "--model", str(dpo)]
    run_command(pair_accuracy, [*models, "--pairs", str(pairs), "--output", str(result)])
    before, after = json.loads(result.read_text(encoding="utf-8"))["models"]
    assert after["mean_margin"] > before["mean_margin"]
    assert before["low"] <= before["accuracy"] <= before["high"]


def test_a_merge_with_other_logits_is_refused(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool is replaced by one that hands back the model without its adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = ground / "base"
    adapter, output = tmp_path / "adapter", tmp_path / "dpo"
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(adapter))

    def forget_the_adapter(job: posttrain.Job) -> float:
        shutil.copytree(base, job.raw)
        return 0.0

    monkeypatch.setattr(posttrain, "run_tool", forget_the_adapter)
    with pytest.raises(UserError, match="merged logits differ"):
        run_command(posttrain, ["merge", "--model", str(base), "--adapter", str(adapter), "--output", str(output)])
    assert not output.exists()


@pytest.mark.slow
def test_an_adapter_of_a_bfloat16_model_merges_in_float32_and_is_stored_in_bfloat16(
    ground: Path, warm: Path, tmp_path: Path
) -> None:
    """What every pretraining on a GPU hands over: LLaMA-Factory would merge it in bfloat16, 50 times the gate's bar."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base, adapter, output = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    shutil.copytree(ground / "base", base)
    chat_model.cast_weights(base, "bfloat16")
    torch.manual_seed(1)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).save_pretrained(adapter)
    finish(start("merge", "--model", base, "--adapter", adapter, "--output", output, warm=warm))
    gate = json.loads((output / "merge.json").read_text(encoding="utf-8"))
    assert gate["max_abs_diff"] <= merge_gate.MERGE_TOLERANCE < gate["max_abs_change"]
    assert gate["stored_in"] == chat_model.weights_type(output) == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    assert loaded.dtype == torch.bfloat16


def test_pairs_are_made_of_a_models_own_answers(ground: Path, sft: Path, tmp_path: Path) -> None:
    output = tmp_path / "reward_train.json"
    short = json.loads((ground / "data" / "sft_valid.json").read_text(encoding="utf-8"))
    (tmp_path / "asked.json").write_text(json.dumps(short[:16]), encoding="utf-8")
    run_command(judged_pairs, [
        "--model", str(sft), "--data", str(tmp_path / "asked.json"), "--max-new-tokens", "6", "--output", str(output),
        "--reward", "tests.posttraining.reward_of_characters.seasons", "--answers", "3",
        "--reward", "examples.poetry.rewards.rhyme",
    ])  # fmt: skip
    found = lint(output, Rendering(sft), 128)
    found.refuse()
    assert found.form.kind == "pairs" and 1 <= found.rows <= 32 and not found.too_long
    for pair in json.loads(output.read_text(encoding="utf-8")):
        better, worse = (seasons([[pair[key]]])[0] for key in ("chosen", "rejected"))
        assert better >= worse + judged_pairs.MARGIN


def test_a_question_gives_its_extremes_and_the_reference_as_pairs() -> None:
    row = {"prompt": [{"role": "user", "content": "?"}], "answer": "reference"}

    def texts(judged: list[tuple[float, str]], reference: float) -> list[tuple[str, str]]:
        pairs = judged_pairs.pairs_of(row, judged, reference)
        return [(pair["chosen"]["content"], pair["rejected"]["content"]) for pair in pairs]

    assert texts([(2.0, "a"), (0.5, "b"), (1.0, "c")], 3.0) == [("a", "b"), ("reference", "c")]
    assert texts([(2.0, "a"), (1.8, "b"), (1.9, "c")], 2.0) == []  # no preference
    assert texts([(2.0, "a"), (0.0, " ")], 3.0) == []  # an empty answer is none
    assert texts([(2.0, "a"), (1.5, "b"), (0.0, "")], 3.0) == [("a", "b"), ("reference", "a")]


def test_padding_does_not_change_a_log_probability(ground: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = ground / "base"
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).eval()
    rows = [
        Example((("user", "山"),), ("水", "风花雪月春夏秋冬")),
        Example((("user", "下一句是什么？\n江湖"),), ("天地人心", "云")),
    ]
    sequences = pair_accuracy.encode(tokenizer, rows)
    together = pair_accuracy.answer_logprobs(model, sequences)
    for (tokens, prompt), total in zip(sequences, together, strict=True):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        alone = sum(float(scores[i - 1, tokens[i]]) for i in range(prompt, len(tokens)))
        assert total == pytest.approx(alone, abs=1e-4)
        assert tokenizer.decode(tokens).endswith("<|im_end|>")
        assert tokenizer.decode(tokens[:prompt]).endswith("<|im_start|>assistant\n")
