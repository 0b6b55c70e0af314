"""What a run of the corpus steps did: documents and characters in and out of every step, drops with examples, licence.

    python -m preprocess.data_card --folder runs/mine/corpus/c4_zh

Every task leaves `reports/STEP/TASK.json`; this adds them up and writes `data_card.json` and `data_card.md` beside the
shards. `preprocess.pipeline` does it at the end of a run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_json, write_json, write_text
from artifacts.stage import report_metrics

EXAMPLES = 3  # of each reason
SHOWN = 120  # characters of an example


@dataclass
class Report:
    """What one task of one step did. `counts` holds what a step counts besides, e.g. masked mail addresses."""

    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    seconds: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, rows: list[dict[str, Any]]) -> None:
        self.documents_in += len(rows)
        self.characters_in += sum(len(row["text"]) for row in rows)

    def leave(self, rows: list[dict[str, Any]]) -> None:
        self.documents_out += len(rows)
        self.characters_out += sum(len(row["text"]) for row in rows)

    def drop(self, reason: str, row: dict[str, Any]) -> None:
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append({"id": row["id"], "text": row["text"][:SHOWN]})

    def add(self, other: dict[str, Any]) -> None:
        for name in ("documents_in", "characters_in", "documents_out", "characters_out", "seconds"):
            setattr(self, name, getattr(self, name) + other[name])
        self.dropped.update(other["dropped"])
        self.counts.update(other["counts"])
        self.problems = (self.problems + other["problems"])[:20]
        for reason, examples in other["examples"].items():
            self.examples[reason] = (self.examples.get(reason, []) + examples)[:EXAMPLES]


def write_report(folder: Path, step: str, task: int, report: Report) -> None:
    write_json(folder / "reports" / step / f"{task:05d}.json", dict(vars(report)))


def gather(folder: Path, steps: list[str]) -> dict[str, Report]:
    """The reports of every step, tasks added up in their order; raises UserError when a step left none."""
    gathered = {}
    for step in steps:
        files = sorted((folder / "reports" / step).glob("*.json"))
        if not files:
            raise UserError(f"{folder / 'reports' / step} holds no report: run the pipeline to its end first")
        gathered[step] = Report()
        for file in files:
            gathered[step].add(read_json(file))
    return gathered


def markdown(card: dict[str, Any]) -> str:
    """The card as a page: a table of the steps, then reasons for drops with examples."""
    lines = [f"# Data card: {card['source']}", ""]
    lines += [f"Licence: {card['licence']}. Inputs: {', '.join(card['inputs'])}.", ""]
    lines += ["| step | documents in | out | characters in | out | dropped |", "|---|---|---|---|---|---|"]
    for step, report in card["steps"].items():
        dropped = sum(report["dropped"].values())
        lines.append(
            f"| {step} | {report['documents_in']:,} | {report['documents_out']:,} | {report['characters_in']:,} "
            f"| {report['characters_out']:,} | {dropped:,} |"
        )
    for step, report in card["steps"].items():
        if report["dropped"] or report["counts"] or report["problems"]:
            lines += ["", f"## {step}", ""]
        lines += [f"- {name}: {count:,}" for name, count in sorted(report["counts"].items())]
        for reason, count in sorted(report["dropped"].items(), key=lambda item: -item[1]):
            lines.append(f"- **{reason}**: {count:,}")
            for example in report["examples"].get(reason, []):
                shown = " ".join(example["text"].split())
                lines.append(f"    - `{example['id']}` {shown}")
        for problem in report["problems"]:
            lines.append(f"- {problem['file']} line {problem['line']}: {problem['reason']}")
    return "\n".join(lines) + "\n"


def write_card(folder: Path) -> dict[str, Any]:
    """Write `data_card.json` and `data_card.md` from what the tasks reported; returns the card."""
    settings = read_json(folder / "settings.json")
    steps = gather(folder, settings["steps"])
    last = steps[settings["steps"][-1]]
    card = {
        "source": settings["source"],
        "licence": settings["licence"],
        "inputs": [path for path, _ in settings["files"]],
        "documents": last.documents_out,
        "characters": last.characters_out,
        "settings": settings,
        "steps": {step: dict(vars(report)) for step, report in steps.items()},
    }
    for report in card["steps"].values():
        report.pop("seconds")  # a card tells of the data: the same data, the same bytes
    write_json(folder / "data_card.json", card)
    write_text(folder / "data_card.md", markdown(card))
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="the output folder of preprocess.pipeline")
    card = write_card(parser.parse_args().folder)
    report_metrics(documents=card["documents"], characters=card["characters"])


if __name__ == "__main__":
    run_main(main)
