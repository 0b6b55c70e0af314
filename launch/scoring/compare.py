"""Compare the scores of models and stages, and test whether the differences are significant.

    myllm compare poetry-tiny                                # base, sft, dpo of one run, against its base model
    myllm compare runs/a runs/b --against a/base --output comparison

Reads `eval/predictions/*.json` and `eval/bits_per_byte.json` of the runs. Two models with the same questions are
compared question by question: exact McNemar test, p adjusted for the number of comparisons (Holm). Published figures of
other models, which were not measured here, are in a separate table with their protocol. Writes `compare.json`,
`compare.md`, `compare.html` and `compare.svg`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError, nearest
from artifacts.files import read_json, read_yaml, write_json, write_text
from artifacts.layout import REPOSITORY
from artifacts.statistics import holm, mcnemar, paired_difference
from launch.scoring.compare_report import chart, markdown

PUBLISHED = REPOSITORY / "eval_configs" / "published.yaml"
TEMPLATE = Path(__file__).with_name("compare.html.jinja")
LEVEL = 0.05
RESAMPLES = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", metavar="RUN", help="name of a run in runs/, or its folder")
    parser.add_argument(
        "--against", metavar="MODEL", help="compare the other models with this one (default: base, else the first)"
    )
    parser.add_argument("--output", type=Path, help="folder for the results (default: eval/ of the first run)")


@dataclass(frozen=True)
class Pair:
    """A model against another in one set: difference in percentage points, exact p, p adjusted for all comparisons."""

    suite: str
    config: str
    model: str
    against: str
    difference: float
    low: float
    high: float
    n: int
    only_model: int
    only_against: int
    asked: str  # a remark if the two were prompted in different ways; else empty
    p: float
    p_adjusted: float = 1.0

    @property
    def verdict(self) -> str:
        if self.p_adjusted >= LEVEL:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Found:
    """One predictions file: its row of scores.json with a unique model name, (id, answer) pairs, and what was right."""

    row: dict[str, Any]
    questions: list[tuple[str, str]]
    right: list[bool]


def find_folder(name: str) -> Path:
    """The eval/ folder of a run. Raises UserError, which names the nearest run, if it has no scores."""
    for folder in (REPOSITORY / "runs" / name / "eval", Path(name) / "eval", Path(name)):
        if (folder / "predictions").is_dir() or (folder / "bits_per_byte.json").exists():
            return folder
    known = [path.parent.parent.name for path in (REPOSITORY / "runs").glob("*/eval/predictions")]
    raise UserError(f"{name} has no scores{nearest(name, known)}: run `myllm eval MODEL --suite SUITE` first")


def run_name(folder: Path) -> str:
    """The prefix for the models of a folder: the name of the run, or of the folder itself."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "eval" else folder.name


def read_found(folder: Path, prefix: str) -> list[Found]:
    """Every score of a run that has predictions, with models in the order of scores.json."""
    scores = folder / "scores.json"
    order = list(dict.fromkeys(row["model"] for row in read_json(scores))) if scores.exists() else []
    found = []
    for file in sorted((folder / "predictions").glob("*.json")):
        content = read_json(file)
        if "config" not in content.get("score", {}):
            continue  # written by another version
        row = {**content["score"], "model": prefix + content["score"]["model"]}
        rows = content["predictions"]
        found.append(Found(row, [(str(r["id"]), str(r["answer"])) for r in rows], [bool(r["right"]) for r in rows]))
    place = {prefix + model: number for number, model in enumerate(order)}
    return sorted(found, key=lambda one: place.get(one.row["model"], len(place)))


def comparable(first: Found, second: Found) -> bool:
    """Whether two scores have the same questions and the same suite."""
    a, b = first.row, second.row
    same = all(a[key] == b[key] for key in ("config", "suite", "data_hash"))
    return same and first.questions == second.questions


def compare(found: list[Found], against: str) -> list[Pair]:
    """Compare every model with `against`, set by set; p is adjusted over all pairs. Smoke sets are left out."""
    pairs = []
    for base in (f for f in found if f.row["model"] == against and not f.row["smoke"]):
        for other in found:
            if other.row["model"] == against or not comparable(base, other):
                continue
            only_model = sum(theirs and not ours for ours, theirs in zip(base.right, other.right, strict=True))
            only_against = sum(ours and not theirs for ours, theirs in zip(base.right, other.right, strict=True))
            a, b = base.row["way"], other.row["way"]
            difference, low, high = paired_difference(only_against, only_model, len(base.right))
            pairs.append(
                Pair(
                    base.row["suite"], base.row["config"], other.row["model"], against, round(difference, 2),
                    round(low, 2), round(high, 2), len(base.right), only_model, only_against,
                    "" if a == b else f" (prompted differently: {b}, not {a})",
                    mcnemar(only_against, only_model),
                )
            )  # fmt: skip
    adjusted = holm([pair.p for pair in pairs])
    return [Pair(**{**asdict(pair), "p_adjusted": value}) for pair, value in zip(pairs, adjusted, strict=True)]


def compare_bits(rows: list[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """Differences in bits per byte on the same documents, with a 95 % interval by paired bootstrap over documents."""
    import math

    import numpy as np

    found = []
    for base in (row for row in rows if row["model"] == against):
        for other in rows:
            if other["model"] == against or (other["source"], other["text"]) != (base["source"], base["text"]):
                continue
            nats = np.array([[a[0], b[0]] for a, b in zip(base["per_document"], other["per_document"], strict=True)])
            sizes = np.array([a[1] for a in base["per_document"]], dtype=float)
            chance = np.random.default_rng(0)
            drawn = [chance.integers(0, len(sizes), len(sizes)) for _ in range(RESAMPLES if len(sizes) > 1 else 0)]
            delta = (nats[:, 1] - nats[:, 0]) / math.log(2)
            values = [float(delta[draw].sum() / sizes[draw].sum()) for draw in drawn] or [-math.inf, math.inf]
            bounds: list[float] = np.quantile(values, [0.025, 0.975]).tolist()
            low, high = bounds
            verdict = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
            found.append(
                {
                    "source": base["source"], "model": other["model"], "against": against,
                    "difference": round(float(delta.sum() / sizes.sum()), 4), "low": round(low, 4),
                    "high": round(high, 4), "documents": len(sizes), "verdict": verdict,
                }
            )  # fmt: skip
    return found


def run(arguments: argparse.Namespace) -> int:
    from jinja2 import Environment

    folders = [find_folder(name) for name in arguments.run]
    for name, count in Counter(run_name(folder) for folder in folders).items():
        if count > 1:
            raise UserError(f"{count} of the runs are named {name!r}, so their models have the same names: rename one")
    found: list[Found] = []
    bits: list[dict[str, Any]] = []
    for folder in folders:
        prefix = f"{run_name(folder)}/" if len(folders) > 1 else ""
        found += read_found(folder, prefix)
        file = folder / "bits_per_byte.json"
        rows = read_json(file) if file.exists() else []
        bits += [{**row, "model": prefix + row["model"]} for row in rows]
    names = list(dict.fromkeys([f.row["model"] for f in found] + [row["model"] for row in bits]))
    if not names:
        raise UserError(f"{folders[0]} has no scores: run `myllm eval MODEL --suite SUITE` first")
    against = arguments.against or next((name for name in names if name.endswith("base")), names[0])
    if against not in names:
        raise UserError(
            f"--against: there is no model {against!r}{nearest(against, names)}; valid are {', '.join(names)}"
        )
    report = {
        "against": against,
        "scores": [f.row for f in found],
        "pairs": [{**asdict(pair), "verdict": pair.verdict} for pair in compare(found, against)],
        "bits": [{key: value for key, value in row.items() if key != "per_document"} for row in bits],
        "bits_pairs": compare_bits(bits, against),
        "published": read_yaml(PUBLISHED),
    }
    output = arguments.output or folders[0]
    svg, text = chart(report["scores"]), markdown(report)
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    write_json(output / "compare.json", report)
    write_text(output / "compare.svg", svg)
    write_text(output / "compare.md", text)
    write_text(output / "compare.html", page.render(report=report, chart=svg))
    for pair in report["pairs"]:
        print(
            f"{pair['model']} against {against}, {pair['suite']}: {pair['difference']:+.1f} points "
            f"[{pair['low']:+.1f}, {pair['high']:+.1f}], p {pair['p']:.2g}, adjusted {pair['p_adjusted']:.2g}: "
            f"{pair['verdict']}{pair['asked']}"
        )
    for row in report["bits_pairs"]:
        print(
            f"{row['model']} against {against}, {row['source']}: {row['difference']:+.4f} bits per byte "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]: {row['verdict']}"
        )
    print(f"{output / 'compare.md'}\n{output / 'compare.html'}")
    return 0


if __name__ == "__main__":
    main(__name__)
