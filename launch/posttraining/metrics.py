"""Read the metrics of a training from the tool's own files: losses, rewards, KL divergence, curves, speed.

Every recipe writes the same `<output>.work/metrics.json`. `measure` names the metric that the recipe should improve,
`higher_is_better` the direction; `measure_before` and `measure_after` are its values on held-out data. LLaMA-Factory
cannot evaluate PPO: there they are the means of the first and the last quarter of the training steps.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json
from launch.instructions.lint import Findings
from launch.posttraining.job import Job

CURVE_POINTS = 200
REWARD = re.compile(r"eval_rewards/.+/mean")  # TRL's name of a reward's mean over held-out answers
Curve = list[list[float]]
# The metric that a stage should improve (it has `_before` and `_after`), and whether higher is better.
MEASURES = {
    "sft": ("eval_loss", False),
    "pt": ("eval_loss", False),
    "rm": ("eval_accuracy", True),
    "dpo": ("eval_loss", False),
    "kto": ("eval_loss", False),
    "ppo": ("reward", True),
    "grpo": ("eval_reward", True),
}
# Curves on held-out data that a trainer logs, with their names and factors here (100: shares become percent).
EVALUATED = {
    "eval_loss": ("eval_loss", 1),
    "eval_accuracy": ("eval_accuracy", 100),  # of a reward model: pairs whose chosen answer has the higher reward
    "eval_rewards/accuracies": ("eval_reward_accuracy", 100),
    "eval_rewards/margins": ("eval_reward_margin", 1),
    "eval_reward": ("eval_reward", 1),
    "eval_kl": ("eval_kl", 1),
    "eval_completions/mean_length": ("eval_answer_tokens", 1),
}
TRAINED = {"rewards/accuracies": ("reward_accuracy", 100), "reward": ("reward", 1), "kl": ("kl", 1)}
PPO_TAGS = {"objective/kl": "kl", "env/reward_mean": "reward"}  # tags of TRL 0.9.6's TensorBoard events


def thin(curve: Curve, points: int = CURVE_POINTS) -> Curve:
    """At most `points` evenly spaced points of a curve, including the first and the last."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]


def curve_of(history: list[dict[str, Any]], key: str, factor: float = 1) -> Curve:
    """The points [step, value] of a key in the trainer's log, one per step, in order."""
    points = {entry["step"]: entry[key] for entry in history if isinstance(entry.get(key), (int, float))}
    return [[step, round(points[step] * factor, 6)] for step in sorted(points)]


def mean_of_end(curve: Curve, share: int, first: bool = False) -> float:
    """The mean of the last (or first) 1/`share` of a curve's points."""
    count = max(1, len(curve) // share)
    part = curve[:count] if first else curve[-count:]
    return round(sum(value for _, value in part) / len(part), 6)


def tensorboard_curves(folder: Path, tags: dict[str, str]) -> dict[str, Curve]:
    """Curves of the TensorBoard files below a folder; `tags` maps tags to names. Only they have LLaMA-Factory's KL."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {name: {} for name in tags.values()}
    for events in sorted(folder.rglob("events.out.tfevents.*")):
        accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in set(tags) & set(accumulator.Tags()["scalars"]):
            found[tags[tag]] |= {event.step: event.value for event in accumulator.Scalars(tag)}
    return {name: [[step, round(points[step], 6)] for step in sorted(points)] for name, points in found.items()}


def training_metrics(job: Job, data: dict[str, Findings], resumed_at: int, seconds: float) -> dict[str, Any]:
    """Losses, rewards, curves and speed, from trainer_state.json and the trainer's result files.

    `train_loss` is the mean of the last tenth of the curve, because the trainer's own value is wrong after a resume.
    `seconds` is the time of the whole command; it is used if the trainer reports none (PPO).

    Raises:
        UserError: a loss or the measure is NaN or infinite.
    """
    state = read_json(job.raw / "trainer_state.json")
    history = state["log_history"]
    metrics: dict[str, Any] = {"steps": state["global_step"], "resumed_at_step": resumed_at}
    losses = curve_of(history, "loss")
    if losses:
        metrics |= {"train_loss": mean_of_end(losses, 10), "loss_curve": thin(losses)}
    after = job.raw / "eval_results.json"  # the last evaluation runs after the state was saved
    if after.exists():
        history.append({"step": state["global_step"], **read_json(after)})
    for key, (name, factor) in EVALUATED.items():
        points = curve_of(history, key, factor)
        if points:
            metrics |= {f"{name}_after": points[-1][1], f"{name}_curve": thin(points)}
            if points[0][0] == 0:
                metrics[f"{name}_before"] = points[0][1]
    for key in sorted({key for entry in history for key in entry if REWARD.fullmatch(key)}):
        points, name = curve_of(history, key), "eval_" + key.split("/")[1].rpartition(".")[2]
        metrics |= {f"{name}_before": points[0][1], f"{name}_after": points[-1][1]}
    trained = {name: curve_of(history, key, factor) for key, (name, factor) in TRAINED.items()}
    if job.stage == "ppo":
        trained |= {n: c for n, c in tensorboard_curves(job.work / "tracking", PPO_TAGS).items() if c}
    for name, points in trained.items():
        if points:
            metrics |= {f"{name}_curve": thin(points), name: points[-1][1]}
            if job.stage in ("ppo", "grpo"):
                metrics[f"{name}_before"] = mean_of_end(points, 4, first=True)
                metrics[f"{name}_after"] = mean_of_end(points, 4)
                del metrics[name]
    measure, higher = MEASURES[job.stage]
    metrics |= {"measure": measure, "higher_is_better": higher}
    metrics |= {f"measure_{when}": metrics.get(f"{measure}_{when}") for when in ("before", "after")}
    for name in ("train_loss", "eval_loss_after", "measure_after"):
        if metrics.get(name) is not None and not math.isfinite(metrics[name]):
            raise UserError(f"{name} is {metrics[name]}: lower learning_rate, now in {job.yaml}")
    return metrics | speed(job, state, data[job.datasets()[0]], resumed_at, seconds)


def speed(job: Job, state: dict[str, Any], training: Findings, resumed_at: int, seconds: float) -> dict[str, Any]:
    """Rows and tokens per second of the training, without the tool's start-up time if the trainer reports it."""
    results = job.raw / "train_results.json"
    if results.exists():
        seconds = read_json(results)["train_runtime"]
    batch = state.get("train_batch_size") or job.settings.get("per_device_train_batch_size", 8)
    rows = (state["global_step"] - resumed_at) * batch * job.settings.get("gradient_accumulation_steps", 1)
    rows *= job.settings.get("ppo_buffer_size", 1) if job.stage == "ppo" else 1
    if job.stage not in ("ppo", "grpo"):
        rows = min(rows, training.examples * state["epoch"])
    found = {
        "train_rows": training.examples,
        "tokens_per_row": round(training.tokens / training.examples, 1),
        "train_seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds, 1),
    }
    if job.stage not in ("ppo", "grpo"):  # their tokens are generated by the model
        found["tokens_per_second"] = round(rows * training.tokens / training.examples / seconds)
    return found
