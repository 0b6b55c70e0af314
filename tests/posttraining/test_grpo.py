"""GRPO: TRL's own keys, rewards by name, a reward that rises with its divergence reported, a kill that costs nothing.

The model is a random one of 0.1M weights; the trainer is TRL's.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from posttrain_kit import ALPHABET, file_hash, finish, kill_after_checkpoint, make_model, said, start

from artifacts.command import parser_of, run_command
from artifacts.errors import UserError
from launch.posttraining import job as posttrain_job
from launch.posttraining import posttrain, rewards
from launch.posttraining import recipe as posttrain_recipe
from launch.preferences import answer_rewards

KEYS = {
    "reward_funcs": "[reward_of_characters.seasons]",
    "reward_weights": "[1.0]",
    "max_prompt_length": 32,
    "max_completion_length": 12,
    "num_generations": 4,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "max_steps": 24,
    "save_steps": 6,
    "learning_rate": "3e-3",
    "beta": 0.01,
}
MODULES = {"PYTHONPATH": str(Path(__file__).parent)}


def make_questions(folder: Path) -> None:
    folder.mkdir()
    asked = ["".join(letters) for letters in itertools.permutations(ALPHABET, 2)]
    random.Random(0).shuffle(asked)
    rows = [{"instruction": "下一句是什么？", "input": q, "output": q[0]} for q in asked]
    for name, part in (("rl_train", rows[:200]), ("rl_valid", rows[200:232])):
        (folder / f"{name}.json").write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grpo")
    make_model(folder / "base")
    make_questions(folder / "data")
    return folder


def arguments(ground: Path, output: Path, **keys: object) -> list[object]:
    sets = [part for key, value in {**KEYS, **keys}.items() for part in ("--set", f"{key}={value}")]
    return ["grpo", "--model", ground / "base", "--data", ground / "data", "--output", output, *sets, "--seed", 5]


def job_of(ground: Path, output: Path, *more: str, **keys: object) -> posttrain.Job:
    return job_for(*map(str, arguments(ground, output, **keys)), *more)


def job_for(*words: str) -> posttrain.Job:
    return posttrain.job_of(parser_of(posttrain).parse_args(words))


def metrics_of(output: Path) -> dict[str, Any]:
    return json.loads((output.with_name(output.name + ".work") / "metrics.json").read_text(encoding="utf-8"))


# --- keys


def test_argument_names_and_rewards_are_those_of_trl(warm: Path) -> None:
    found = said(
        warm,
        """
import dataclasses, json
from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments, reward_funcs_registry
holders = (GRPOScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig)
names = [item.name for holder in holders for item in dataclasses.fields(holder) if item.init]
print(json.dumps({"names": names, "rewards": list(reward_funcs_registry)}))
""",
    )
    assert set(posttrain_recipe.keys_of("trl")) == set(found["names"])
    assert rewards.rewards_of_trl() == found["rewards"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_generation=4", "TRL has no key 'num_generation' (did you mean 'num_generations'?)"),
        ("beta=much", "beta is 'much', but TRL needs float"),
        ("stage=grpo", "TRL has no key 'stage'"),
        ("output_dir=x", "output_dir is set by the launcher"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        posttrain_recipe.recipe_settings("grpo", "cpu", [override], None)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reward_funcs": "[examples.poetry.rewards.ryhme]"}, "did you mean 'rhyme'"),
        ({"reward_funcs": "examples.poetry.rewards.rhyme"}, "write a list"),
        ({"reward_funcs": "[accuracy_rewards]"}, "TRL has no 'accuracy_rewards' (did you mean 'accuracy_reward'?)"),
        (
            {"reward_funcs": "[examples.poetry.rewards.rhyme]", "reward_weights": "[1.0, 2.0]"},
            "2 numbers for 1 rewards",
        ),
        ({"reward_funcs": "[]"}, "grpo has no reward"),
    ],
)
def test_rewards_that_cannot_be_are_told_before_the_model_loads(
    ground: Path, tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        job_of(ground, tmp_path / "out", **keys)
    assert message in str(error.value)


def test_a_chat_model_is_no_reward_model(ground: Path, tmp_path: Path) -> None:
    job = job_of(
        ground, tmp_path / "out", "--reward-model", str(ground / "base"),
        reward_funcs="[examples.poetry.rewards.rhyme]", reward_weights="[1.0, 1.0]",
    )  # fmt: skip
    with pytest.raises(UserError, match="needs the merged output of recipe `reward`"):
        posttrain.run_job(job)


def test_another_reward_of_the_same_name_is_another_training(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "my_rewards.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    marks = []
    for value in ("1.0", "1.0", "2.00"):
        module.write_text(f"def kind(completions, **_):\n    return [{value} for _ in completions]\n")
        job = job_of(ground, tmp_path / "out", reward_funcs="[my_rewards.kind]")
        marks.append(posttrain_job.fingerprint(job))
    assert marks[0] == marks[1] != marks[2]


def test_questions_of_the_wrong_kind_are_refused(ground: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pair = {"instruction": "天", "input": "", "chosen": "地", "rejected": "人"}
    for name in ("rl_train", "rl_valid"):
        (data / f"{name}.json").write_text(json.dumps([pair], ensure_ascii=False), encoding="utf-8")
    options = ["grpo", "--model", str(ground / "base"), "--data", str(data), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match="grpo needs instructions"):
        posttrain.run_job(job_for(*options, "--set", "max_completion_length=24"))


# --- training


@pytest.fixture(scope="module")
def grpo(ground: Path) -> Path:
    """The chat model of an undisturbed run."""
    output = ground / "grpo"
    finish(start(*arguments(ground, output), env=MODULES))
    return output


@pytest.mark.slow
def test_the_held_out_reward_rises_and_its_divergence_is_reported(ground: Path, grpo: Path) -> None:
    found = metrics_of(grpo)
    assert found["steps"] == 24 and found["measure"] == "eval_reward" and found["higher_is_better"]
    assert found["measure_after"] > found["measure_before"] + 0.1
    assert found["eval_seasons_after"] == pytest.approx(found["measure_after"], abs=1e-4)
    assert found["eval_kl_before"] == pytest.approx(0, abs=1e-6) and found["eval_kl_after"] > 0.01
    assert len(found["reward_curve"]) == len(found["kl_curve"]) == 12
    assert list((grpo.with_name("grpo.work") / "tracking").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_what_comes_out_is_a_whole_chat_model(ground: Path, grpo: Path) -> None:
    base = ground / "base"
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja"):
        assert (grpo / name).read_bytes() == (base / name).read_bytes()
    config = json.loads((grpo / "config.json").read_text(encoding="utf-8"))
    assert (
        config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1000.0 and len(config["eos_token_id"]) == 2
    )
    assert file_hash(grpo / "model.safetensors") != file_hash(base / "model.safetensors")


@pytest.mark.slow
def test_a_killed_grpo_goes_on_and_ends_in_the_same_weights(
    ground: Path, grpo: Path, warm: Path, tmp_path: Path
) -> None:
    output = tmp_path / "grpo"
    kill_after_checkpoint(start(*arguments(ground, output), env=MODULES), tmp_path / "grpo.work" / "output", 1)
    assert not output.exists()
    assert "resuming from step" in finish(start(*arguments(ground, output), env=MODULES, warm=warm))
    assert file_hash(output / "model.safetensors") == file_hash(grpo / "model.safetensors")
    assert metrics_of(output)["measure_before"] == metrics_of(grpo)["measure_before"]


@pytest.mark.slow
def test_trls_own_script_reads_the_same_file(grpo: Path, warm: Path, tmp_path: Path) -> None:
    """Its parser takes the rendered file, and it finds the data: what `trl grpo --config` does before it trains."""
    code = """
import json, sys
from datasets import load_dataset
from trl.scripts.grpo import make_parser
script, training, model, _ = make_parser().parse_args_and_config(["--config", sys.argv[1]])
data = load_dataset(script.dataset_name, cache_dir=sys.argv[2])
print(json.dumps([script.reward_funcs, training.num_generations, len(data[script.dataset_train_split])]))
"""
    found = said(warm, code, str(grpo.with_name("grpo.work") / "grpo.yaml"), str(tmp_path))
    assert found == [["reward_of_characters.seasons"], 4, 200]


@pytest.mark.slow
def test_answers_are_measured_side_by_side(ground: Path, grpo: Path, tmp_path: Path) -> None:
    output, data = tmp_path / "rewards.json", ground / "data" / "rl_valid.json"
    models = ["--model", str(ground / "base"), "--model", str(grpo)]
    options = ["--data", str(data), "--reward", "reward_of_characters.seasons", "--answers", "2"]
    run_command(answer_rewards, [*models, *options, "--max-new-tokens", "12", "--output", str(output)])
    before, after = json.loads(output.read_text(encoding="utf-8"))["models"]
    one, other = (found["rewards"]["reward_of_characters.seasons"] for found in (before, after))
    assert one["high"] < other["low"] and one["n"] == 32
    assert before["kl"]["mean"] == 0 < after["kl"]["low"]
