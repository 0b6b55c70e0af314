"""How a record of each public corpus becomes a document: which keys hold text, in which order they are set.

    wikipedia_cn   {"completion": …, "source": …}                        wikipedia-cn-20230720-filtered, a JSON list
    baidubaike     {"title", "summary", "sections": [{"title", "content"}], "tags", "url"}     BaiduBaiKe 563w, JSONL
    c4_zh          {"text", "url", "timestamp"}                                             C4 multilingual zh, JSONL
    wudao          {"title", "content", "id", "uniqueKey", "titleUkey", "dataType"}      WuDaoCorpora Text, JSON lists
    jsonl          {"text", …} or another key given with --text-key: any JSONL, Parquet or Hugging Face folder
    my.function    records of another shape: a function of your own from a record to its text

A container (JSON lines, a JSON list, Parquet, Arrow) is told by the file itself: `preprocess.sources.read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.plugs import load_function

Record = dict[str, Any]


class WrongShape(Exception):
    """A record lacks the key that holds its text, or holds something else than text there."""


def text_at(record: Record, key: str) -> str:
    """The text under `key`; raises WrongShape when it is missing or no string."""
    value = record.get(key)
    if isinstance(value, str):
        return value
    if key in record:
        raise WrongShape(f"the key {key!r} holds no text")
    raise WrongShape(f"no key {key!r}")


def titled(record: Record, title: str, body: str) -> str:
    """Title and body on lines of their own; a body that opens with the title is not given it twice."""
    text, head = text_at(record, body).strip(), record.get(title)
    if not isinstance(head, str) or not head.strip() or text.startswith(head.strip()):
        return text
    return f"{head.strip()}\n{text}"


def encyclopedia(record: Record) -> str:
    """Title, summary and sections of BaiduBaiKe; a section's heading stands on a line before its content."""
    if "summary" not in record and "sections" not in record:
        raise WrongShape("no key 'summary' or 'sections'")
    parts: list[Any] = [record.get("title"), record.get("summary")]
    sections = record.get("sections") or []
    if not isinstance(sections, list):
        raise WrongShape("the key 'sections' holds no list")
    for section in sections:
        if not isinstance(section, dict):
            raise WrongShape("the key 'sections' holds something else than sections")
        parts += [section.get("title"), section.get("content")]
    if len([part for part in parts[1:] if isinstance(part, str) and part.strip()]) == 0:
        raise WrongShape("neither summary nor sections hold text")
    return "\n".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


@dataclass(frozen=True)
class Shape:
    """`text` raises WrongShape; `used` are keys that do not go into metadata; `identity` is the key of a record's id.

    `simplify` is the OpenCC configuration for the source: text of the mainland needs t2s for the odd Traditional page;
    Wikipedia is written in Taiwan as well, and only tw2s mends 看著.
    """

    text: Callable[[Record], str]
    used: tuple[str, ...] | None  # None: not known, of a function of the user's own
    identity: str | None = None
    simplify: str = "t2s"


SHAPES = {
    "wikipedia_cn": Shape(partial(text_at, key="completion"), ("completion",), simplify="tw2s"),
    "baidubaike": Shape(encyclopedia, ("title", "summary", "sections")),
    "c4_zh": Shape(partial(text_at, key="text"), ("text",)),
    "wudao": Shape(partial(titled, title="title", body="content"), ("title", "content")),
    "zhwiki": Shape(partial(text_at, key="text"), ("text",), "id", "tw2s"),
    "jsonl": Shape(partial(text_at, key="text"), ("text",), "id"),
}


def shape_of(source: str, text_key: str | None = None) -> Shape:
    """The shape of a source; `text_key` replaces the key of `jsonl`.

    Raises:
        UserError: the source is neither one of SHAPES nor a function `module.function`.
    """
    if "." in source and text_key is None:
        return Shape(load_function(source, "--source"), None, "id")
    if source not in SHAPES:
        raise UserError(f"--source {source} is not known{nearest(source, SHAPES)}; it is one of {', '.join(SHAPES)}")
    if text_key is None:
        return SHAPES[source]
    if source != "jsonl":
        raise UserError(f"--text-key goes with --source jsonl only: {source} has its own keys")
    return Shape(partial(text_at, key=text_key), (text_key,), "id")


def is_used(shape: Shape, key: str, value: Any, text: str) -> bool:
    """Whether a record's value is a part of its text, and so no metadata."""
    if shape.used is not None:
        return key in shape.used
    return isinstance(value, str) and value.strip() in text


def document(shape: Shape, record: Any, made_id: str) -> dict[str, Any]:
    """A document `{"id", "text", "metadata"}`; scalars beside the text are kept as metadata. Raises WrongShape."""
    if not isinstance(record, dict):
        raise WrongShape("not an object")
    text = shape.text(record)
    own = record.get(shape.identity) if shape.identity else None
    metadata = {
        key: value
        for key, value in record.items()
        if key != shape.identity and isinstance(value, (str, int, float, bool)) and not is_used(shape, key, value, text)
    }
    nested = record.get("metadata")
    if isinstance(nested, dict):
        metadata.update(nested)
    return {"id": str(own) if isinstance(own, (str, int)) else made_id, "text": text, "metadata": metadata}
