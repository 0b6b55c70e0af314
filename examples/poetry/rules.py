"""The cleaning rule for regular verse: `myllm clean --rules examples.poetry.rules.verse`.

It keeps poems of 4 to 12 lines, all of five or all of seven characters, without missing characters. A kept text begins
with its form (`五绝：`, `七律：`), so that the model learns the forms in pretraining.
"""

from __future__ import annotations

from typing import Any

from examples.poetry.verse import NUMERALS, VERSE_LINES, couplets, verse_form, verse_lines
from preprocess.cleaning.characters import is_chinese


def verse(document: dict[str, Any]) -> str | None:
    """Return the reason for dropping a document, or None. Rewrites a kept text as `五绝：line，line。line，line。`"""
    lines = verse_lines(document["text"])
    if len(lines) not in VERSE_LINES:
        return "number of lines"
    if len(lines[0]) not in NUMERALS or any(len(line) != len(lines[0]) for line in lines):
        return "line length"
    if not all(is_chinese(character) for line in lines for character in line):
        return "lacuna or foreign character"
    document["text"] = f"{verse_form(lines)}：{couplets(lines)}"
    document["metadata"]["line_length"] = len(lines[0])
    return None
