"""Parts `fidelity`, `learning` and `posttraining`: check that GPU training is correct, learns, and can be post-trained.

All three use the project's own commands, as a user's run does: `launch.pretraining.pretrain`, `converters.export`,
`launch.posttraining.posttrain`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, write_json
from benchmarks.gpu_proof.proof import Proof, Row, call, finish, lines, start, training_folder
from benchmarks.gpu_proof.speed import ONE_PROCESS
from launch.pretraining.training_log import log_of, read_history

LOSS_TOLERANCE = 1e-2  # nats in any step, bf16 on the GPU against bf16 on the CPU
FIDELITY_STEPS = 20
VALID_ROWS, ROWS_ON_CPU = 32, 200
SHORT_ANSWERS = (
    "per_device_train_batch_size=8", "num_generations=4", "max_completion_length=12", "per_device_eval_batch_size=32"
)  # fmt: skip
NEXT_LINE_BAR = 55.0  # percent; target accuracy of the part `learning` on a GPU
SAME_START = ("bf16=true", "use-cpu-initialization=true", "log-interval=1", "eval-iters=0", "eval-interval=100000")
# poetry-tiny's recipe with a model 20 times as large: 30.4M parameters with the demo's vocabulary of 4,096
LARGER = ("num-layers=9", "hidden-size=512", "ffn-hidden-size=1536", "num-attention-heads=8", "num-query-groups=4")
# 57M tokens: five epochs of the demo's corpus, in steps of 16,384 tokens
LEARNING = (
    "global-batch-size=128", "micro-batch-size=128", "train-iters=3500", "lr=2.0e-3", "min-lr=2.0e-5",
    "eval-interval=500", "eval-iters=10", "save-interval=3500", "log-interval=50", "exit-duration-in-mins=2",
)  # fmt: skip
LEARNING_ON_CPU = ("train-iters=12", "save-interval=12", "eval-interval=6", "eval-iters=1", "log-interval=2")


def data_of(proof: Proof) -> Path:
    """The run with the training text. Raises UserError if there is none."""
    if proof.data is None:
        raise UserError(
            "there is no training text: make it with `myllm run poetry-tiny --to tasks`, or pass a folder made by "
            "`make proof-gpu-wheels` with --extra"
        )
    return proof.data


def hardware_of(proof: Proof) -> tuple[str, tuple[str, ...]]:
    """The hardware file for one process on this machine, and the keys to replace in it."""
    return ("gpu-1-80gb", ()) if proof.on_gpu else ("cpu", ONE_PROCESS)


def pretraining(run: Path, hardware: str, *keys: str) -> list[str]:
    """Arguments of Python that train the demo's recipe with other hardware and keys."""
    sets = [part for key in keys for part in ("--set", key)]
    fixed = ["--model", "qwen2-tiny", "--training", "demo", "--hardware", hardware, "--run", str(run)]
    return ["-m", "launch.pretraining.pretrain", *fixed, *sets]


def export(proof: Proof, run: Path, deadline: float) -> dict[str, Any]:
    """Export a run's checkpoint with the parity check. Returns the parity figures."""
    model = run / "models" / "base"
    arguments = ["-m", "converters.export", "--checkpoint", str(run / "checkpoints"), "--tokenizer"]
    log = run / "export.log"
    call(proof, *arguments, str(run / "tokenizer"), "--output", str(model), log=log, deadline=deadline)
    return dict(read_json(model / "parity.json"))


def asked(proof: Proof, *arguments: str, log: Path, deadline: float) -> dict[str, Any]:
    """Run `benchmarks.gpu_proof.exported` and return its result."""
    found: dict[str, Any] = {}
    for line in lines(proof, "-m", "benchmarks.gpu_proof.exported", *arguments, log=log, deadline=deadline):
        if line.startswith('{"found"'):
            found = json.loads(line)["found"]
    return found


def fidelity(proof: Proof, deadline: float) -> Iterator[Row]:
    """Train the same steps in bf16 on the device and on the CPU; then export the device's checkpoint.

    Without a GPU both run on the CPU, with different micro batches, so that sums are in a different order there too.
    """
    data, folder = data_of(proof), proof.work / "fidelity"
    device, reference = training_folder(data, folder / "device"), training_folder(data, folder / "cpu")
    keys = (*SAME_START, f"train-iters={FIDELITY_STEPS}", f"save-interval={FIDELITY_STEPS}")
    hardware, more = hardware_of(proof)
    if not proof.on_gpu:
        more = (*more, "micro-batch-size=8")
    beside = pretraining(reference, "cpu", *keys, *ONE_PROCESS)
    processes = {
        device: start(proof, *pretraining(device, hardware, *keys, *more), log=folder / "device.log"),
        reference: start(proof, *beside, log=folder / "cpu.log", hide_gpu=True),
    }
    losses = []
    for run, process in processes.items():
        finish(process, folder / f"{run.name}.log", deadline)
        losses.append([loss for _, loss in read_history(log_of(run / "checkpoints"))["loss"]])
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    yield {
        "what": "losses",
        "ok": difference <= LOSS_TOLERANCE,
        "steps": FIDELITY_STEPS,
        "max_difference": round(difference, 5),
        "bar": LOSS_TOLERANCE,
        "device": losses[0],
        "cpu": losses[1],
    }
    figures = export(proof, device, deadline)
    proof.facts.setdefault("model", device / "models" / "base")
    yield {"what": "converter's gate", "ok": figures["passed"], **figures}
    found = asked(proof, "logits", str(device / "models" / "base"), log=folder / "logits.log", deadline=deadline)
    yield {"what": "bf16 logits against fp32", "ok": True, **found}


def learning(proof: Proof, deadline: float) -> Iterator[Row]:
    """Train a larger model on the demo's corpus, export it with the parity check, score it on the demo's questions."""
    data, folder = data_of(proof), proof.work / "learning"
    run, (hardware, more) = training_folder(data, folder / "run"), hardware_of(proof)
    keys = (*LARGER, *LEARNING) if proof.on_gpu else LEARNING_ON_CPU
    log = folder / "pretrain.log"
    call(proof, *pretraining(run, hardware, *keys, *more), log=log, deadline=deadline)
    history = read_history(log_of(run / "checkpoints"))
    yield {
        "what": "loss curve",
        "ok": history["loss"][-1][1] < history["loss"][0][1],
        "iterations": int(history["loss"][-1][0]),
        "loss": history["loss"],
        "valid": history["valid"],
        "milliseconds": statistics.median(value for _, value in history["milliseconds"]),
    }
    figures = export(proof, run, deadline)
    model = run / "models" / "base"
    proof.facts["model"] = model
    limit = [] if proof.on_gpu else ["40"]
    questions = str(next((data / "tasks").glob("*.jsonl")))
    found = asked(proof, "questions", str(model), questions, *limit, log=folder / "questions.log", deadline=deadline)
    yield {
        "what": "next line",
        "ok": found["accuracy"] >= NEXT_LINE_BAR if proof.on_gpu else True,
        "bar": NEXT_LINE_BAR if proof.on_gpu else None,
        "parameters": parameters_of(model),
        "gate_max_abs_diff": figures["max_abs_diff"],
        **found,
    }


def posttraining(proof: Proof, deadline: float) -> Iterator[Row]:
    """Run LoRA SFT in bf16 by LLaMA-Factory, the merge with its check, and one step of GRPO by TRL."""
    data, folder = data_of(proof), proof.work / "posttraining"
    if (base := proof.facts.get("model")) is None:
        raise UserError("there is no exported model: run the part fidelity or learning too, without --skip")
    hardware = "gpu-1" if proof.on_gpu else "cpu"
    steps, answers = (100, ()) if proof.on_gpu else (3, SHORT_ANSWERS)
    tasks = ("--data", str(few_rows(data / "tasks", folder / "tasks", proof.on_gpu)), "--hardware", hardware)

    def posttrain(recipe: str, model: Path, output: Path, *more: str) -> dict[str, Any]:
        arguments = [
            "-m",
            "launch.posttraining.posttrain",
            recipe,
            "--model",
            str(model),
            "--output",
            str(output),
            *more,
        ]
        call(proof, *arguments, log=folder / f"{output.name}.log", deadline=deadline, posttraining=True)
        return dict(read_json(output.with_name(f"{output.name}.work") / "metrics.json"))

    adapter, merged = folder / "sft-adapter", folder / "sft"
    found = posttrain("sft_lora", base, adapter, *tasks, "--set", f"max_steps={steps}")
    yield {"what": f"SFT through LoRA, {steps} steps", "ok": True, **plain(found)}
    found = posttrain("merge", base, merged, "--adapter", str(adapter))
    yield {"what": "merge gate", "ok": True, **plain(found)}
    keys = ("max_steps=1", "logging_steps=1", *answers)
    found = posttrain("grpo", merged, folder / "grpo", *tasks, *(part for key in keys for part in ("--set", key)))
    yield {"what": "a step of GRPO", "ok": True, **plain(found)}


def few_rows(tasks: Path, folder: Path, on_gpu: bool) -> Path:
    """Copy the tasks with short validation files, because evaluation by generation takes long. Returns `folder`."""
    folder.mkdir(parents=True)
    for path in (*tasks.glob("sft_*.json"), *tasks.glob("rl_*.json")):
        rows = read_json(path)
        held_out = path.stem.endswith("_valid")
        write_json(folder / path.name, rows[:VALID_ROWS] if held_out else rows[: None if on_gpu else ROWS_ON_CPU])
    return folder


def parameters_of(model: Path) -> int:
    """Number of parameters of a Hugging Face folder, from the headers of its files."""
    from safetensors import safe_open

    total = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, "np") as stored:
            total += sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())
    return total


def plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a stage's metrics, without its curves."""
    return {key: value for key, value in metrics.items() if isinstance(value, int | float | bool)}
