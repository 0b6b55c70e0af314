"""Run every post-training stage on the demo's model with three seeds, and test if it improves its metric beyond noise.

    .venv/bin/myllm run poetry-tiny && .venv/bin/python -m examples.poetry.results    # or: make results

Runs the pipeline `poetry-tiny-posttrain` once per seed in `runs/posttrain-seed-N` (finished stages are skipped), serves
every model of the first seed with vLLM, and writes docs/results-poetry-tiny.md. All metrics are on held-out data. A
change counts if it has the same sign for all seeds and its mean exceeds two standard deviations over the seeds.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_json, write_text
from artifacts.layout import REPOSITORY, Run
from artifacts.processes import die_with_parent
from benchmarks.machine import describe
from launch.scoring import model_probe

RUN = REPOSITORY / "runs" / "poetry-tiny"
PAGE = REPOSITORY / "docs" / "results-poetry-tiny.md"
PIPELINE = "poetry-tiny-posttrain"
STAGES = ("sft", "sft_lora", "reward", "dpo", "kto", "ppo", "grpo")
REWARDS = ("verse_format", "line_length", "rhyme")  # of examples.poetry.rewards, with equal weights
CHATS = {"sft": "SFT", "ppo": "PPO", "grpo": "GRPO"}
FIGURE = "results-poetry-tiny.svg"


@dataclass(frozen=True)
class Row:
    """A metric of a stage on held-out data, before and after, one number per seed. `up`: higher is better."""

    stage: str
    measure: str
    up: bool
    before: list[float]
    after: list[float]
    beside: str = ""  # a remark, e.g. the KL from the initial model

    def changes(self) -> list[float]:
        return [after - before for before, after in zip(self.before, self.after)]

    def verdict(self) -> str:
        changes = [change if self.up else -change for change in self.changes()]
        if len(changes) < 2:
            return "one seed"
        noise = statistics.stdev(changes)
        return "yes" if min(changes) > 0 and statistics.mean(changes) > 2 * noise else "**no**"

    def markdown(self) -> str:
        def shown(values: list[float]) -> str:
            return " / ".join(f"{value:.4g}" for value in dict.fromkeys(values))

        changes = self.changes()
        noise = f"{statistics.stdev(changes):.2g}" if len(changes) > 1 else "–"
        return (
            f"| {self.stage} | {self.measure} {'↑' if self.up else '↓'} | {shown(self.before)} | {shown(self.after)} "
            f"| {statistics.mean(changes):+.3g} | {noise} | {self.verdict()} | {self.beside} |"
        )


def do(*command: object) -> None:
    """Print a command of the project and run it. Raises UserError if it fails."""
    words = [str(word) for word in command]
    print("$ " + shlex.join(words), flush=True)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, *words[1:]], cwd=REPOSITORY, env=variables, preexec_fn=die_with_parent)
    if result.returncode:
        raise UserError(f"`{shlex.join(words)}` failed: see its output above")


def shorter(path: Path) -> Path:
    """The path relative to the repository, as a user types it, so that a run made by hand counts as done."""
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def train_all(origin: Run, folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Run every stage with one seed. Returns the metrics by stage."""
    do("python", "-m", "launch.cli", "run", PIPELINE, "--run-folder", shorter(folder), "--set", f"seed={seed}",
       "--set", f"origin={shorter(origin.folder)}")  # fmt: skip
    run = Run(folder)
    found: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        adapter = (run.models / f"{stage}-adapter").exists()
        found[stage] = read_json(run.models / f"{stage}{'-adapter' if adapter else ''}.work" / "metrics.json")
        if adapter:
            found[stage]["merge"] = read_json(run.models / f"{stage}.work" / "metrics.json")
    pairs = {row["model"]: row["accuracy"] for row in read_json(run.evaluation / "pairs.json")["models"]}
    for stage in ("dpo", "kto"):
        found[stage]["pairs"] = (pairs["sft"], pairs[stage])
    for row in read_json(run.evaluation / "rewards.json")["models"]:
        rewards = {key.rpartition(".")[2]: value["mean"] for key, value in row["rewards"].items()}
        rewards["rewards"] = sum(rewards[key] for key in REWARDS)
        found[row["model"]]["judged"] = {**row, **rewards, "kl": row["kl"]["mean"]}
    return found


def exports(run: Run) -> list[str]:
    """Check every chat model in transformers 4 and 5, and vLLM against Hugging Face's `generate`. Returns a table."""
    lines = ["| model | transformers | logits, largest difference | eos | rope theta | tied | vLLM's tokens equal |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name in (stage for stage in STAGES if stage != "reward"):
        served = run.evaluation / f"served-{name}"
        if not (served / "serve.json").exists():
            do("python", "-m", "launch.serving.gate", "--model", run.models / name, "--output", served,
               "--prompts", run.folder / "tasks" / "gate_prompts.json")  # fmt: skip
        gate, read = read_json(served / "serve.json"), model_probe.compare(run.models / name)[0]
        lines.append(
            f"| {name} | {' and '.join(read['transformers'])} | {read['max_abs_diff']:.1e} | {read['eos_token_id']} "
            f"| {read['rope_theta']:g} | {'yes' if read['tied'] else 'no'} | {gate['identical']} of {gate['prompts']} |"
        )
    return lines


def rows_of(seeds: list[dict[str, dict[str, Any]]]) -> list[Row]:
    def each(*path: Any) -> list[float]:
        found: list[Any] = list(seeds)
        for key in path:
            found = [value[key] for value in found]
        return found

    rows = [
        Row(stage, "held-out loss", False, each(stage, "eval_loss_before"), each(stage, "eval_loss_after"))
        for stage in ("sft", "sft_lora")
    ]
    told_apart = each("reward", "eval_accuracy_before"), each("reward", "eval_accuracy_after")
    rows.append(Row("reward", "held-out pairs ranked correctly, %", True, *told_apart, "chance 50"))
    for stage in ("dpo", "kto"):
        likelier = each(stage, "pairs", 0), each(stage, "pairs", 1)
        rows.append(Row(stage, "held-out pairs, chosen answer more likely, %", True, *likelier, "chance 50"))
    for stage, measure, title in (
        ("ppo", "reward_model", "reward model's mean on held-out requests"),
        ("grpo", "rewards", "format + length + rhyme on held-out requests (0 to 3)"),
    ):
        far = each(stage, "judged", "kl")
        before, after = each("sft", "judged", measure), each(stage, "judged", measure)
        rows.append(Row(stage, title, True, before, after, f"KL {min(far):.2g} to {max(far):.2g} nats per answer"))
    return rows


def merge_table(seeds: list[dict[str, dict[str, Any]]]) -> list[str]:
    lines = [
        "| adapter | logits, largest difference | adapter's largest change of a logit | rewards, largest difference |",
        "|---|---|---|---|",
    ]
    for stage in ("sft_lora", "reward", "dpo", "kto", "ppo"):
        gates = [found[stage]["merge"] for found in seeds]
        reward = max(gate.get("max_reward_diff", -1.0) for gate in gates)
        lines.append(
            f"| {stage} | {max(gate['max_abs_diff'] for gate in gates):.1e} "
            f"| {max(gate['max_abs_change'] for gate in gates):.2g} | {f'{reward:.1e}' if reward >= 0 else ''} |"
        )
    return lines


def reward_table(found: dict[str, dict[str, Any]]) -> list[str]:
    names = (*REWARDS, "reward_model", "kl", "answer_tokens")
    lines = ["| model | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for stage, title in CHATS.items():
        judged = found[stage]["judged"]
        lines.append(f"| {title} | " + " | ".join(f"{judged[name]:.3g}" for name in names) + " |")
    return lines


def answers_table(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| request | " + " | ".join(CHATS.values()) + " |", "|---|" + "---|" * len(CHATS)]
    shown = [found[stage]["judged"]["samples"] for stage in CHATS]
    for place, first in enumerate(shown[0]):
        answers = [" ".join(rows[place]["text"].split()).replace("|", "\\|") for rows in shown]
        lines.append(f"| {first['prompt']} | " + " | ".join(answers) + " |")
    return lines


def figure(seeds: list[dict[str, dict[str, Any]]]) -> str:
    """Training curves of each stage, one per seed, as SVG."""
    import io

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "results"
    import matplotlib.pyplot as plt

    curves = (("sft", "loss"), ("sft_lora", "loss"), ("reward", "loss"),
              ("dpo", "loss"), ("ppo", "reward"), ("grpo", "reward"))  # fmt: skip
    drawn, axes = plt.subplots(2, 3, figsize=(12, 6))
    for place, (stage, what) in zip(axes.flat, curves):
        for number, found in enumerate(seeds):
            points = found[stage].get(f"{what}_curve", [])
            place.plot([x for x, _ in points], [y for _, y in points], linewidth=0.9, label=f"seed {number + 1}")
        place.set_title(f"{stage}: {what}")
        place.set_xlabel("step")
        place.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    drawn.tight_layout()
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(drawn)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def page(seeds: list[dict[str, dict[str, Any]]], exported: list[str], command: str) -> str:
    lines = ["# Post-training, measured: poetry-tiny", ""]
    trained = sum(stage.get("tool_seconds", 0) for found in seeds for stage in found.values())
    lines += [f"`{command}`, on a finished `myllm run poetry-tiny`; training {trained / 60:.0f} minutes.", ""]
    lines += [describe("llamafactory", "trl", "transformers", "peft", "torch"), ""]
    lines += [" ".join((__doc__ or "").split("\n\n")[-1].split()), ""]
    lines += [
        "| stage | held-out metric | before | after, per seed | mean change | standard deviation | beyond noise | |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|", *(row.markdown() for row in rows_of(seeds)), ""]
    lines += ["![training curves, one line per seed](images/results-poetry-tiny.svg)", ""]
    lines += ["## Merged adapters against the adapters", "", *merge_table(seeds), ""]
    lines += ["## Exported models", "", "First seed.", "", *exported, ""]
    lines += ["## Rewards of the answers", ""]
    lines += ["Held-out requests for verse, four answers each at temperature 1, first seed. `kl`: nats per answer"]
    lines += ["from the SFT model.", "", *reward_table(seeds[0]), ""]
    lines += ["## Answers before and after", "", "Held-out requests, one answer each, first seed.", ""]
    lines += answers_table(seeds[0])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN, help="folder of a finished run of poetry-tiny")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--output", type=Path, default=PAGE, help="page to write (default docs/results-poetry-tiny.md)")
    a = parser.parse_args()
    if not (Run(a.run).models / "base" / "config.json").exists():
        raise UserError(f"{Run(a.run).models / 'base'} does not exist: run `myllm run poetry-tiny --to convert` first")
    folders = [REPOSITORY / "runs" / f"posttrain-seed-{seed}" for seed in range(1, a.seeds + 1)]
    seeds = [train_all(Run(a.run), folder, seed) for seed, folder in enumerate(folders, start=1)]
    command = f"python -m examples.poetry.results{f' --seeds {a.seeds}' if a.seeds != 3 else ''}"
    write_text(a.output, page(seeds, exports(Run(folders[0])), command))
    write_text(a.output.parent / "images" / FIGURE, figure(seeds))
    print("\n".join(row.markdown() for row in rows_of(seeds)))
    print(f"{a.output} written")


if __name__ == "__main__":
    run_main(main)
