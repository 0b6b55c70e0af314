"""Post-training: keys and data are checked before anything runs, a kill costs a few steps, models come out right.

The model is a random one of 0.1M weights with a tokenizer trained here; LLaMA-Factory is the real one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UserError
from artifacts.files import hold_lock
from artifacts.layout import REPOSITORY
from artifacts.processes import free_port
from launch.instructions.lint import Rendering, lint
from launch.posttraining import chat_model, merge_gate, posttrain, reward_server
from launch.posttraining import data as posttrain_data
from launch.posttraining import metrics as posttrain_metrics
from launch.posttraining import recipe as posttrain_recipe
from launch.posttraining import tool as posttrain_tool
from launch.posttraining import work_folder as posttrain_work
from launch.preferences import judged_pairs, pair_accuracy
from tests.posttraining.reward_of_characters import seasons

ALPHABET = "春夏秋冬风花雪月山水云雨江湖日夜天地人心"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(folder: Path) -> None:
    """A random Qwen2 with a byte-level BPE tokenizer, as pretraining hands it over."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator([ALPHABET, "下一句是什么？", *ALPHABET], trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_input_names": ["input_ids", "attention_mask"],
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "bos_token": None,
        "unk_token": None,
        "model_max_length": 256,
        "additional_special_tokens": list(SPECIAL[1:]),
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in SPECIAL
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    torch.manual_seed(0)
    end = tokenizer.token_to_id(SPECIAL[0])
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=128,
            max_position_embeddings=256,
            rope_theta=1000.0,
            tie_word_embeddings=True,
            eos_token_id=end,
            pad_token_id=end,
            bos_token_id=None,
        )
    ).save_pretrained(folder)


def make_data(folder: Path, rows: int = 480) -> None:
    """Questions whose answer is the question's first character: learnable, all different. Pairs: first or last."""
    folder.mkdir()
    questions = ["".join(letters) for letters in itertools.permutations(ALPHABET, 3)]
    random.Random(0).shuffle(questions)
    sft = [{"instruction": "下一句是什么？", "input": q, "output": q[0] * 2} for q in questions[: rows + 40]]
    dpo = [
        {"instruction": "下一句是什么？", "input": q, "chosen": q[0] * 2, "rejected": q[2] * 2}
        for q in questions[: rows + 40]
    ]
    kto = [
        {"instruction": "下一句是什么？", "input": q, "output": q[0 if good else 2] * 2, "label": good}
        for q in questions[: rows + 40]
        for good in (True, False)
    ]
    for name, data in (
        ("kto_train", kto[:320]),
        ("kto_valid", kto[2 * rows : 2 * rows + 80]),
        ("sft_train", sft[:rows]),
        ("sft_valid", sft[rows : rows + 40]),
        ("dpo_train", dpo[:160]),
        ("dpo_valid", dpo[rows : rows + 40]),
    ):
        (folder / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, a model, and `data`."""
    folder = tmp_path_factory.mktemp("posttrain")
    make_model(folder / "base")
    make_data(folder / "data")
    return folder


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "launch.posttraining.posttrain", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment | dict(options.pop("env", {})),  # type: ignore[call-overload]
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-3000:]
    return output


def sft_arguments(ground: Path, output: Path) -> list[object]:
    quick = ["--set", "per_device_train_batch_size=8", "--set", "save_steps=10", "--seed", 5]
    return ["sft_full", "--model", ground / "base", "--data", ground / "data", "--output", output, *quick]


@pytest.fixture(scope="module")
def sft(ground: Path) -> Path:
    """The chat model of an undisturbed run, with `metrics.json` beside it."""
    output = ground / "sft"
    finish(start(*sft_arguments(ground, output), env={"MYLLM_METRICS": str(ground / "metrics.json")}))
    return output


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- keys


def test_argument_names_are_those_of_the_real_dataclasses() -> None:
    from llamafactory import hparams

    real = {
        item.name
        for holder in (
            hparams.ModelArguments,
            hparams.DataArguments,
            hparams.FinetuningArguments,
            hparams.TrainingArguments,
            hparams.GeneratingArguments,
        )
        for item in dataclasses.fields(holder)
        if item.init
    }
    assert {name for group in posttrain_recipe.argument_types().values() for name in group} == real


@pytest.mark.parametrize("recipe", sorted(p.stem for p in posttrain_recipe.RECIPES.glob("*.yaml")))
@pytest.mark.parametrize("hardware", sorted(p.stem for p in (posttrain_recipe.RECIPES / "hardware").glob("*.yaml")))
def test_every_recipe_holds_only_its_tools_keys(recipe: str, hardware: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NNODES", "SLURM_NODEID", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    found = posttrain_recipe.recipe_settings(recipe, hardware, [], 3)
    assert found.tool == "trl" or found.settings["template"] == "chatml"
    assert found.exports or found.settings["seed"] == found.settings["data_seed"] == 3
    assert bool(found.environment) == (not found.exports and hardware in ("node-8", "multi-node"))


@pytest.mark.parametrize("path", sorted(posttrain_recipe.RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_is_explained(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not line or "# " in line, f"{path.name}: {line}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "no key 'learning_rat' (did you mean 'learning_rate'?)"),
        ("learning_rate=fast", "learning_rate is 'fast', but LLaMA-Factory needs float"),
        ("max_steps=1.5", "max_steps is 1.5, but LLaMA-Factory needs int"),
        ("stage=sfft", "stage is 'sfft'; LLaMA-Factory allows"),
        ("do_train", "write --set key=value"),
        ("output_dir=x", "output_dir is set by the launcher"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        posttrain_recipe.recipe_settings("sft_full", "cpu", [override], None)
    assert message in str(error.value)


def test_numbers_without_a_point_are_numbers() -> None:
    found = posttrain_recipe.recipe_settings("sft_full", "cpu", ["learning_rate=1e-3"], None)
    assert found.settings["learning_rate"] == 1e-3


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sft_full'"):
        posttrain_recipe.recipe_settings("sft_ful", "cpu", [], None)


def test_dry_run_prints_the_command_and_imports_nothing_heavy(ground: Path, tmp_path: Path) -> None:
    arguments = [str(a) for a in (*sft_arguments(ground, tmp_path / "out"), "--dry-run")]
    code = (
        f"import sys; from launch.posttraining import posttrain; posttrain.main({arguments!r});"
        "print([m for m in ('torch', 'llamafactory', 'transformers') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert f"llamafactory-cli train {tmp_path / 'out.work' / 'sft_full.yaml'}" in output
    assert output.endswith("[]\n")
    assert list(tmp_path.iterdir()) == []


# --- machines


def test_a_hardware_file_says_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = posttrain_recipe.recipe_settings("sft_full", "node-8", [], None)
    assert found.environment == {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "8"} and "environment" not in found.settings
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    assert posttrain_recipe.recipe_settings("sft_full", "node-8", [], None).environment["NPROC_PER_NODE"] == "2"


def test_several_machines_are_told_apart(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"NNODES is \$SLURM_NNODES, which is not set"):
        posttrain_recipe.recipe_settings("sft_full", "multi-node", [], None)
    for name, value in (("SLURM_NNODES", "2"), ("SLURM_NODEID", "1"), ("MASTER_ADDR", "first")):
        monkeypatch.setenv(name, value)
    options = ["--model", str(ground / "base"), "--data", str(ground / "data"), "--output", str(tmp_path / "o")]
    job = posttrain.job_of(posttrain.parse(["sft_full", *options, "--hardware", "multi-node"]))
    assert job.node == 1 and job.processes == 16
    assert "NODE_RANK=1" in posttrain_tool.shown(job) and "llamafactory-cli train" in posttrain_tool.shown(job)
    grpo = posttrain.job_of(posttrain.parse(["grpo", *options, "--hardware", "multi-node"]))
    assert "-m torch.distributed.run --nproc-per-node=8 --nnodes=2 --node-rank=1" in posttrain_tool.shown(grpo)
    assert str(REPOSITORY / "llamafactory_configs" / "hardware" / "zero3.json") in posttrain_work.render(job)


def test_a_second_machine_waits_for_the_first(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = posttrain.job_of(posttrain.parse([str(a) for a in sft_arguments(ground, tmp_path / "sft")]))
    monkeypatch.setattr(posttrain_work, "WAIT", 0.0)
    with pytest.raises(UserError, match="is that folder shared"):
        posttrain_work.wait_for_work(job, "mark")
    posttrain_work.prepare_work(job, "mark")
    posttrain_work.wait_for_work(job, "mark")


def test_a_tracker_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = posttrain_recipe.recipe_settings("sft_full", "cpu", [], None, "none")
    assert found.settings["report_to"] == "none"
    with pytest.raises(UserError, match="pip install swanlab"):
        posttrain_recipe.recipe_settings("sft_full", "cpu", [], None, "swanlab")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo", "--data", "d"], "give the merged output of recipe `reward` with --reward-model"),
        (["dpo", "--data", "d", "--reward-model", "r"], "takes no --reward-model"),
        (["dpo"], "give the folder of its data files with --data"),
        (["merge"], "give it with --adapter"),
        (["dpo", "--data", "d", "--adapter", "a"], "merge it first"),
    ],
)
def test_what_a_recipe_needs_is_told(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        posttrain.job_of(posttrain.parse([*arguments, "--model", "m", "--output-folder", "o"]))
    assert message in str(error.value)


def test_deepspeeds_checkpoints_are_known(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    checkpoint = tmp_path / "checkpoint-10"
    (checkpoint / "global_step10").mkdir(parents=True)
    save_file({"w": torch.zeros(10)}, checkpoint / "model.safetensors")
    part = checkpoint / "global_step10" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"w": torch.zeros(10)}, part)
    torch.save({"last": 1}, checkpoint / "scheduler.pt")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 10}')
    assert not posttrain_work.is_whole(checkpoint)
    (checkpoint / "latest").write_text("global_step10")
    assert posttrain_work.is_whole(checkpoint)
    part.write_bytes(part.read_bytes()[:100])
    assert not posttrain_work.is_whole(checkpoint)


# --- data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a", "input": ""}]', "row 1: `output` is missing"),
        ('[{"instruction": "a", "input": "", "output": "b"}, 7]', "row 2: not a JSON object"),
        ('[{"instruction": "a", "input": "", "output": " "}]', "row 1: `output` is empty"),
        ('[{"instruction": "a", "input": "", "output": null}]', "row 1: `output` is not text"),
        ('[{"instruction": "a", "input": "", "output": "b"}' + ', {"instruction": "a", "input": "", "output": "b"}' * 2
         + "]", "row 2: repeats row 1 (and 1 more bad rows)"),
        ('{"instruction": "a"}', "row 1: `output` is missing"),
        ("[]", "holds no row"),
        ('[{"instruction": ', "not valid JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_and_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sft_train.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        lint(path).refuse()
    if "repeats" not in message:
        with pytest.raises(UserError, match=re.escape(f"{path}")):
            posttrain_data.questions(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pair_needs_two_answers(tmp_path: Path) -> None:
    path = tmp_path / "dpo_train.json"
    row = {"instruction": "a", "input": "", "chosen": "b", "rejected": "b"}
    path.write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(UserError, match="row 1: `chosen` and `rejected` are equal"):
        lint(path).refuse()


def test_a_model_without_the_chat_tokens_is_refused(ground: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ground / "base", model)
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|im_end|>"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UserError, match="before pretraining"):
        chat_model.check_model(model)


# --- training


def test_sft_learns_and_hands_over_a_whole_chat_model(ground: Path, sft: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = json.loads((ground / "metrics.json").read_text(encoding="utf-8"))
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


def kill_after_checkpoint(
    process: subprocess.Popen[str], raw: Path, count: int, last: str = "trainer_state.json"
) -> None:
    """Kill the process group when `count` whole checkpoints exist, and wait until no process of it is left."""
    deadline = time.monotonic() + 120
    while sum(posttrain_work.is_whole(c) and (c / last).exists() for c in raw.glob("checkpoint-*")) < count:
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a child survived"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_in_the_same_weights(ground: Path, sft: Path, tmp_path: Path) -> None:
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

    printed = finish(start(*sft_arguments(ground, output)))
    assert f"resuming from step {steps[-2]}" in printed
    assert "checkpoint-999 is incomplete" in printed
    assert file_hash(output / "model.safetensors") == file_hash(sft / "model.safetensors")
    metrics = json.loads((tmp_path / "sft.work" / "metrics.json").read_text(encoding="utf-8"))
    undisturbed = json.loads((ground / "metrics.json").read_text(encoding="utf-8"))
    for key in ("train_loss", "loss_curve", "eval_loss_before", "eval_loss_after", "steps"):
        assert metrics[key] == undisturbed[key], key


def test_checkpoints_of_other_data_are_not_used(ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    job = posttrain.job_of(posttrain.parse([str(a) for a in sft_arguments(ground, tmp_path / "sft")]))
    assert posttrain_work.prepare_work(job, "one") == 0
    (job.raw / "checkpoint-10").mkdir(parents=True)
    assert posttrain_work.prepare_work(job, "two") == 0
    assert "starting over" in capsys.readouterr().out
    assert not job.raw.exists()


@pytest.mark.parametrize("broken", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors"])
def test_a_checkpoint_without_one_of_its_files_is_not_whole(tmp_path: Path, broken: str) -> None:
    import torch
    from safetensors.torch import save_file

    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    save_file({"w": torch.zeros(100)}, checkpoint / "model.safetensors")
    torch.save({"state": torch.zeros(100)}, checkpoint / "optimizer.pt")
    torch.save({"last": 1}, checkpoint / "scheduler.pt")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 10}')
    assert posttrain_work.is_whole(checkpoint)
    whole = (checkpoint / broken).read_bytes()
    (checkpoint / broken).write_bytes(whole[: len(whole) // 2])
    assert not posttrain_work.is_whole(checkpoint)
    (checkpoint / broken).unlink()
    assert not posttrain_work.is_whole(checkpoint)


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


# --- preference


def dpo_arguments(ground: Path, sft: Path, output: Path) -> list[object]:
    quick = ["--set", "per_device_train_batch_size=8", "--set", "save_steps=5", "--seed", 5]
    return ["dpo", "--model", sft, "--data", ground / "data", "--output", output, *quick]


@pytest.fixture(scope="module")
def adapter(ground: Path, sft: Path) -> Path:
    """The LoRA adapter of an undisturbed run."""
    output = ground / "adapter"
    finish(start(*dpo_arguments(ground, sft, output)))
    return output


def reward_arguments(ground: Path, sft: Path, output: Path) -> list[object]:
    keys = ("learning_rate=1e-3", "num_train_epochs=25", "per_device_train_batch_size=8", "save_steps=200")
    sets = [part for key in keys for part in ("--set", key)]
    return ["reward", "--model", sft, "--data", ground / "data", "--output", output, *sets, "--seed", 5]


@pytest.fixture(scope="module")
def reward(ground: Path, sft: Path) -> Path:
    """Adapter and value head of an undisturbed run."""
    output = ground / "reward"
    finish(start(*reward_arguments(ground, sft, output)))
    return output


@pytest.fixture(scope="module")
def judge(ground: Path, sft: Path, reward: Path) -> Path:
    """The same, merged."""
    finish(start("merge", "--model", sft, "--adapter", reward, "--output", ground / "judge"))
    return ground / "judge"


def work_metrics(output: Path) -> dict[str, Any]:
    return json.loads((output.with_name(output.name + ".work") / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_no_model(ground: Path, tmp_path: Path) -> None:
    """The trainer would log the last loss that was one, and LLaMA-Factory would save the weights."""
    options = ("--model", ground / "base", "--data", ground / "data", "--output", tmp_path / "out")
    keys = ("learning_rate=1e20", "max_steps=8", "max_grad_norm=1e20", "lr_scheduler_type=constant", "warmup_ratio=0")
    process = start("sft_full", *options, *(part for key in keys for part in ("--set", key)))
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 2 and "is nan: lower learning_rate" in told.splitlines()[-1], told[-2000:]
    assert not (tmp_path / "out").exists()


def test_two_trainings_of_one_output_are_refused(ground: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = posttrain.parse([*map(str, sft_arguments(ground, output)), "--prepare"])
    with hold_lock(tmp_path / ".out.lock", ""), pytest.raises(UserError, match="out is being made by another run"):
        posttrain.run(options)
    posttrain.run(options)
    assert (tmp_path / "out.work").exists()


@pytest.mark.slow
def test_a_killed_dpo_goes_on_and_ends_in_the_same_adapter(
    ground: Path, sft: Path, adapter: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    kill_after_checkpoint(start(*dpo_arguments(ground, sft, output)), tmp_path / "adapter.work" / "output", 1)
    assert not output.exists()
    assert "resuming from step" in finish(start(*dpo_arguments(ground, sft, output)))
    assert file_hash(output / "adapter_model.safetensors") == file_hash(adapter / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_killed_reward_model_goes_on_with_its_value_head(
    ground: Path, sft: Path, reward: Path, tmp_path: Path
) -> None:
    """LLaMA-Factory 0.9.4 by itself dies of a reward model's checkpoint ("Can't find a checkpoint index")."""
    output = tmp_path / "reward"
    raw = tmp_path / "reward.work" / "output"
    kill_after_checkpoint(start(*reward_arguments(ground, sft, output)), raw, 1, last=chat_model.VALUE_HEAD)
    assert not output.exists()
    assert "resuming from step" in finish(start(*reward_arguments(ground, sft, output)))
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
def ppo(ground: Path, sft: Path, judge: Path) -> Path:
    """PPO's adapter, of a run that was killed on the way once."""
    keys = {"dataset": "sft_train", "max_steps": 32, "max_new_tokens": 8, "cutoff_len": 64,
            "per_device_train_batch_size": 64, "ppo_epochs": 4, "learning_rate": "2e-3"}  # fmt: skip
    output = ground / "ppo"
    options = [
        "--data",
        ground / "data",
        "--output",
        output,
        *(part for key, value in keys.items() for part in ("--set", f"{key}={value}")),
    ]
    arguments = ["ppo", "--model", sft, "--reward-model", judge, *options, "--seed", 5]
    process, log = start(*arguments), ground / "ppo.work" / "output" / "trainer_log.jsonl"
    deadline = time.monotonic() + 200
    while not log.exists():
        assert process.poll() is None and time.monotonic() < deadline, "no step"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "starting from step 0" in finish(start(*arguments))
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
    log = (ground / "ppo.work" / "log").read_text(encoding="utf-8", errors="replace")
    shown = log.partition("\ninputs:\n")[2].partition("\nlabel_ids:")[0]
    first = json.loads((ground / "data" / "sft_train.json").read_text(encoding="utf-8"))[0]
    asked = f"{first['instruction']}\n{first['input']}"
    assert shown == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"


def test_a_question_that_ppo_would_cut_is_refused(ground: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"instruction": "下一句是什么？", "input": letters, "output": "春" * 200} for letters in ("春", "夏" * 40)]
    (data / "rl_train.json").write_text(json.dumps(rows), encoding="utf-8")
    rendering = Rendering(ground / "base")
    fits = rendering.lengths([rendering.render([("user", f"下一句是什么？\n{'夏' * 40}")], ask=True)])[0] + 2  # the end
    assert posttrain_data.lint_questions(data / "rl_train.json", rendering, fits).longest == fits
    with pytest.raises(UserError, match=f"row 2: the question has {fits} tokens; .* Raise cutoff_len, now {fits - 1}"):
        posttrain_data.lint_questions(data / "rl_train.json", rendering, fits - 1)


def test_pairs_are_made_of_a_models_own_answers(ground: Path, sft: Path, tmp_path: Path) -> None:
    output = tmp_path / "reward_train.json"
    short = json.loads((ground / "data" / "sft_valid.json").read_text(encoding="utf-8"))
    (tmp_path / "asked.json").write_text(json.dumps(short[:16]), encoding="utf-8")
    judged_pairs.main([
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


@pytest.mark.slow
def test_ppos_adapter_merges(sft: Path, ppo: Path, tmp_path: Path) -> None:
    assert {p.name for p in ppo.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "posttrain.json"}
    assert json.loads((ppo / "posttrain.json").read_text(encoding="utf-8"))["versions"]["trl"] == "0.9.6"
    finish(start("merge", "--model", sft, "--adapter", ppo, "--output", tmp_path / "ppo"))
    gate = json.loads((tmp_path / "ppo" / "merge.json").read_text(encoding="utf-8"))
    assert gate["max_abs_diff"] <= 1e-5 < gate["max_abs_change"]


def measured(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    metrics = tmp_path / "metrics.json"
    finish(start(*arguments, "--seed", 5, env={"MYLLM_METRICS": str(metrics)}))
    return json.loads(metrics.read_text())


@pytest.mark.slow
def test_lora_sft_lowers_the_held_out_loss_and_merges(ground: Path, tmp_path: Path) -> None:
    adapter, quick = tmp_path / "adapter", ("--set", "per_device_train_batch_size=8", "--set", "num_train_epochs=2")
    options = ("--model", ground / "base", "--data", ground / "data", "--output", adapter)
    found = measured(tmp_path, "sft_lora", *options, *quick)
    assert found["eval_loss_after"] < found["eval_loss_before"] - 0.5
    finish(start("merge", "--model", ground / "base", "--adapter", adapter, "--output", tmp_path / "merged"))
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_reward_model_learns_the_held_out_pairs(reward: Path) -> None:
    found = work_metrics(reward)
    assert found["eval_loss_after"] < found["eval_loss_before"] - 0.03
    assert found["measure"] == "eval_accuracy" and found["measure_after"] > 5 + found["measure_before"]
    assert (reward / "value_head.safetensors").exists()


@pytest.mark.slow
def test_kto_widens_the_margin_of_good_answers(ground: Path, sft: Path, tmp_path: Path) -> None:
    options = ("--model", sft, "--data", ground / "data", "--output", tmp_path / "kto")
    found = measured(tmp_path, "kto", *options)
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
    pair_accuracy.main(["--model", str(sft), "--model", str(dpo), "--pairs", str(pairs), "--output", str(result)])
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
        posttrain.main(["merge", "--model", str(base), "--adapter", str(adapter), "--output", str(output)])
    assert not output.exists()


@pytest.mark.slow
def test_an_adapter_of_a_bfloat16_model_merges_in_float32_and_is_stored_in_bfloat16(
    ground: Path, tmp_path: Path
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
    posttrain.main(["merge", "--model", str(base), "--adapter", str(adapter), "--output", str(output)])
    gate = json.loads((output / "merge.json").read_text(encoding="utf-8"))
    assert gate["max_abs_diff"] <= merge_gate.MERGE_TOLERANCE < gate["max_abs_change"]
    assert gate["stored_in"] == chat_model.weights_type(output) == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    assert loaded.dtype == torch.bfloat16


# --- pair accuracy


def test_padding_does_not_change_a_log_probability(ground: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = ground / "base"
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).eval()
    rows = [
        {"instruction": "山", "input": "", "chosen": "水", "rejected": "风花雪月春夏秋冬"},
        {"instruction": "下一句是什么？", "input": "江湖", "chosen": "天地人心", "rejected": "云"},
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


def test_curves_are_thinned_to_their_ends() -> None:
    curve = [[float(step), 1.0] for step in range(1000)]
    assert len(posttrain_metrics.thin(curve)) == 200
    assert posttrain_metrics.thin(curve)[0] == curve[0] and posttrain_metrics.thin(curve)[-1] == curve[-1]
