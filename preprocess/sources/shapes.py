"""Map the records of each public corpus to documents: which keys hold the text, and in which order they are joined.

    wikipedia_cn   {"completion": …, "source": …}                        wikipedia-cn-20230720-filtered, a JSON list
    baidubaike     {"title", "summary", "sections": [{"title", "content"}], "tags", "url"}     BaiduBaiKe 563w, JSONL
    c4_zh          {"text", "url", "timestamp"}                                             C4 multilingual zh, JSONL
    wudao          {"title", "content", "id", "uniqueKey", "titleUkey", "dataType"}      WuDaoCorpora Text, JSON lists
    jsonl          {"text", …} or another key given with --text-key: any JSONL, Parquet or Hugging Face folder
    my.function    any other records: your own function, which takes a record and returns its text

`preprocess.sources.read` detects the container (JSON lines, a JSON list, Parquet, Arrow) from the file itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.json_rows import plain
from artifacts.plugs import load_function
from preprocess.sources.documents import own_id, without_text

Record = dict[str, Any]


class WrongShape(Exception):
    """A record has no text: its text key is missing, or the value is not a string."""


def text_at(record: Record, key: str) -> str:
    """The text under `key`. Raises WrongShape if the key is missing or its value is not a string."""
    value = record.get(key)
    if isinstance(value, str):
        return value
    raise WrongShape(without_text(record, key))


def titled(record: Record, title: str, body: str) -> str:
    """Title and body on separate lines; the title is left out if the body already begins with it."""
    text, head = text_at(record, body).strip(), record.get(title)
    if not isinstance(head, str) or not head.strip() or text.startswith(head.strip()):
        return text
    return f"{head.strip()}\n{text}"


def encyclopedia(record: Record) -> str:
    """Title, summary and sections of BaiduBaiKe, on separate lines; each section's title comes before its content."""
    if "summary" not in record and "sections" not in record:
        raise WrongShape("no key 'summary' or 'sections'")
    parts: list[Any] = [record.get("title"), record.get("summary")]
    sections = record.get("sections") or []
    if not isinstance(sections, list):
        raise WrongShape("the key 'sections' is not a list")
    for section in sections:
        if not isinstance(section, dict):
            raise WrongShape("the key 'sections' has an item that is not an object")
        parts += [section.get("title"), section.get("content")]
    if len([part for part in parts[1:] if isinstance(part, str) and part.strip()]) == 0:
        raise WrongShape("neither 'summary' nor 'sections' has text")
    return "\n".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


@dataclass(frozen=True)
class Shape:
    """How to convert records: `text` returns the text or raises WrongShape; `used` lists keys to leave out of metadata.

    `identity` is the key of a record's id. `simplify` is the OpenCC configuration for the source: t2s for mainland text
    with a few Traditional pages; tw2s for Wikipedia, which has Taiwanese text (only tw2s converts 看著).
    """

    text: Callable[[Record], str]
    used: tuple[str, ...] | None  # None: unknown, because `text` is the user's own function
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
    """The shape of a source; `text_key` replaces the text key of `jsonl`.

    Raises:
        UserError: the source is neither in SHAPES nor a function `module.function`.
    """
    if "." in source and text_key is None:
        return Shape(load_function(source, "--source"), None, "id")
    if source not in SHAPES:
        raise UserError(f"--source {source} is unknown{nearest(source, SHAPES)}; choose one of {', '.join(SHAPES)}")
    if text_key is None:
        return SHAPES[source]
    if source != "jsonl":
        raise UserError(f"--text-key works only with --source jsonl, not {source}: leave it out")
    return Shape(partial(text_at, key=text_key), (text_key,), "id")


def is_used(shape: Shape, key: str, value: Any, text: str) -> bool:
    """Whether a record's value is already part of its text and must not go into metadata."""
    if shape.used is not None:
        return key in shape.used
    return isinstance(value, str) and value.strip() in text


def document(shape: Shape, record: Any, made_id: str) -> dict[str, Any]:
    """A document `{"id", "text", "metadata"}`; other scalars of the record become metadata. Raises WrongShape.

    A scalar inside an object is named by both keys: `{"toxicity": {"score": 0.1}}` becomes `toxicity.score`. A record
    without an id of its own, or with an empty one, gets `made_id`. Integers beyond 64 bits become strings.
    """
    if not isinstance(record, dict):
        raise WrongShape("not an object")
    text = shape.text(record)
    if shape.used is None:  # the user's own function
        if not isinstance(text, str):
            raise WrongShape("the function returned no string")
        text, _ = plain(text)
    own = own_id(record, shape.identity) if shape.identity else None
    metadata = {
        key: value
        for key, value in record.items()
        if key != shape.identity and isinstance(value, (str, int, float, bool)) and not is_used(shape, key, value, text)
    }
    for outer, inside in record.items():
        if isinstance(inside, dict) and outer != "metadata":
            scalars = ((key, value) for key, value in inside.items() if isinstance(value, (str, int, float, bool)))
            metadata |= {f"{outer}.{key}": value for key, value in scalars if not is_used(shape, outer, value, text)}
    nested = record.get("metadata")
    if isinstance(nested, dict):
        metadata.update(nested)
    for key, value in metadata.items():
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            metadata[key] = str(value)
    return {"id": own or made_id, "text": text, "metadata": metadata}
