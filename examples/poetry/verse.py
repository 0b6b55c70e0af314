"""Definitions of regular verse and of the requests for it, which tasks, rewards and reports share.

    verse_lines("五绝：白日依山尽，黄河入海流。")     -> ["白日依山尽", "黄河入海流"]
    asked("写一首七律。")                           -> Asked(line_length=7, lines=8, given=())

This module both writes and parses requests, so that rewards check what the tasks request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PUNCTUATION = re.compile(r"[，。！？；：、\n]")
VERSE_LINES = range(4, 13, 2)
NUMERALS = {5: "五", 7: "七"}
FORMS = {4: "绝", 8: "律"}  # by number of lines; verse with another number is called 古
FORM = re.compile(r"^[五七][绝律古]：")

WRITE, BEGIN, COMPLETE, FOLLOW = "写一首", "写一联", "补全这首诗：", "续写下一句："  # the beginnings of requests
_LENGTHS = {numeral: length for length, numeral in NUMERALS.items()}
_COUNTS = {name: count for count, name in FORMS.items()}
_REQUEST = re.compile(
    f"^(?:{WRITE}|{BEGIN}|{COMPLETE}|{FOLLOW})(?P<numeral>[五七])(?P<form>[绝律古])(?P<rest>：?.*)$", re.DOTALL
)


def verse_lines(text: str) -> list[str]:
    """The lines of a poem, without the leading form and without punctuation."""
    return [line for line in PUNCTUATION.split(FORM.sub("", text)) if line]


def verse_form(lines: list[str]) -> str:
    """The form's short name: 五绝, 七绝, 五律, 七律; 五古 or 七古 for other numbers of lines."""
    return NUMERALS[len(lines[0])] + FORMS.get(len(lines), "古")


def couplets(lines: list[str]) -> str:
    """Join lines to couplets, each as `line，line。`; an odd last line ends with a comma."""
    return "".join(line + ("。" if index % 2 else "，") for index, line in enumerate(lines))


def verse_request(form: str) -> str:
    return f"{WRITE}{form}。"


def couplet_request(form: str) -> str:
    return f"{BEGIN}{form}。"


def complete_request(beginning: str) -> str:
    return f"{COMPLETE}{beginning}"


def follow_request(beginning: str) -> str:
    return f"{FOLLOW}{beginning}"


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    line_length: int  # characters
    lines: int | None  # in the answer; None if the form does not fix it (古)
    given: tuple[str, ...]  # lines in the request
    titled: bool  # whether the answer begins with its form (`五绝：`)


def asked(request: str) -> Asked | None:
    """Parse a request; None if it does not ask for verse."""
    found = _REQUEST.match(request.strip())
    if found is None:
        return None
    length, whole = _LENGTHS[found["numeral"]], _COUNTS.get(found["form"])
    given = tuple(verse_lines(found["rest"])) if found["rest"].startswith("：") else ()
    if request.startswith(BEGIN):
        return Asked(length, 2, (), titled=True)
    if request.startswith(WRITE):
        return Asked(length, whole, (), titled=True)
    if request.startswith(FOLLOW):
        return Asked(length, 1, given, titled=False)
    return Asked(length, whole - len(given) if whole else None, given, titled=False)


@cache
def rhyme_groups() -> dict[str, frozenset[str]]:
    """The 平水韵 groups of each character (from rhymes.txt). A character with two readings has two groups."""
    found: dict[str, set[str]] = {}
    for line in (Path(__file__).parent / "rhymes.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, _, characters = line.partition("\t")
            for character in characters:
                found.setdefault(character, set()).add(name)
    return {character: frozenset(names) for character, names in found.items()}


def rhymes(one: str, other: str) -> bool:
    """Whether two different characters share a rhyme group. A character does not rhyme with itself."""
    groups = rhyme_groups()
    return one != other and bool(groups.get(one, frozenset()) & groups.get(other, frozenset()))
