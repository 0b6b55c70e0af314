"""Score the served model's verse for the report: the share of lines that have the requested length.

    python -m examples.poetry.form --model dpo --samples runs/r/eval/serve/samples.json \\
        --output runs/r/eval/extra_scores/verse_form.json

The samples are answers of `myllm serve-gate --sample-prompts` to `verse_prompts.json` (examples/poetry/tasks.py).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from artifacts.errors import run_main
from artifacts.files import read_json, write_json
from artifacts.stage import report_metrics
from artifacts.statistics import wilson

LINE_END = re.compile(r"[，。！？；：、\s]+")


def verse_form(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Percent of lines with the requested length, and its 95 % interval. An answer without lines counts as one miss.

    If an answer begins with the requested form (`五绝：`), that is its title and not counted as a line.
    """
    hits = n = 0
    for row in samples:
        lines = [line for line in LINE_END.split(row["text"].removeprefix(row["form"] + "：")) if line] or [""]
        n += len(lines)
        hits += sum(len(line) == row["line_length"] for line in lines)
    low, high = wilson(hits, n)
    return {"value": 100 * hits / n if n else 0.0, "n": n, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name of the served model in the report")
    parser.add_argument("--samples", type=Path, required=True, help="samples.json of `myllm serve-gate`")
    parser.add_argument("--output", type=Path, required=True, help="file to write, in eval/extra_scores/ of the run")
    arguments = parser.parse_args()
    found = verse_form(read_json(arguments.samples))
    row = {
        "model": arguments.model,
        "suite": "verse_form",
        "metric": "lines of the length asked for",
        **found,
        "chance": None,
        "protocol": "sampled from vLLM, temperature 0.7, top-p 0.9, zero-shot",
    }
    write_json(arguments.output, [row])
    report_metrics(verse_form=round(found["value"], 2))


if __name__ == "__main__":
    run_main(main)
