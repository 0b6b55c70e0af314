"""Write the data card of a corpus: documents and characters in and out of each step, drops with examples, licence.

    myllm data-card --folder runs/mine/corpus/c4_zh
    myllm data-card --folder runs/mine/corpus/c4_zh --binning runs/mine/dataset/c4_zh.binning.json

If an input was made by `myllm extract-wiki`, the card ranks the templates for which sentences were dropped there.

Every task writes `reports/STEP/TASK.json`; this command adds them up and writes `data_card.json`, `data_card.md` and
its figure `data_card.svg` beside the shards, and, if evaluation sets were given, `evaluation.contaminated.json`, which
the scores quote. `preprocess.corpora.pipeline` does the same at the end of a run. After
binning, the second form adds the number of tokens (repeat --binning for each dataset).
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import read_json, write_json, write_text
from artifacts.stage import report_metrics
from preprocess.corpora.keep import histograms
from preprocess.sources.read import where
from preprocess.wiki.extract import lost_beside, read_lost

EXAMPLES = 3  # per reason
LACKED = 40  # templates in the card
SHOWN = 120  # characters of an example
COLOURS = ("#2563eb", "#f59e0b", "#16a34a", "#9333ea", "#0891b2", "#db2777")  # of the sources


@dataclass
class Report:
    """Counts of one task of one step. `counts` holds additional counts, e.g. masked mail addresses.

    `scores` has the histograms of values that the corpora bring (`preprocess.corpora.keep`), before a rule drops any.
    """

    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    seconds: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)  # duplicates, by the source of the document that they repeat
    problems: list[dict[str, Any]] = field(default_factory=list)
    lengths: Counter[str] = field(default_factory=Counter)  # documents out, by bit length of their number of characters
    scores: Counter[str] = field(default_factory=Counter)

    def enter(self, rows: list[dict[str, Any]]) -> None:
        self.documents_in += len(rows)
        self.characters_in += sum(len(row["text"]) for row in rows)

    def leave(self, rows: list[dict[str, Any]]) -> None:
        self.documents_out += len(rows)
        lengths = [len(row["text"]) for row in rows]
        self.characters_out += sum(lengths)
        self.lengths.update(str(length.bit_length()) for length in lengths)

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
        self.repeats.update(other.get("repeats", {}))
        self.lengths.update(other["lengths"])
        self.scores.update(other["scores"])
        self.problems = (self.problems + other["problems"])[:20]
        for reason, examples in other["examples"].items():
            self.examples[reason] = (self.examples.get(reason, []) + examples)[:EXAMPLES]


def write_report(folder: Path, step: str, task: int, report: Report) -> None:
    write_json(folder / "reports" / step / f"{task:05d}.json", dict(vars(report)))


def gather(folder: Path, steps: list[str], tasks: range | None = None) -> dict[str, Report]:
    """The report of every step, summed over its tasks (default: all). Raises UserError if a step has no report."""
    gathered = {}
    for step in steps:
        files = sorted((folder / "reports" / step).glob("*.json"))
        if not files:
            raise UserError(f"{folder / 'reports' / step} has no report: run `myllm corpora` to the end first")
        gathered[step] = Report()
        for file in files:
            if tasks is None or int(file.stem) in tasks:
                gathered[step].add(read_json(file))
    return gathered


def by_source(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What the steps left of each source: documents and characters, and the documents that each step dropped."""
    found = []
    for place, source in enumerate(settings["sources"]):
        tasks = range(place * settings["tasks"], (place + 1) * settings["tasks"])
        steps = gather(folder, settings["steps"], tasks)
        last = steps[settings["steps"][-1]]
        found.append(
            {
                "source": source["name"],
                "licence": source["licence"],
                "inputs": [path for path, _ in settings["files"][source["name"]]],
                "documents_read": steps["read"].documents_in,
                "documents": last.documents_out,
                "characters": last.characters_out,
                "characters_after": {step: report.characters_out for step, report in steps.items()},
                "compared": steps["deduplicate"].documents_in if "deduplicate" in steps else 0,
                "repeats": dict(steps["deduplicate"].repeats) if "deduplicate" in steps else {},
                "dropped": {step: report.dropped.total() for step, report in steps.items() if report.dropped},
            }
        )
    return found


def overlaps(sources: list[dict[str, Any]]) -> list[str]:
    """A table in Markdown: of the documents of each source that were compared, those that repeat each other source."""
    names = [source["source"] for source in sources]
    lines = [
        "Documents of the source on the left that repeat an earlier one, by the source of that one. A document that",
        "repeats several counts once, for the earliest. The earlier source keeps its copy.",
        "",
        f"| source | compared | {' | '.join(f'repeat {name}' for name in names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for place, source in enumerate(sources):
        cells = []
        for name in names[: place + 1]:
            count = source["repeats"].get(name, 0)
            cells.append(f"{count:,} ({count / max(1, source['compared']):.2%})")
        cells += ["–"] * (len(names) - place - 1)
        lines.append(f"| {source['source']} | {source['compared']:,} | {' | '.join(cells)} |")
    return [*lines, ""]


def lost_in_wikitext(settings: dict[str, Any]) -> dict[str, Any]:
    """Of each source with an output of `myllm extract-wiki`: the sentences dropped there, and what they lacked.

    The inputs' `X.lost.tsv` are added up. `lacked` ranks templates by sentences, so that the next can be added.
    """
    found = {}
    for source, files in settings["files"].items():
        lost: Counter[str] = Counter()
        for file, _ in files:
            if (path := lost_beside(Path(file))).exists():
                lost += read_lost(path)
        if not lost:
            continue
        sentences = lost.pop("")
        ranked = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
        found[source] = {
            "sentences": sentences,
            "lacked": [{"name": name, "sentences": count} for name, count in ranked[:LACKED]],
        }
    return found


def markdown(card: dict[str, Any]) -> str:
    """The card in Markdown: a table of the steps, then the reasons for drops with examples."""
    lines = [f"# Data card: {card['source']}", ""]
    for source in card["sources"]:
        of = "" if len(card["sources"]) == 1 else f"{source['source']}. "
        lines += [f"{of}Licence: {source['licence']}. Inputs: {', '.join(source['inputs'])}.", ""]
    if len(card["sources"]) > 1:
        steps = [step for step in card["steps"] if any(step in source["dropped"] for source in card["sources"])]
        heads = ["source", "documents read", *(f"dropped by {step}" for step in steps), "documents", "characters"]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for source in card["sources"]:
            dropped = " | ".join(f"{source['dropped'].get(step, 0):,}" for step in steps)
            lines.append(
                f"| {source['source']} | {source['documents_read']:,} | {dropped} | {source['documents']:,} "
                f"| {source['characters']:,} |"
            )
        lines.append("")
        if "deduplicate" in card["steps"]:
            lines += overlaps(card["sources"])
    lines += [f"{card['documents']:,} documents, {card['characters']:,} characters remain.", ""]
    for name, made in card.get("datasets", {}).items():
        lines += [f"Dataset `{name}`: {made['documents']:,} documents, {made['tokens']:,} tokens.", ""]
    if "characters_per_token" in card:
        lines += [f"{card['characters_per_token']} characters per token.", ""]
    lines += ["![what each step left, and how long the documents are](data_card.svg)", ""]
    lines += ["| step | documents in | out | characters in | out | dropped |", "|---|---|---|---|---|---|"]
    for step, report in card["steps"].items():
        dropped = sum(report["dropped"].values())
        lines.append(
            f"| {step} | {report['documents_in']:,} | {report['documents_out']:,} | {report['characters_in']:,} "
            f"| {report['characters_out']:,} | {dropped:,} |"
        )
    for name, bins in card.get("scores", {}).items():
        lines += ["", f"## {name}", "", "| from | documents | share from here on |", "|---|---|---|"]
        left = every = sum(count for _, count in bins)
        for low, count in bins:
            lines.append(f"| {low:g} | {count:,} | {100 * left / every:.1f} % |")
            left -= count
    for source, lost in card.get("wikitext", {}).items():
        lines += ["", f"## Wikitext of {source}", ""]
        lines += [f"{lost['sentences']:,} sentences were dropped because a part of them could not be rendered.", ""]
        lines += ["| template or tag | sentences |", "|---|---|"]
        lines += [f"| `{item['name']}` | {item['sentences']:,} |" for item in lost["lacked"]]
        lines += ["", "To keep them, say what the template shows: `myllm extract-wiki --templates mine.yaml`."]
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
            lines.append(f"- {where(problem)}: {problem['reason']}")
    return "\n".join(lines) + "\n"


def tokens_of(binned: list[Path], documents: int, characters: int) -> dict[str, Any]:
    """Documents and tokens of each dataset, and characters per token if together they have all the documents.

    Raises UserError if a file is not a report of `preprocess.dataset.binning`.
    """
    datasets = {}
    for path in binned:
        report = read_json(path)
        if not isinstance(report, dict) or not {"documents", "tokens"} <= report.keys():
            raise UserError(f"{path} is not a report of `myllm binning`: pass the PREFIX.binning.json of a dataset")
        datasets[path.name.removesuffix(".binning.json")] = {key: report[key] for key in ("documents", "tokens")}
    found: dict[str, Any] = {"datasets": datasets} if datasets else {}
    if datasets and sum(made["documents"] for made in datasets.values()) == documents:
        # the end-of-text token of each document has no characters
        tokens = sum(made["tokens"] - made["documents"] for made in datasets.values())
        found["characters_per_token"] = round(characters / max(1, tokens), 3)
    return found


def figure(card: dict[str, Any]) -> str:
    """An SVG with characters after each step, reasons for drops, lengths of the remaining documents, and scores."""
    import io

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "data card"
    import matplotlib.pyplot as plt

    steps = card["steps"]
    reasons: Counter[str] = Counter()
    for report in steps.values():
        reasons.update(report["dropped"])
    scores = card.get("scores", {})
    drawn, panels = plt.subplots(1, 4 if scores else 3, figsize=(17 if scores else 13, 3.4), layout="constrained")
    left, middle, right = panels[:3]
    begin = [0.0] * len(steps)
    for place, source in enumerate(card["sources"]):
        width = [source["characters_after"][step] / 1e6 for step in steps]
        left.barh(list(steps), width, left=begin, color=COLOURS[place % len(COLOURS)], label=source["source"])
        begin = [at + more for at, more in zip(begin, width, strict=True)]
    if len(card["sources"]) > 1:
        left.legend(frameon=False, fontsize="small")
    left.invert_yaxis()
    left.set_title("after each step")
    left.set_xlabel("million characters")
    most = reasons.most_common(12)
    middle.barh([reason for reason, _ in most], [count for _, count in most], color="#dc2626")
    middle.invert_yaxis()
    middle.set_title("dropped" if most else "nothing was dropped")
    middle.set_xlabel("documents")
    lengths = {int(bits): count for bits, count in list(steps.values())[-1]["lengths"].items()}
    bits = range(min(lengths, default=0), max(lengths, default=0) + 1)
    right.bar([f"{1 << bit >> 1}" for bit in bits], [lengths.get(bit, 0) for bit in bits], color="#16a34a")
    right.set_title("length of documents")
    right.set_xlabel("characters, from … to the next")
    right.tick_params(axis="x", rotation=60)
    for place, (name, bins) in enumerate(scores.items()):
        panels[3].step(*zip(*bins), where="post", color=COLOURS[place % len(COLOURS)], label=name)
        panels[3].set_title("scores that the corpora bring")
        panels[3].set_xlabel("from … to the next: documents")
        panels[3].legend(frameon=False, fontsize="small")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(drawn)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_card(folder: Path, binned: list[Path] | None = None) -> dict[str, Any]:
    """Write `data_card.json`, `.md` and `.svg` from the reports of the tasks; returns the card."""
    settings = read_json(folder / "settings.json")
    steps = gather(folder, settings["steps"])
    last = steps[settings["steps"][-1]]
    card = {
        "source": " + ".join(source["name"] for source in settings["sources"]),
        "sources": by_source(folder, settings),
        "documents": last.documents_out,
        "characters": last.characters_out,
        "settings": settings,
        "steps": {step: dict(vars(report)) for step, report in steps.items()},
    }
    for report in card["steps"].values():
        report.pop("seconds")  # the same data must give the same bytes
        if scores := histograms(report.pop("scores")):
            card["scores"] = scores
    if lost := lost_in_wikitext(settings):
        card["wikitext"] = lost
    card |= tokens_of(binned or [], last.documents_out, last.characters_out)
    write_text(folder / "data_card.svg", figure(card))
    write_json(folder / "data_card.json", card)
    write_text(folder / "data_card.md", markdown(card))
    if "decontaminate" in steps:
        found = steps["decontaminate"]
        reasons = {name: f"shares text with {Path(name).name}" for name in settings["evaluation"]}
        sets = [{"evaluation": name, "removed": found.dropped[reason]} for name, reason in reasons.items()]
        listed = {"kept": found.documents_out, "sets": sets, "removed": "dropped/decontaminate/"}
        write_json(folder / "evaluation.contaminated.json", listed)
    return card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, required=True, help="the output folder of `myllm corpora`")
    parser.add_argument("--binning", type=Path, action="append", default=[], help="PREFIX.binning.json; repeatable")


def run(arguments: argparse.Namespace) -> None:
    card = write_card(arguments.folder, arguments.binning)
    report_metrics(documents=card["documents"], characters=card["characters"])


if __name__ == "__main__":
    main(__name__)
