"""A corpus to read: its name, the format of its records, its files and its licence.

`--source` takes a name of `sources.yaml` (`c4-zh`), a format of `preprocess.sources.shapes` (`c4_zh`, `jsonl`), or a
function `module.function`. Without a path, the files are those that `myllm download` has put into the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.files import read_yaml
from preprocess.corpora.keep import rule_of
from preprocess.sources.download import SOURCES, source_file
from preprocess.sources.shapes import SHAPES, shape_of


@dataclass(frozen=True)
class Source:
    """A corpus of a run; `reader` is its format, `simplify` an OpenCC configuration or "none".

    `keep` are rules on the documents' metadata (`preprocess.corpora.keep`); `score` is the key of the corpus's score.
    """

    name: str
    reader: str
    inputs: tuple[str, ...]
    text_key: str | None = None
    simplify: str = "t2s"
    licence: str = "not stated"
    keep: tuple[str, ...] = ()
    score: str | None = None


def entry_of(name: str) -> tuple[str | None, dict[str, Any]]:
    """Name and entry in `sources.yaml` of a source, given by its name there or by its format; (None, {}) if unknown.

    `jsonl` is the format of anybody's files, so it names none.
    """
    entries = read_yaml(SOURCES)
    if name not in entries and name != "jsonl":
        name = next((known for known, entry in entries.items() if entry.get("reader") == name), "")
    return (name, entries[name]) if name in entries else (None, {})


def downloaded(source: str) -> str:
    """The path of a downloaded corpus. Raises UserError if it was not downloaded, or is not in `sources.yaml`."""
    name, entry = entry_of(source)
    if name is None or entry["reader"] == "wiki_dump":
        raise UserError(f"--source {source} needs --input: a file, folder or glob")
    path = source_file(name)
    if not path.exists():
        raise UserError(f"{path} does not exist: run `myllm download {name}`, or pass --input")
    return str(path)


def make_source(
    given: str,
    inputs: Iterable[str],
    text_key: str | None,
    simplify: str | None,
    licence: str | None,
    keep: Iterable[str] = (),
) -> Source:
    """The source of a `--source`; what is not given comes from `sources.yaml`, else from its format.

    Raises:
        UserError: the source is unknown, its reader makes no documents, its files are not there, or a rule is none.
    """
    name, entry = entry_of(given)
    reader = given if given in SHAPES or "." in given else str(entry.get("reader", given))
    if reader not in SHAPES and "." not in reader:
        if name is not None:
            raise UserError(f"--source {given} is not a corpus: its reader in {SOURCES.name} is {reader}")
        known = [*(n for n, e in read_yaml(SOURCES).items() if e.get("reader") in SHAPES), *SHAPES]
        raise UserError(f"--source {given} is unknown{nearest(given, known)}; choose one of {', '.join(known)}")
    text_key = text_key or entry.get("text_key")
    shape = shape_of(reader, text_key)
    return Source(
        name=given,
        reader=reader,
        inputs=tuple(inputs) or (downloaded(given),),
        text_key=text_key,
        simplify=simplify or shape.simplify,
        licence=licence or str(entry.get("licence", Source.licence)),
        keep=tuple(rule_of(rule).text for rule in keep),
        score=entry.get("score"),
    )


def option_by_source(
    sources: list[str], given: list[str], option: str = "--input", what: str = "PATH"
) -> dict[str, list[str]]:
    """The values of an option by source: plain for a single source, `SOURCE=VALUE` for several.

    Raises:
        UserError: a source is given twice, or a value names none of several sources.
    """
    twice = next((name for name in sources if sources.count(name) > 1), None)
    if twice:
        raise UserError(f"--source {twice} is given twice: give it once, with all its files as --input")
    if len(sources) == 1:
        return {sources[0]: [text.removeprefix(f"{sources[0]}=") for text in given]}
    found: dict[str, list[str]] = {name: [] for name in sources}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in found:
            raise UserError(f"{option} {text}: with several sources write SOURCE={what}, one of {', '.join(sources)}")
        found[name].append(value)
    return found
