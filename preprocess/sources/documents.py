"""The documents of a file of JSON lines, for the steps that a user runs alone on files of their own.

A row needs only `text`. Without an `id`, or with one that says nothing (empty, null, a list), it gets one from its
text; `metadata` is an object from here on. Rows that are whole already stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import numbered_rows

Document = dict[str, Any]

REPEATED = "ids that an earlier document has with another text, made unique"


def own_id(row: dict[str, Any], key: str = "id") -> str | None:
    """The id that a row brings, as a string; None if it has none: no such key, an empty string, no string or number."""
    value = row.get(key)
    if isinstance(value, str):
        return value if value.strip() else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def without_text(row: dict[str, Any], key: str) -> str:
    """What a row has instead of a text under `key`."""
    if row.get(key) is not None:
        return f"a {key!r} that is not a string"
    inside = next((name for name, value in row.items() if isinstance(value, list) and value), None)
    return f"no key {key!r}" + (f", but a list under {inside!r}, whose items may be the rows" if inside else "")


def id_of_text(text: str) -> str:
    """The id of a document that brings none: the same text has the same id, in any file."""
    return f"text-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def unique_id(identity: str, place: str) -> str:
    """An id for a document whose own id an earlier one has with another text, by file and place: `7@part1/2048`."""
    return f"{identity}@{place}"


def whole(row: dict[str, Any]) -> Document:
    """A row with a `text` as a document {"id", "text", "metadata", …}; the row itself if it is one."""
    metadata, given = row.get("metadata", {}), row.get("id")
    if type(given) is not str or not given.strip():
        row = {**row, "id": own_id(row) or id_of_text(row["text"])}
    if not isinstance(metadata, dict):
        metadata = {} if metadata is None else {"metadata": metadata}
    row["metadata"] = metadata
    return row


def read_documents(path: Path | str) -> Iterator[Document]:
    """The documents of a file, in order. Raises UserError with file and line if a row has no text."""
    for number, row in numbered_rows(path):
        if not isinstance(row.get("text"), str):
            raise UserError(f"{path} line {number} has {without_text(row, 'text')}: correct or remove that line")
        yield whole(row)
