"""A reward as a user writes one: a function in a module of one's own, named in the recipe by its dotted name."""

from __future__ import annotations

from typing import Any

ALPHABET = "春夏秋冬风花雪月山水云雨江湖日夜天地人心"


def seasons(completions: list[Any], **_: Any) -> list[float]:
    """The share of an answer's characters that stand in the alphabet; nothing is 0."""
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(c in ALPHABET for c in text) / len(text) if text else 0.0 for text in texts]
