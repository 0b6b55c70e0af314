"""JSON rows as people write them: `NaN`, integers beyond 64 bits, halves of surrogate pairs, other encodings.

orjson reads and writes strict JSON fast; what it refuses goes to Python's `json`, which wrote most of such rows.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import Any

import orjson

NUL = "NUL bytes"
GBK, UTF16, UTF8 = "GBK, not UTF-8", "UTF-16, not UTF-8", "invalid UTF-8"
PRETTY, LIST = "the beginning of a value over several lines", "a JSON list, not a row"
NOT_JSON, NO_OBJECT = "not JSON", "not an object"
MENDS = {
    GBK: "convert the file with `iconv -f GB18030 -t UTF-8`",
    UTF16: "convert the file with `iconv -f UTF-16 -t UTF-8`",
    PRETTY: "write one row a line, e.g. with `jq -c .`",
    LIST: "write one row a line, e.g. with `jq -c '.[]'`",
}  # of reasons that concern a whole file
_LONE = re.compile("[\ud800-\udfff]")  # in a Python string, a pair is one character
_FROM = 1 << 63  # orjson reads larger integers as floats, which have 53 bits


def _huge(row: dict[str, Any]) -> bool:
    """Whether a row, or an object in it, has a number that may be an integer beyond 64 bits."""
    for value in row.values():
        kind = type(value)
        if kind is float:
            if abs(value) >= _FROM:
                return True
        elif kind is dict and _huge(value):
            return True
    return False


def plain(value: Any) -> tuple[Any, int]:
    """The value with U+FFFD for each lone surrogate and None for each NaN or infinity, and the number of the former."""
    if isinstance(value, str):
        try:
            value.encode()  # the fastest test
        except UnicodeEncodeError:
            return _LONE.subn("\ufffd", value)
        return value, 0
    if isinstance(value, float):
        return (value if math.isfinite(value) else None), 0
    if isinstance(value, dict):
        keys, values = [plain(key) for key in value], [plain(part) for part in value.values()]
        made: Any = {key: part for (key, _), (part, _) in zip(keys, values)}
        return made, sum(count for _, count in [*keys, *values])
    if isinstance(value, list):
        parts = [plain(part) for part in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    return value, 0


def parse(line: bytes) -> tuple[Any, int]:
    """The value of a line, and the number of lone surrogates that were replaced in it.

    Raises ValueError if the line is not JSON, not even as Python writes it.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            return plain(json.loads(line.decode()))
        except (ValueError, RecursionError):
            raise error from None
    if type(value) is dict and _huge(value):
        value = json.loads(line)
    return value, 0


def dumped(row: Any) -> bytes:
    """A row as a line of JSON, with its line feed."""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # an integer beyond 64 bits, or a lone surrogate
        return json.dumps(plain(row)[0], ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def is_utf16(begin: bytes) -> bool:
    """Whether text that begins with these bytes is UTF-16: by its mark, or by the first brace."""
    marked = begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return marked or (b"\0" in begin[:2] and begin[:3].lstrip(b"\0")[:1] in (b"{", b"["))


def fault(line: bytes) -> str:
    """Why a line is not a row: one of the reasons above."""
    if is_utf16(line):
        return UTF16
    try:
        line.decode()
    except UnicodeDecodeError:
        # a damaged line of UTF-8 may read as GBK too, but has few bytes that are not UTF-8
        if line.decode(errors="replace").count("\ufffd") * 4 < sum(byte > 127 for byte in line):
            return UTF8
        try:
            line.decode("gb18030")
            return GBK
        except UnicodeDecodeError:
            return UTF8
    if b"\0" in line:
        return NUL
    begin = line.strip()
    if begin[:1] == b"[":
        return LIST
    try:
        parse(line)
    except ValueError:
        return PRETTY if begin == b"{" else NOT_JSON
    return NO_OBJECT


def described(line: bytes, error: ValueError | None = None) -> str:
    """What a broken line "is" or "has", to follow its place; with the mend if it concerns the whole file."""
    reason = fault(line)
    if reason in MENDS:
        return f"is {reason}: {MENDS[reason]}"
    detail = f" ({error})" if error and reason == NOT_JSON else ""
    return f"{'has' if reason == NUL else 'is'} {reason}{detail}"


def refusal(place: str, line: bytes, error: ValueError | None = None) -> str:
    """One line on a broken line at `place`: what it is, and the mend."""
    mend = "" if fault(line) in MENDS else ": correct or remove that line"
    return f"{place} {described(line, error)}{mend}"
