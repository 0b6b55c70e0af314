"""Prove that every expected score is there, and turn OpenCompass's files into rows that can be read.

Used by `launch.scoring.evaluate`; there is nothing to run here. OpenCompass exits with 0 when everything failed, so a
score counts only when its result file holds a number, every question has a prediction, and the predictions give that
number.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json
from artifacts.statistics import wilson
from launch.scoring import opencompass

CUT = re.compile(r"^cut (\d+) of \d+ texts to \d+ tokens$", re.M)


@dataclass(frozen=True)
class Score:
    """One row of scores.json; value, low, high, chance and subject_mean are percentages, low and high a 95 % interval.

    `suite` is the set (the name that reports know), `config` the suite's file. `cut` counts texts that were longer
    than the model takes, `unread` written answers in which no choice was found. `decontamination` is "not checked" or
    what the check removed from the corpora.
    """

    model: str
    suite: str
    metric: str
    value: float
    n: int
    low: float
    high: float
    chance: float
    protocol: str
    smoke: bool
    config: str
    way: str
    subject_mean: float | None
    cut: int
    unread: int
    config_hash: str
    data_hash: str
    opencompass: str
    decontamination: str


def short(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def prediction_file(work: Path, pair: dict[str, Any]) -> Path:
    """OpenCompass's own predictions of a pair: prompts, losses or texts."""
    return next(iter(sorted((work / "out").glob(f"*/predictions/{pair['model']}/{pair['dataset']}.json"))))


def collect(work: Path, pair: dict[str, Any], name: str, log: Path) -> list[dict[str, Any]]:
    """Predictions {"id", "prediction", "answer", "right"} of one (model, dataset) pair, for ppl with every "loss".

    Raises UserError when any part is missing, short, not a number, or does not add up.
    """
    abbr, dataset = pair["model"], pair["dataset"]
    told = opencompass.log_of(work, abbr, dataset, log)
    ending = f"{opencompass.last_line(told)}; read {told}"
    failed = f"OpenCompass ended with 0 and {name} has no score in {dataset}"
    result = next(iter(sorted((work / "out").glob(f"*/results/{abbr}/{dataset}.json"))), None)
    if result is None:
        raise UserError(f"{failed}, results/{abbr}/{dataset}.json is missing: {ending}")
    accuracy = read_json(result).get("accuracy")
    if not isinstance(accuracy, (int, float)) or math.isnan(accuracy):
        raise UserError(f"{failed}, {result} holds no accuracy: {ending}")
    file = result.parents[2] / "predictions" / abbr / result.name
    rows = list(read_json(file).values())
    if len(rows) != pair["n"]:
        raise UserError(f"{failed}: {len(rows)} of {pair['n']} questions were answered; read {told}")
    details = read_json(result).get("details")
    found = []
    for number, row in enumerate(rows):
        place = f"question {number + 1} of {file}"
        one: dict[str, Any] = {"id": pair["ids"][number] if pair["ids"] else f"{dataset} {number}"}
        if pair["kind"] == "ppl":
            losses = {label: row[f"label: {label}"]["PPL"] for label in pair["labels"]}
            if any(not math.isfinite(loss) for loss in losses.values()):
                raise UserError(f"{failed}: {place} has a loss that is not a number; read {told}")
            one |= {"prediction": str(row["prediction"]), "answer": str(row["gold"]), "loss": losses}
        else:
            if not isinstance(row["prediction"], str):
                raise UserError(f"{failed}: {place} has no text; read {told}")
            one |= {"prediction": row["prediction"], "answer": str(row["gold"])}
            one["read"] = read_answer(details, number, row["prediction"])
        one["right"] = one.get("read", one["prediction"]) == one["answer"]
        found.append(one)
    right = sum(row["right"] for row in found)
    if abs(100 * right / len(found) - accuracy) > 1e-6:
        raise UserError(f"{failed}: {result} says {accuracy}, {file} counts {right} of {len(found)}; read {told}")
    return found


def read_answer(details: Any, number: int, text: str) -> str:
    """What OpenCompass took from a written answer, as its details tell (evaluators write them in two shapes)."""
    if isinstance(details, dict) and str(number) in details:
        return str(details[str(number)].get("predictions", ""))
    if isinstance(details, list) and number < len(details):
        found = details[number].get("pred", "")
        return str(found[0] if isinstance(found, list) else found)
    return text


def cut_texts(log: Path) -> dict[str, int]:
    """How many texts of each `model/dataset` were longer than the model takes, from OpenCompass's log.

    A dataset that was begun again after a kill counts from its last beginning.
    """
    found: dict[str, int] = {}
    for part in log.read_text(encoding="utf-8", errors="replace").split(opencompass.START)[1:]:
        found[part.partition("]")[0]] = sum(int(count) for count in CUT.findall(part))
    return found


def score_set(
    name: str, entry: dict[str, Any], pairs: list[dict[str, Any]], predictions: list[list[dict[str, Any]]], **more: Any
) -> Score:
    """The row of a model in a set of one or more datasets (subjects); every question weighs the same."""
    right = [sum(row["right"] for row in rows) for rows in predictions]
    n, kind = sum(len(rows) for rows in predictions), pairs[0]["kind"]
    low, high = wilson(sum(right), n)
    subjects = [100 * hits / len(rows) for hits, rows in zip(right, predictions)]
    chance = sum(pair["chance"] * pair["n"] for pair in pairs) / n
    return Score(
        suite=name,
        metric="accuracy",
        value=round(100 * sum(right) / n, 2),
        n=n,
        low=round(low, 2),
        high=round(high, 2),
        chance=round(chance, 2),
        protocol=f"{kind}: {entry['protocol'][kind].format(shots=pairs[0]['shots'], tokens=pairs[0]['tokens'])}",
        subject_mean=round(sum(subjects) / len(subjects), 2) if len(subjects) > 1 else None,
        unread=sum(
            row["read"] not in pair["labels"] for pair, rows in zip(pairs, predictions) for row in rows if "read" in row
        ),
        config_hash=short([pair["config"] for pair in pairs]),
        data_hash=short([pair["data"] for pair in pairs]),
        **more,
    )


def verdict(row: Score) -> str:
    """What the interval says of chance, in a word."""
    if row.smoke:
        return "smoke"
    if 2 * row.unread > row.n:
        return "not answered"
    if row.low > row.chance:
        return "above chance"
    return "below chance" if row.high < row.chance else "at chance"


def print_table(rows: list[Score]) -> None:
    width = max([8, *(len(row.model) for row in rows)])
    print(f"{'model':{width}} {'set':13} {'accuracy':>8} {'95 % interval':>15} {'n':>6} {'chance':>6}  verdict")
    for row in rows:
        interval = f"{row.low:.1f} - {row.high:.1f}"
        numbers = f"{row.value:8.2f} {interval:>15} {row.n:6} {row.chance:6.1f}"
        print(f"{row.model:{width}} {row.suite:13} {numbers}  {verdict(row)}")
    seen = set()
    for row in rows:
        line = (
            f"{row.suite}: {row.protocol}; {row.way}; config {row.config_hash}, OpenCompass {row.opencompass}; "
            f"decontamination: {row.decontamination}"
        )
        if row.cut:
            line += f"; {row.cut} texts of {row.model} were longer than it takes and lost their beginning"
        if row.unread:
            line += f"; no choice was found in {row.unread} of {row.n} answers of {row.model}"
        if line not in seen:
            seen.add(line)
            print(f"  {line}")
