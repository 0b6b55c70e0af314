"""Post-training with LLaMA-Factory: `python -m launch.posttrain RECIPE --model DIR --output DIR ...`

    python -m launch.posttrain sft_full --model runs/r/models/base --data runs/r/posttrain --output runs/r/models/sft
    python -m launch.posttrain dpo --model runs/r/models/sft --data runs/r/posttrain --output runs/r/adapters/dpo
    python -m launch.posttrain merge --model runs/r/models/sft --adapter runs/r/adapters/dpo --output runs/r/models/dpo

RECIPE is a file of `llamafactory_configs/`, whose keys are LLaMA-Factory's own; `--hardware` adds a file of
`llamafactory_configs/hardware/`, `--set key=value` replaces single keys. What LLaMA-Factory leaves to chance is done
around it: the data are checked row by row (it drops bad rows and exits 0), keys are checked before a model loads, a
half-written checkpoint is passed over (it dies of one), a merged model is compared with its adapter, and the output
folder appears only when it is whole and right for transformers 4 and 5 and vLLM.

Beside the output lies `<output>.work/`: the rendered YAML, LLaMA-Factory's own output with its checkpoints, the log.
The same command again resumes from the newest whole checkpoint, or does nothing when the output is finished; anything
else than the same inputs and settings starts afresh. Torch and LLaMA-Factory are not imported before they are needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import atomic_folder, read_json, sha256, write_json, write_text
from artifacts.stage import report_metrics
from launch.chat_data import columns
from launch.chat_model import check_adapter, check_model, fill_adapter, fill_chat_model
from launch.lint_data import KIND_NAMES, Findings, Rendering, lint
from launch.merge_gate import (
    CHECK_CONVERSATIONS,
    MERGE_PRECISIONS,
    MERGE_TOLERANCE,
    adapter_logits,
    largest_difference,
    merged_logits,
)
from launch.posttrain_recipe import recipe_settings

CURVE_POINTS = 200
PROVENANCE = "posttrain.json"


@dataclass(frozen=True)
class Job:
    """One command line, resolved: which recipe, on what, to where."""

    recipe: str
    model: Path
    output: Path
    data: Path | None
    adapter: Path | None
    settings: dict[str, Any]  # recipe, hardware file, --set and --seed; no paths of this machine
    exports: bool  # `llamafactory-cli export` instead of `train`

    @property
    def work(self) -> Path:
        return self.output.with_name(self.output.name + ".work")

    @property
    def raw(self) -> Path:
        """LLaMA-Factory's own output folder."""
        return self.work / "output"

    @property
    def yaml(self) -> Path:
        return self.work / f"{self.recipe}.yaml"

    @property
    def gives_adapter(self) -> bool:
        return not self.exports and self.settings.get("finetuning_type") == "lora"

    def datasets(self) -> list[str]:
        names = [self.settings.get(key) for key in ("dataset", "eval_dataset")]
        return [part.strip() for name in names if name for part in str(name).split(",")]


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


KINDS = {"sft": "sft", "pt": "sft", "ppo": "sft", "rm": "pairs", "dpo": "pairs", "kto": "kto"}  # data, by stage


def check_data(job: Job) -> dict[str, Findings]:
    """Check every data file of the recipe, in whatever form it is; warns of rows that will be cut or were trained on.

    Raises:
        UserError: naming file, row and fault of the first bad row; LLaMA-Factory would drop it, or train on it.
    """
    assert job.data is not None
    cutoff = int(job.settings.get("cutoff_len", 2048))
    positions = read_json(job.model / "config.json").get("max_position_embeddings", cutoff)
    if cutoff > positions:
        raise UserError(f"cutoff_len is {cutoff}, but {job.model} was made for {positions} positions: lower cutoff_len")
    rendering = Rendering(job.model)
    wanted = KINDS[job.settings["stage"]]
    found = {}
    for name in job.datasets():
        path = job.data / f"{name}.json"
        found[name] = checked = lint(path, rendering, cutoff)
        if checked.form.kind != wanted:
            raise UserError(
                f"{path} holds {KIND_NAMES[checked.form.kind]}, and {job.recipe} wants {KIND_NAMES[wanted]}"
            )
        checked.refuse()
        if checked.too_long:
            print(f"warning: {path}: {len(checked.too_long)} answers end beyond cutoff_len {cutoff} and will be cut")
    held_out = [n for n in found if n in str(job.settings.get("eval_dataset") or "").replace(" ", "").split(",")]
    for name in held_out:
        leaked = sum(len(found[name].keys.keys() & found[n].keys.keys()) for n in found if n not in held_out)
        if leaked:
            print(f"warning: {job.data / name}.json: {leaked} rows are in the training data too")
    return found


def fingerprint(job: Job) -> str:
    """A hash of everything that decides the result: settings, bytes of model, adapter and data, and versions."""
    parts: dict[str, Any] = {"recipe": job.recipe, "settings": job.settings, "versions": versions()}
    parts["model"] = sha256(job.model)
    if job.adapter:
        parts["adapter"] = sha256(job.adapter)
    if job.data:
        parts["data"] = {name: sha256(job.data / f"{name}.json") for name in job.datasets()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def versions() -> dict[str, str]:
    found = {}
    for package in ("llamafactory", "transformers", "trl", "peft", "datasets", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The work folder


def render(job: Job) -> str:
    """The YAML that LLaMA-Factory gets: the settings and the paths of this run."""
    import yaml

    paths = {"model_name_or_path": str(job.model)}
    if job.adapter:
        paths["adapter_name_or_path"] = str(job.adapter)
    if job.exports:
        paths["export_dir"] = str(job.raw)
    else:
        paths |= {
            "dataset_dir": str(job.work),
            "output_dir": str(job.raw),
            "cache_dir": str(job.work / "cache"),
        }
    return yaml.safe_dump({**paths, **job.settings}, allow_unicode=True, sort_keys=False)


def dataset_info(job: Job) -> dict[str, Any]:
    """LLaMA-Factory's description of the data files: their names, form and columns."""
    assert job.data is not None
    files = {name: job.data / f"{name}.json" for name in job.datasets()}
    return {name: {"file_name": str(file), **columns(file)} for name, file in files.items()}


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: weights, optimizer, and the trainer's state, all readable."""
    from safetensors import SafetensorError, safe_open

    weights = [p for p in checkpoint.glob("*.safetensors")]
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if not weights or state["global_step"] != int(checkpoint.name.rpartition("-")[2]):
            return False
        for file in weights:
            with safe_open(file, framework="numpy") as tensors:  # refuses a file shorter than its header says
                tensors.keys()
        for name in ("optimizer.pt", "scheduler.pt"):  # zip files with a checksum for each tensor
            with zipfile.ZipFile(checkpoint / name) as archive:
                if archive.testzip() is not None:
                    return False
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def clean_checkpoints(raw: Path) -> int:
    """Delete half-written checkpoints; returns the step of the newest whole one, 0 when there is none."""
    newest = 0
    for checkpoint in raw.glob("checkpoint-*"):
        if is_whole(checkpoint):
            newest = max(newest, int(checkpoint.name.rpartition("-")[2]))
        else:
            print(f"{checkpoint.name} is half written: deleted")
            shutil.rmtree(checkpoint)
    return newest


def prepare_work(job: Job, mark: str) -> int:
    """Fill the work folder, keeping what an interrupted run of the same job left; returns the step to resume from."""
    marker = job.work / "fingerprint"
    if job.work.exists() and not (marker.is_file() and marker.read_text(encoding="utf-8").strip() == mark):
        print(f"{job.work.name} belongs to other inputs or settings: starting afresh")
        shutil.rmtree(job.work)
    job.work.mkdir(parents=True, exist_ok=True)
    write_text(marker, mark + "\n")
    write_text(job.yaml, render(job))
    if job.data:
        write_json(job.work / "dataset_info.json", dataset_info(job))
    if job.exports:
        shutil.rmtree(job.raw, ignore_errors=True)
        return 0
    if not any(job.raw.glob("checkpoint-*")):
        return 0
    return clean_checkpoints(job.raw)


# ---------------------------------------------------------------------------------------------------------------------
# Running LLaMA-Factory


def command(job: Job) -> list[str]:
    tool = Path(sys.executable).with_name("llamafactory-cli")
    return [str(tool), "export" if job.exports else "train", str(job.yaml)]


def added_environment() -> dict[str, str]:
    """What LLaMA-Factory gets besides the caller's own environment, whose OMP_WAIT_POLICY goes before ours.

    Offline; and idle threads sleep instead of spinning, because a spinning thread takes the core from the one it waits
    for when other processes share the cores.
    """
    return {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY") or "PASSIVE"}


def child_environment() -> dict[str, str]:
    """The environment of LLaMA-Factory; it keeps compiled bytecode, without which every start costs 10 s more."""
    environment = {**os.environ, **added_environment(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def follow_progress(log: Path, stop: threading.Event) -> None:
    """Print `progress N/M steps` from LLaMA-Factory's trainer_log.jsonl, at most once a second, until `stop` is set."""
    shown = ""
    while not stop.wait(1.0):
        try:
            last = log.read_text(encoding="utf-8").splitlines()[-1]
            entry = json.loads(last)
            line = f"progress {entry['current_steps']}/{entry['total_steps']} steps"
        except (OSError, IndexError, ValueError, KeyError):
            continue  # not there yet, or a line half written
        if line != shown:
            shown = line
            print(line, flush=True)


def run_tool(job: Job) -> float:
    """Run LLaMA-Factory, passing its output on and keeping it in `<output>.work/log`; returns seconds.

    It stays in this process's group, so that whoever kills the group kills it too. Raises UserError with the last
    line of its output when it fails.
    """
    log = job.work / "log"
    started = time.monotonic()
    stop = threading.Event()
    follower = threading.Thread(target=follow_progress, args=(job.raw / "trainer_log.jsonl", stop), daemon=True)
    tail = b""
    with log.open("ab") as kept:
        process = subprocess.Popen(
            command(job), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=child_environment(), bufsize=0
        )
        assert process.stdout is not None
        follower.start()
        try:
            while chunk := process.stdout.read(1 << 16):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                kept.write(chunk)
                tail = (tail + chunk)[-4000:]
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            stop.set()
            follower.join()
    if code:
        lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else (lines[-1] if lines else "no output")
        if code == -signal.SIGKILL:
            reason += " (out of memory? lower per_device_train_batch_size)"
        raise UserError(f"llamafactory-cli failed: {reason}; its log is {log}")
    return time.monotonic() - started


# ---------------------------------------------------------------------------------------------------------------------
# The output folder


# ---------------------------------------------------------------------------------------------------------------------
# Merging: the proof


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def thin(curve: list[list[float]], points: int = CURVE_POINTS) -> list[list[float]]:
    """At most `points` points of a curve, evenly spaced, the first and the last among them."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]


def training_metrics(job: Job, data: dict[str, Findings], resumed_at: int) -> dict[str, Any]:
    """Losses, curves and speed, from LLaMA-Factory's trainer_state.json and train_results.json.

    `train_loss` is the mean of the last tenth of the curve: the trainer's own is wrong after a resume.
    """
    state = read_json(job.raw / "trainer_state.json")
    history = state["log_history"]

    def curve(key: str, percent: bool = False) -> list[list[float]]:
        points = {entry["step"]: entry[key] for entry in history if key in entry}
        return [[step, round(points[step] * (100 if percent else 1), 6)] for step in sorted(points)]

    losses = curve("loss")
    metrics: dict[str, Any] = {"steps": state["global_step"], "resumed_at_step": resumed_at}
    if losses:
        last = losses[-max(1, len(losses) // 10) :]
        metrics["train_loss"] = round(sum(loss for _, loss in last) / len(last), 6)
        metrics["loss_curve"] = thin(losses)
        if not math.isfinite(metrics["train_loss"]):
            raise UserError(f"the loss is {metrics['train_loss']}: lower learning_rate ({job.yaml})")
    after = job.raw / "eval_results.json"  # the last evaluation comes after the state was saved
    if after.exists():
        history.append({"step": state["global_step"], **read_json(after)})
    validation = curve("eval_loss")
    if validation:
        metrics |= {"eval_loss_curve": thin(validation), "eval_loss_after": validation[-1][1]}
        if validation[0][0] == 0:
            metrics["eval_loss_before"] = validation[0][1]
    for key, name in (("rewards/accuracies", "reward_accuracy"), ("eval_rewards/accuracies", "eval_reward_accuracy")):
        points = curve(key, percent=True)
        if points:
            metrics |= {name: points[-1][1], f"{name}_curve": thin(points)}
    accuracy = curve("eval_accuracy", percent=True)  # of a reward model: pairs whose preferred answer it gives more
    if accuracy:
        metrics |= {"eval_accuracy_before": accuracy[0][1], "eval_accuracy_after": accuracy[-1][1]}
    margins = curve("eval_rewards/margins")
    if margins:
        metrics["eval_reward_margin"] = margins[-1][1]
    training = data[str(job.settings["dataset"]).split(",")[0].strip()]
    metrics["train_rows"], metrics["tokens_per_row"] = training.rows, round(training.tokens / training.rows, 1)
    seconds = read_json(job.raw / "train_results.json")["train_runtime"]
    batch = state.get("train_batch_size") or job.settings.get("per_device_train_batch_size", 8)
    rows = (state["global_step"] - resumed_at) * batch * job.settings.get("gradient_accumulation_steps", 1)
    rows = min(rows, training.rows * state["epoch"])
    metrics["train_seconds"] = round(seconds, 1)
    metrics["rows_per_second"] = round(rows / seconds, 1)
    metrics["tokens_per_second"] = round(rows * training.tokens / training.rows / seconds)
    return metrics


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def is_done(job: Job, mark: str) -> bool:
    try:
        return json.loads((job.output / PROVENANCE).read_text(encoding="utf-8"))["fingerprint"] == mark
    except (OSError, ValueError, KeyError, TypeError):
        return False


def provenance(job: Job, mark: str) -> dict[str, Any]:
    """What made the output; no seconds and no paths, so that the same inputs give the same bytes."""
    return {"fingerprint": mark, "recipe": job.recipe, "settings": job.settings, "versions": versions()}


def train(job: Job, mark: str, ids: dict[str, int], data: dict[str, Findings], resumed_at: int) -> dict[str, Any]:
    finished = job.work / "trained.json"  # survives a kill between the end of training and the output folder
    if finished.exists():
        metrics = read_json(finished)
    else:
        if resumed_at:
            print(f"resuming from step {resumed_at}", flush=True)
        seconds = run_tool(job)
        metrics = {**training_metrics(job, data, resumed_at), "tool_seconds": round(seconds, 1)}
        write_json(finished, metrics)
    with atomic_folder(job.output) as aside:
        if job.gives_adapter:
            fill_adapter(job.raw, aside)
        else:
            fill_chat_model(job.model, job.raw, aside, ids)
        write_json(aside / PROVENANCE, provenance(job, mark))
    for checkpoint in job.raw.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    shutil.rmtree(job.work / "cache", ignore_errors=True)
    return metrics


def merge(job: Job, mark: str, ids: dict[str, int]) -> dict[str, Any]:
    assert job.adapter is not None
    with ThreadPoolExecutor(1) as pool:
        expected = pool.submit(adapter_logits, job.model, job.adapter)  # while LLaMA-Factory loads
        seconds = run_tool(job)
        logits, moved = expected.result()
    with atomic_folder(job.output) as aside:
        fill_chat_model(job.model, job.raw, aside, ids)
        merged = merged_logits(job.model, aside)
        differences = {kind: largest_difference(logits[kind], merged[kind]) for kind in MERGE_PRECISIONS}
        difference = differences[MERGE_PRECISIONS[0]]
        gate = {
            "max_abs_diff": difference,
            "max_abs_diff_float32": differences["float32"],
            "arithmetic": MERGE_PRECISIONS[0],
            "tolerance": MERGE_TOLERANCE,
            "max_abs_change": moved,  # how far the adapter moved a logit: 0 would mean that it learned nothing
            "prompts": len(CHECK_CONVERSATIONS),
        }
        write_json(job.work / "merge.json", gate)
        if not difference <= MERGE_TOLERANCE:
            raise UserError(
                f"merged logits differ from the adapter's by {difference:.3g} (allowed {MERGE_TOLERANCE:g}): was "
                f"{job.adapter} trained on {job.model}? See {job.work / 'merge.json'}"
            )
        write_json(aside / "merge.json", gate)
        write_json(aside / PROVENANCE, provenance(job, mark))
    shutil.rmtree(job.raw)
    return {**gate, "tool_seconds": round(seconds, 1)}


def run(job: Job, dry_run: bool) -> None:
    ids = check_model(job.model)
    data: dict[str, Findings] = {}
    if job.adapter:
        check_adapter(job.adapter)
    if job.data:
        data = check_data(job)
    prefix = " ".join(f"{key}={value}" for key, value in added_environment().items())
    shown = f"{prefix} {shlex.join(command(job))}"
    if dry_run:
        print(f"# {job.yaml}\n{render(job)}\n{shown}")
        return
    mark = fingerprint(job)
    if is_done(job, mark):
        print(f"{job.output} is finished, with the same inputs and settings: nothing to do")
        known = job.work / "metrics.json"
        if known.exists():
            report_metrics(**read_json(known))
        return
    resumed_at = prepare_work(job, mark)
    print(f"rendered {job.yaml}\n+ {shown}", flush=True)
    metrics = merge(job, mark, ids) if job.exports else train(job, mark, ids, data, resumed_at)
    write_json(job.work / "metrics.json", metrics)
    report_metrics(**metrics)


def parse(argv: list[str] | None) -> tuple[Job, bool]:
    parser = argparse.ArgumentParser(prog="python -m launch.posttrain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", metavar="RECIPE", help="a file of llamafactory_configs/: sft_full, dpo, merge")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the model to start from")
    parser.add_argument("--data", type=Path, help="folder of <dataset>.json files (training recipes)")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter (recipe merge)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; <output>.work is the work folder")
    parser.add_argument("--hardware", default="cpu", help="a file of llamafactory_configs/hardware/ (default: cpu)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the recipe")
    parser.add_argument("--seed", type=int, help="seed of data order and initial weights (default: the recipe's)")
    parser.add_argument("--dry-run", action="store_true", help="print the YAML and the command, run nothing")
    options = parser.parse_args(argv)

    settings, exports = recipe_settings(options.recipe, options.hardware, options.set, options.seed)
    if exports and not options.adapter:
        raise UserError(f"{options.recipe} merges an adapter: give it with --adapter")
    if not exports and not options.data:
        raise UserError(f"{options.recipe} trains: give the folder of its data files with --data")

    def absolute(path: Path | None) -> Path | None:
        return Path(os.path.abspath(path)) if path else None

    job = Job(
        recipe=options.recipe,
        model=Path(os.path.abspath(options.model)),
        output=Path(os.path.abspath(options.output)),
        data=None if exports else absolute(options.data),
        adapter=absolute(options.adapter) if exports else None,
        settings=settings,
        exports=exports,
    )
    return job, options.dry_run


def main(argv: list[str] | None = None) -> int:
    job, dry_run = parse(argv)
    run(job, dry_run)
    return 0


if __name__ == "__main__":
    run_main(main)
