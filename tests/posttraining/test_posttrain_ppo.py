"""A reward model with the real LLaMA-Factory, and PPO that asks it: what they learn, what a kill costs, how they merge.

The model is a random one of 0.1M weights with a tokenizer trained here.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from posttrain_kit import (
    file_hash,
    finish,
    kill_after_checkpoint,
    start,
    warm_tools,
    work_metrics,
)

from artifacts.errors import UserError
from artifacts.processes import free_port
from launch.posttraining import chat_model, job, merge_gate, reward_server


def reward_arguments(ground: Path, sft: Path, output: Path) -> list[object]:
    keys = ("learning_rate=1e-3", "num_train_epochs=25", "per_device_train_batch_size=8", "save_steps=200")
    sets = [part for key in keys for part in ("--set", key)]
    return ["reward", "--model", sft, "--data", ground / "data", "--output", output, *sets, "--seed", 5]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory, ground: Path, sft: Path) -> Path:
    """Adapter and value head of an undisturbed run."""
    output = tmp_path_factory.mktemp("judges") / "reward"
    finish(start(*reward_arguments(ground, sft, output)))
    return output


@pytest.fixture(scope="module")
def judge(sft: Path, reward: Path, warm: Path) -> Path:
    """The same, merged."""
    output = reward.with_name("judge")
    finish(start("merge", "--model", sft, "--adapter", reward, "--output", output, warm=warm))
    return output


@pytest.mark.slow
def test_a_reward_model_learns_the_held_out_pairs(reward: Path) -> None:
    found = work_metrics(reward)
    assert found["eval_loss_after"] < found["eval_loss_before"] - 0.03
    assert found["measure"] == "eval_accuracy" and found["measure_after"] > 5 + found["measure_before"]
    assert (reward / "value_head.safetensors").exists()


@pytest.mark.slow
def test_a_killed_reward_model_goes_on_with_its_value_head(
    ground: Path, sft: Path, reward: Path, warm: Path, tmp_path: Path
) -> None:
    """LLaMA-Factory 0.9.4 by itself dies of a reward model's checkpoint ("Can't find a checkpoint index")."""
    output = tmp_path / "reward"
    raw = tmp_path / "reward.work" / "output"
    kill_after_checkpoint(start(*reward_arguments(ground, sft, output)), raw, 1, last=chat_model.VALUE_HEAD)
    assert not output.exists()
    assert "resuming from step" in finish(start(*reward_arguments(ground, sft, output), warm=warm))
    for name in ("adapter_model.safetensors", "value_head.safetensors"):
        assert file_hash(output / name) == file_hash(reward / name), name


@pytest.mark.slow
def test_a_merged_reward_model_is_a_classifier_of_the_same_rewards(sft: Path, judge: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    gate = json.loads((judge / "merge.json").read_text(encoding="utf-8"))
    assert gate["max_reward_diff"] <= 1e-5 and gate["max_abs_diff"] <= 1e-5
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    assert model.config.num_labels == 1 and type(model).__name__ == "Qwen2ForSequenceClassification"
    assert (judge / "tokenizer.json").read_bytes() == (sft / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_the_reward_model_is_asked_where_it_was_trained(
    ground: Path, sft: Path, reward: Path, judge: Path, tmp_path: Path
) -> None:
    """Answers as PPO sends them, without the line feed that ended them in training, get the adapter's numbers."""
    from transformers import AutoTokenizer

    expected, _ = merge_gate.adapter_rewards(sft, reward)
    tokenizer = AutoTokenizer.from_pretrained(sft)
    texts = [tokenizer.decode(ids[0]) for ids in merge_gate.check_inputs(sft, answered=True)]
    assert all(text.endswith("<|im_end|>\n") for text in texts)
    port = free_port()
    with reward_server.serving(judge, port, tmp_path / "log"):

        def ask(body: object) -> tuple[int, dict[str, Any]]:
            request = urllib.request.Request(reward_server.address(port), json.dumps(body).encode())
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    return reply.status, json.load(reply)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        for end in ("<|im_end|>\n", "\n", ""):  # whole, as PPO's text ends, and an answer that was cut
            status, found = ask({"messages": [text.removesuffix(end) for text in texts]})
            assert status == 200 and found["scores"] == pytest.approx(expected, abs=1e-4)
        assert ask({"messages": [1]})[0] == ask(["no object"])[0] == 400
        with pytest.raises(UserError, match="did not start: error: port .* in use"):
            with reward_server.serving(judge, port, tmp_path / "second"):
                pass
    with pytest.raises(UserError, match="needs the merged output of recipe `reward`"):
        reward_server.main(["--model", str(ground / "base"), "--port", str(port)])


@pytest.fixture(scope="module")
def ppo(tmp_path_factory: pytest.TempPathFactory, ground: Path, sft: Path, judge: Path, warm: Path) -> Path:
    """PPO's adapter, of a run that was killed on the way once."""
    keys = {"dataset": "sft_train", "max_steps": 32, "max_new_tokens": 8, "cutoff_len": 64,
            "per_device_train_batch_size": 64, "ppo_epochs": 4, "learning_rate": "2e-3"}  # fmt: skip
    output = tmp_path_factory.mktemp("ppo") / "ppo"
    options = [
        "--data",
        ground / "data",
        "--output",
        output,
        *(part for key, value in keys.items() for part in ("--set", f"{key}={value}")),
    ]
    arguments = ["ppo", "--model", sft, "--reward-model", judge, *options, "--seed", 5]
    process, log = start(*arguments), output.with_name("ppo.work") / "output" / "trainer_log.jsonl"
    deadline = time.monotonic() + 200
    while not log.exists():
        assert process.poll() is None and time.monotonic() < deadline, "no step"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    overlay = {"PYTHONPATH": str(job.OVERLAY), "DISABLE_VERSION_CHECK": "1"}
    with warm_tools(warm.with_name("ppo"), **overlay):
        assert "starting from step 0" in finish(start(*arguments, warm=warm))
    return output


@pytest.mark.slow
def test_ppo_raises_the_reward_and_reports_its_divergence(ppo: Path) -> None:
    found = work_metrics(ppo)
    assert found["steps"] == 32 and len(found["reward_curve"]) == len(found["kl_curve"]) == 32
    assert found["measure"] == "reward" and found["measure_after"] > found["measure_before"] + 0.1
    assert found["kl_curve"][0][1] == pytest.approx(0, abs=0.01) and found["kl_after"] > 0.05


@pytest.mark.slow
def test_ppo_asks_the_whole_question(ground: Path, ppo: Path) -> None:
    """LLaMA-Factory counts the answers of the data against `cutoff_len` and cuts the questions; it gets none."""
    log = (ppo.with_name("ppo.work") / "log").read_text(encoding="utf-8", errors="replace")
    shown = log.partition("\ninputs:\n")[2].partition("\nlabel_ids:")[0]
    first = json.loads((ground / "data" / "sft_train.json").read_text(encoding="utf-8"))[0]
    asked = f"{first['instruction']}\n{first['input']}"
    assert shown == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_ppos_adapter_merges(sft: Path, ppo: Path, warm: Path, tmp_path: Path) -> None:
    assert {p.name for p in ppo.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "posttrain.json"}
    assert json.loads((ppo / "posttrain.json").read_text(encoding="utf-8"))["versions"]["trl"] == "0.9.6"
    finish(start("merge", "--model", sft, "--adapter", ppo, "--output", tmp_path / "ppo", warm=warm))
    gate = json.loads((tmp_path / "ppo" / "merge.json").read_text(encoding="utf-8"))
    assert gate["max_abs_diff"] <= 1e-5 < gate["max_abs_change"]
