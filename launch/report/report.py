"""report.json for programs, report.html for people: stages, gates, curves, scores against chance, samples.

    myllm report runs/poetry-tiny

Reads the files that the stages wrote into the run's folder; it measures nothing itself. A stage of your own adds scores
by writing `eval/extra_scores/NAME.json`, a list of rows {"model", "suite", "metric", "value", "n", "low", "high" (in
percent), "chance" (or null), "protocol"}.
"""

from __future__ import annotations

import argparse
import io
from importlib import metadata
from pathlib import Path
from typing import Any

from artifacts.files import read_json, write_json, write_text
from artifacts.layout import ENVIRONMENTS, REPOSITORY, Run
from launch.pipeline.arguments import add_run_argument, find_run
from launch.pipeline.rehearsed import LAST_STAGE, RECORD
from launch.pipeline.runner import Manifest, read_manifest

TEMPLATE = Path(__file__).with_name("report.html.jinja")
VERSIONS = {
    "train": (
        "torch",
        "megatron-core",
        "transformers",
        "llamafactory",
        "trl",
        "peft",
        "tokenizers",
        "opencc",
        "wikiextractor",
    ),
    "eval": ("opencompass",),
    "serve": ("vllm",),
}
LOSS_COLOURS = {"train": "#2563eb", "valid": "#dc2626"}


def scores(run: Run) -> list[dict[str, Any]]:
    """Every score of the run: OpenCompass's, pair accuracy, rewards, and those of the pipeline's own stages."""
    found: list[dict[str, Any]] = []
    path = run.evaluation / "scores.json"
    if path.exists():
        found.extend(read_json(path))
    pairs = run.evaluation / "pairs.json"
    if pairs.exists():
        for row in read_json(pairs)["models"]:
            found.append(
                {
                    "model": row["model"],
                    "suite": "preference_pairs",
                    "metric": "accuracy",
                    "value": row["accuracy"],
                    "n": row["n"],
                    "low": row["low"],
                    "high": row["high"],
                    "chance": 50.0,
                    "protocol": "log-probability of the chosen answer above the rejected one's, held-out pairs",
                }
            )
    rewards = run.evaluation / "rewards.json"
    if rewards.exists():
        for row in read_json(rewards)["models"]:
            for name, value in row["rewards"].items():
                if "." in name and 0 <= value["low"] and value["high"] <= 1:  # a reward model's scale has no bounds
                    share = {key: 100 * value[key] for key in ("low", "high")}
                    found.append(
                        {
                            "model": row["model"],
                            "suite": "rewards",
                            "metric": name.rpartition(".")[2],
                            "value": 100 * value["mean"],
                            "n": value["n"],
                            **share,
                            "chance": None,
                            "protocol": "mean over held-out requests, answers drawn at temperature 1; "
                            f"{row['kl']['mean']:.2f} nats an answer from where it came",
                        }
                    )
    for path in sorted((run.evaluation / "extra_scores").glob("*.json")):
        found.extend(read_json(path))
    return found


def gates(run: Run) -> dict[str, Any]:
    result: dict[str, Any] = {}
    parity = run.models / "base" / "parity.json"
    if parity.exists():
        result["convert"] = read_json(parity)
    served = run.evaluation / "serve" / "serve.json"
    if served.exists():
        full = read_json(served)
        result["serve"] = {key: value for key, value in full.items() if not isinstance(value, (list, dict))}
    merge = run.models / "dpo" / "merge.json"
    if merge.exists():
        result["merge"] = read_json(merge)
    return result


def datasets(run: Run) -> list[dict[str, Any]]:
    """A row for each source of each split: documents, tokens, weight; none before the stage that blends them."""
    path = run.dataset / "blend_report.json"
    if not path.exists():
        return []
    return [
        {"split": split, "source": source, **row}
        for split, found in read_json(path).items()
        for source, row in found["sources"].items()
    ]


def data_cards(run: Run) -> list[tuple[str, str]]:
    """Source and figure of every corpus that `preprocess.corpora.pipeline` made in this run."""
    return [(path.parent.name, path.read_text(encoding="utf-8")) for path in run.corpus.glob("*/data_card.svg")]


def versions() -> dict[str, str]:
    """Versions of the tools, each from the environment that runs it; what is not installed is left out."""
    found = {}
    for name, packages in VERSIONS.items():
        paths = [str(p) for p in (REPOSITORY / ENVIRONMENTS[name] / "lib").glob("python*/site-packages")]
        installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions(path=paths)}
        found.update({package: installed[package] for package in packages if package in installed})
    return found


def stage_row(name: str, manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"name": name, "status": "skipped", "seconds": 0.0, "peak_memory_mb": 0.0, "metrics": {}}
    return {
        "name": name,
        "status": manifest.status,
        "seconds": manifest.seconds,
        "peak_memory_mb": manifest.peak_memory_mb,
        "metrics": manifest.metrics,
    }


def plot(
    series: dict[str, list[list[float]]], x_label: str, y_label: str, line: tuple[str, float] | None = None
) -> str:
    """A line chart as inline SVG; `line` is a level to mark, with its name."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "report"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.4, 3.2))
    for name, points in series.items():
        if points:
            style = "o-" if len(points) < 15 else "-"
            axes.plot(*zip(*points, strict=True), style, label=name, markersize=4, color=LOSS_COLOURS.get(name))
    if line:
        axes.axhline(line[1], color="#888", linestyle=":", label=line[0])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def plots(stages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Title and SVG of every curve that the stages reported."""
    metrics = {stage["name"]: stage["metrics"] for stage in stages}
    found = []
    for stage, measured in metrics.items():
        curves = measured.get("curves")
        if not curves:
            continue
        what = "Pretraining" if stage == "pretrain" else stage.capitalize()
        uniform = ("ln(vocabulary)", measured["uniform_loss"])
        step = measured["tokens_per_step"]
        speed = [[x, step / y * 1000] for x, y in curves["milliseconds"]]
        found.append(
            (
                f"{what} loss",
                plot({"train": curves["loss"], "valid": curves["valid"]}, "iteration", "loss", uniform),
            )
        )
        for title, points, unit in (
            (f"{what}: tokens a second", speed, "tokens/s"),
            (f"{what}: gradient norm", curves["grad_norm"], "norm"),
            (f"{what}: learning rate", curves["learning_rate"], "rate"),
        ):
            found.append((title, plot({title.partition(": ")[2]: points}, "iteration", unit)))
    for stage, measured in metrics.items():
        title = stage.upper() if len(stage) <= 4 else stage.replace("_", " ")
        for key, name in (("loss_curve", "loss"), ("reward_curve", "mean reward"), ("kl_curve", "divergence (nats)")):
            if measured.get(key):
                found.append((f"{title} {name}", plot({"train": measured[key]}, "step", name)))
    return found


def shown(metrics: dict[str, Any]) -> str:
    """The metrics of a stage that fit into a table's cell."""
    parts = []
    for key, value in metrics.items():
        if isinstance(value, float):
            parts.append(f"{key} {value:.4g}")
        elif isinstance(value, int):
            parts.append(f"{key} {value:,}")
    return ", ".join(parts)


def write_report(run: Run) -> None:
    """Write report.json and report.html of a run, and print the table of its stages."""
    from jinja2 import Environment

    names = read_json(run.folder / "pipeline.json")["stages"]
    stages = [stage_row(name, read_manifest(run, name)) for name in names if name not in ("report", LAST_STAGE)]
    report: dict[str, Any] = {
        "run": run.name,
        "stages": stages,
        "gates": gates(run),
        "scores": scores(run),
        "datasets": datasets(run),
        "versions": versions(),
    }
    write_json(run.folder / "report.json", report)
    samples, rehearsal = run.evaluation / "stage_samples.json", run.folder / RECORD
    page = (
        Environment(autoescape=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            report=report,
            plots=plots(stages),
            cards=data_cards(run),
            samples=read_json(samples) if samples.exists() else {},
            rehearsal=read_json(rehearsal) if rehearsal.exists() else None,
            shown=shown,
            total_seconds=sum(stage["seconds"] for stage in stages),
            peak_memory_mb=max((stage["peak_memory_mb"] for stage in stages), default=0),
        )
    )
    write_text(run.folder / "report.html", page)
    for stage in stages:
        print(f"{stage['name']:<12} {stage['status']:<8} {stage['seconds']:7.1f} s {stage['peak_memory_mb']:7.0f} MB")
    for row in report["scores"]:
        chance = "" if row["chance"] is None else f"  chance {row['chance']:.0f}"
        print(
            f"{row['model']:<5} {row['suite']:<18} {row['value']:5.1f} %  [{row['low']:.1f}, {row['high']:.1f}]"
            f"  n {row['n']}{chance}"
        )
    print(run.folder / "report.html")


add_arguments = add_run_argument


def run(given: argparse.Namespace) -> None:
    write_report(find_run(given.run))
