"""The whole chain, shortened, through every real tool; and the same bytes whatever was killed on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.files import read_json, sha256
from launch.pretraining.checkpoints import LATEST
from launch.pretraining.training_log import log_of, read_history
from launch.scoring import model_probe

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = {
    "limit": 8000,
    "vocab": 2048,
    "train_iters": 20,
    "sft_examples": 128,
    "dpo_pairs": 64,
    "questions": 40,
    "sft_set": "--set logging_steps=1",  # so few steps, and still a curve
    "dpo_set": "--set logging_steps=1",
}
SETS = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]

pytestmark = pytest.mark.slow


def myllm(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "launch.cli", "run", "poetry-tiny", "--run-folder", str(folder), *SETS, *options]


def finish(command: list[str]) -> str:
    result = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "short"
    finish(myllm(folder))
    return folder


def test_every_stage_ran_and_every_gate_passed(whole_run):
    report = read_json(whole_run / "report.json")
    assert {stage["name"]: stage["status"] for stage in report["stages"]} == {
        name: "done"
        for name in (
            "download extract simplify clean deduplicate tokenizer binning tasks decontaminate pretrain convert sft "
            "dpo serve score"
        ).split()
    }
    assert report["gates"]["convert"]["max_abs_diff"] <= 1e-4
    assert report["gates"]["convert"]["argmax_agreement"] == 100
    assert report["gates"]["serve"]["identical"] == report["gates"]["serve"]["prompts"] > 0
    found = {(score["model"], score["suite"]) for score in report["scores"]}
    assert {(model, "next_line") for model in ("base", "sft", "dpo")} <= found
    assert {s["decontamination"] for s in report["scores"] if s["suite"] == "next_line"} == {
        "checked, 0 documents removed"
    }
    assert {("sft", "preference_pairs"), ("dpo", "preference_pairs"), ("dpo", "verse_form")} <= found
    for score in report["scores"]:
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 100 and score["n"] > 0
    assert {row["source"] for row in report["datasets"]} >= {"poems-train", "poems-valid", "zhwiki-sample-train"}
    assert {"megatron-core", "llamafactory", "vllm", "opencompass"} <= set(report["versions"])
    page = (whole_run / "report.html").read_text()
    assert page.count("<svg") == 6, "loss, throughput, gradient norm, rate, SFT, DPO"
    assert not re.search(r"<script|<link|src=", page), "the page must need nothing beside itself"


def test_exports_are_the_same_in_transformers_4_and_5(whole_run):
    models = ("base", "sft", "dpo")
    for model, found in zip(
        models, model_probe.compare(*(whole_run / "models" / name for name in models)), strict=True
    ):
        assert [version.split(".")[0] for version in found["transformers"]] == ["4", "5"]
        assert found["eos_token"] == ("<|endoftext|>" if model == "base" else "<|im_end|>")
        assert len(found["eos_token_id"]) == (1 if model == "base" else 2)


def test_it_learned_something(whole_run):
    stages = {stage["name"]: stage["metrics"] for stage in read_json(whole_run / "report.json")["stages"]}
    assert stages["pretrain"]["valid_loss"] < stages["pretrain"]["uniform_loss"] - 0.5
    assert stages["sft"]["eval_loss_after"] < stages["sft"]["eval_loss_before"]


def test_run_again_does_nothing(whole_run):
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*.safetensors")}
    output = finish(myllm(whole_run, "--to", "score"))
    assert output.count("done before, skipped") == 15
    assert {path: path.stat().st_mtime_ns for path in whole_run.rglob("*.safetensors")} == before


def test_killed_in_three_stages_it_finishes_with_the_same_bytes(whole_run, tmp_path):
    """One run, killed in each of three stages, and every time started again with the same command."""
    folder = tmp_path / "short"
    for stage in ("simplify", "tokenizer", "binning"):
        process = subprocess.Popen(
            myllm(folder, "--to", "decontaminate"), cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL
        )
        log = folder / "logs" / f"{stage}.log"
        while not log.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / "manifests" / f"{stage}.json").exists()
    finish(myllm(folder, "--to", "decontaminate"))
    for part in ("corpus", "tokenizer", "tasks"):
        assert sha256(folder / part) == sha256(whole_run / part), part
    for file in sorted((whole_run / "dataset").glob("*.bin")) + sorted((whole_run / "dataset").glob("*.idx")):
        assert sha256(folder / "dataset" / file.name) == sha256(file), file.name


def training(whole_run: Path, folder: Path, *replaced: str) -> list[str]:
    """A pretraining command on the whole run's tokenizer and dataset, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("tokenizer", "dataset"):
        if not (folder / part).exists():
            shutil.copytree(whole_run / part, folder / part)
    command = [
        sys.executable,
        "-m",
        "launch.pretraining.pretrain",
        "--model",
        "qwen2-tiny",
        "--training",
        "demo",
        "--run",
        str(folder),
    ]
    return [*command, *(part for item in ("train-iters=20", *replaced) for part in ("--set", item))]


def losses(folder: Path) -> list[list[float]]:
    return read_history(log_of(folder / "checkpoints"))["loss"]


def test_the_same_seed_gives_the_same_loss_and_a_kill_does_not_change_it(whole_run, tmp_path):
    folder = tmp_path / "killed"
    command = training(whole_run, folder, "save-interval=5")
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL)
    tracker = folder / "checkpoints" / LATEST
    while not tracker.exists():
        assert process.poll() is None
        time.sleep(0.02)
    mark = str(folder).encode()

    def ranks() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes()
            except OSError:
                continue
            if b"pretraining/worker.py" in line and mark in line:
                found.append(entry.parent.name)
        return found

    assert len(ranks()) >= 2
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while ranks() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ranks(), "a rank outlived its launcher"
    finish(command)
    assert losses(folder)[-1] == losses(whole_run)[-1]


def test_tensor_parallel_2_trains_the_same_and_converts(whole_run, tmp_path):
    folder = tmp_path / "tp2"
    layout = (
        "tensor-model-parallel-size=2",
        "pipeline-model-parallel-size=1",
        "decoder-first-pipeline-num-layers=false",
    )
    finish(training(whole_run, folder, *layout))
    assert losses(folder)[-1][1] == pytest.approx(losses(whole_run)[-1][1], abs=0.2)  # another initialisation
    export = [sys.executable, "-m", "converters.export", "--checkpoint", str(folder / "checkpoints")]
    finish([*export, "--tokenizer", str(folder / "tokenizer"), "--output", str(folder / "model")])
    assert read_json(folder / "model" / "parity.json")["passed"]


def test_llama2_interleaved_with_distributed_optimizer_converts_and_serves(whole_run, tmp_path):
    """Trained by Megatron as Llama 2, two chunks a rank, then exported, then asked by vLLM: greedy tokens equal."""
    folder = tmp_path / "llama2"
    architecture = ("add-qkv-bias=false", "untie-embeddings-and-output-weights=true")
    layout = (
        "decoder-first-pipeline-num-layers=false",
        "num-layers-per-virtual-pipeline-stage=1",
        "use-distributed-optimizer=true",
    )
    finish(training(whole_run, folder, *architecture, *layout))
    options = ["--checkpoint", str(folder / "checkpoints"), "--tokenizer", str(folder / "tokenizer")]
    finish([sys.executable, "-m", "converters.export", *options, "--output", str(folder / "model")])
    assert read_json(folder / "model" / "config.json")["architectures"] == ["LlamaForCausalLM"]
    assert read_json(folder / "model" / "parity.json")["passed"]
    options = ["--model", str(folder / "model"), "--prompts", str(whole_run / "tasks" / "gate_prompts.json")]
    finish([sys.executable, "-m", "launch.serving.gate", *options, "--output", str(folder / "serve")])
    served = read_json(folder / "serve" / "serve.json")
    assert served["identical"] == served["prompts"] > 0


def test_a_damaged_checkpoint_makes_no_model(whole_run, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(whole_run / "checkpoints", checkpoints)
    shard = next(checkpoints.rglob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:1000])
    command = [sys.executable, "-m", "converters.export", "--checkpoint", str(checkpoints)]
    command += ["--tokenizer", str(whole_run / "tokenizer"), "--output", str(tmp_path / "model")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "model").exists()


def test_the_gate_refuses_a_model_that_differs(whole_run, tmp_path):
    """A weight is changed behind the converter's back: the logits gate must catch it and leave the evidence."""
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from converters import export\nfrom converters.architectures import qwen2\n"
        "right = qwen2.config\n"
        "def wrong(shape):\n"
        "    found = right(shape)\n"
        "    found['rope_theta'] = 500.0\n"
        "    found['rope_parameters'] = {'rope_type': 'default', 'rope_theta': 500.0}\n"
        "    return found\n"
        "qwen2.config = wrong\n"
        "export.export(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))\n"
    )
    target = tmp_path / "model"
    command = [sys.executable, "-c", script, str(whole_run / "checkpoints"), str(whole_run / "tokenizer"), str(target)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert "differs from the original" in result.stderr
    assert not target.exists()
    evidence = json.loads(target.with_name("model.parity-failed.json").read_text())
    assert evidence["max_abs_diff"] > 1e-4 and not evidence["passed"]
