"""Keep documents by a value that their corpus brings: `myllm corpora --keep 'score>=3'`, and count its histogram.

A rule is NAME SIGN VALUE; the name is a key of the documents' metadata (`toxicity.score`: a key in an object), the sign
one of >= <= > < == !=. With several rules, a document must meet all of them.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from preprocess.sources.read import Row

RULE = re.compile(r"\s*([^<>=!\s]+)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
SHOWN = 20  # bins of a histogram in the card


@dataclass(frozen=True)
class Rule:
    """A condition on a value of the metadata; `value` is a number, or with == and != also a text."""

    text: str
    name: str
    sign: str
    value: float | str

    def broken(self, metadata: dict[str, Any]) -> str | None:
        """Why a document is dropped; None if it is kept."""
        found: Any = metadata.get(self.name)
        if isinstance(self.value, float):
            found = number_of(found)
        if found is None:
            return f"no {self.name}"
        return None if SIGNS[self.sign](found, self.value) else f"not {self.text}"


def number_of(value: Any) -> float | None:
    """A number, also one given as text; None for anything else and for NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def rule_of(text: str) -> Rule:
    """Parse a rule. Raises UserError if it is none."""
    found = RULE.fullmatch(text)
    number = number_of(found[3]) if found else None
    if found is None or (number is None and found[2] not in ("==", "!=")):
        raise UserError(f"--keep {text!r} is not a rule: write NAME>=NUMBER, with one of {' '.join(SIGNS)}")
    return Rule(f"{found[1]}{found[2]}{found[3]}", found[1], found[2], found[3] if number is None else number)


def judge(rows: list[Row], rules: Iterable[Rule]) -> list[str | None]:
    """For each row the reason why a rule drops it, or None."""
    return [next(filter(None, (rule.broken(row["metadata"]) for rule in rules)), None) for row in rows]


def bin_of(number: float) -> float:
    """The lower end of a number's bin: 0.05 wide below 10, then a tenth of the power of ten."""
    width = 0.05 if abs(number) < 10 else 10.0 ** (math.floor(math.log10(abs(number))) - 1)
    return round(math.floor(round(number / width, 6)) * width, 6)


def count_scores(rows: list[Row], names: Iterable[str], source: str) -> Counter[str]:
    """How many rows fall into each bin of each value: `source name|bin` -> rows."""
    return Counter(
        f"{source} {name}|{bin_of(number)}"
        for row in rows
        for name in names
        if (number := number_of(row["metadata"].get(name))) is not None and math.isfinite(number)
    )


def histograms(scores: dict[str, int]) -> dict[str, list[tuple[float, int]]]:
    """The bins of `count_scores` as (lower end, documents), ascending; neighbours are merged to at most SHOWN bins."""
    found: dict[str, dict[float, int]] = {}
    for key, count in scores.items():
        name, _, low = key.rpartition("|")
        found.setdefault(name, {})[float(low)] = count
    merged = {}
    for name, bins in sorted(found.items()):
        ordered = sorted(bins.items())
        step = -(-len(ordered) // SHOWN)
        merged[name] = [
            (ordered[start][0], sum(count for _, count in ordered[start : start + step]))
            for start in range(0, len(ordered), step)
        ]
    return merged
