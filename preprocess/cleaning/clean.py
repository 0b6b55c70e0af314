"""Drop documents that are not worth training on, and say why.

    myllm clean --input F.jsonl.zst --output G.jsonl.zst --rules verse

A rule set is a function from a document to the reason for dropping it, or None. Dropped documents are written beside
the output (`*.dropped.jsonl.zst`) with their reason, so that a threshold can be judged by what it costs.

The rule set `verse` keeps regular verse: 4 to 12 lines, all of five or all of seven characters, nothing lost. The
kept text names its form first (`五绝：`, `七律：`), so that a model learns to obey a form before it is asked for one.
The rule set `prose` is for running text of any kind: `preprocess.cleaning.quality` holds its rules and their
thresholds; `--set min_characters=50` replaces one.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest, run_main
from artifacts.files import read_jsonl, write_jsonl
from artifacts.stage import report_metrics
from artifacts.verse import NUMERALS, VERSE_LINES, couplets, verse_form, verse_lines
from preprocess.cleaning.characters import is_chinese
from preprocess.cleaning.quality import Thresholds, judge, normalise_rows

Document = dict[str, Any]

BATCH = 1024  # documents judged in one call


def verse(document: Document) -> str | None:
    """Keep regular verse only; on keeping, the text is set anew: `五绝：line，line。line，line。`"""
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


def prose(document: Document, thresholds: Thresholds = Thresholds()) -> str | None:  # noqa: B008 (frozen)
    """Judge one document of running text; its text is set in order (`preprocess.cleaning.quality.normalised`)."""
    normalise_rows([document])
    return judge([document["text"]], thresholds)[0]


RULES = ("verse", "prose")


def thresholds_of(settings: list[str]) -> Thresholds:
    """`name=value` pairs over the defaults; raises UserError for a name or a value that cannot be."""
    known = {field.name: type(field.default) for field in fields(Thresholds)}
    changed: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise UserError(f"--set {setting}: want NAME=VALUE{nearest(name, known)}; names: {', '.join(known)}")
        try:
            changed[name] = float(value) if known[name] is float else int(value)
        except ValueError:
            raise UserError(f"--set {setting}: {name} wants a number") from None
    return replace(Thresholds(), **changed)


def clean(
    source: Path,
    rules: str,
    reasons: Counter[str],
    thresholds: Thresholds = Thresholds(),  # noqa: B008 (frozen)
) -> Iterator[tuple[Document, str | None]]:
    """Every document with the reason for dropping it, or None; `reasons` is counted up."""
    documents = read_jsonl(source)
    while batch := list(islice(documents, BATCH)):
        if rules == "verse":
            found = [verse(document) for document in batch]
        else:
            normalise_rows(batch)
            found = judge([document["text"] for document in batch], thresholds)
        for document, reason in zip(batch, found):
            reasons[reason or "kept"] += 1
            yield document, reason


def dropped_path(output: Path) -> Path:
    return output.with_name(output.name.replace(".jsonl", ".dropped.jsonl"))


def split_out(rows: Iterator[tuple[Document, str | None]], output: Path) -> None:
    """Write kept documents to `output` and dropped ones beside it, in one pass and constant memory."""
    import orjson
    import zstandard

    from artifacts.files import atomic_file

    with ExitStack() as stack:
        path = dropped_path(output)
        dropped: Any = stack.enter_context(stack.enter_context(atomic_file(path)).open("wb"))
        if path.suffix == ".zst":
            dropped = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(dropped))

        def kept() -> Iterator[Document]:
            for document, reason in rows:
                if reason is None:
                    yield document
                else:
                    dropped.write(orjson.dumps({**document, "dropped": reason}, option=orjson.OPT_APPEND_NEWLINE))

        write_jsonl(output, kept())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl.zst file")
    parser.add_argument("--rules", choices=RULES, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a threshold of `prose`")
    arguments = parser.parse_args()
    reasons: Counter[str] = Counter()
    thresholds = thresholds_of(arguments.set)
    split_out(clean(arguments.input, arguments.rules, reasons, thresholds), arguments.output)
    report_metrics(documents_in=reasons.total(), documents=reasons.pop("kept", 0), dropped=dict(reasons))


if __name__ == "__main__":
    run_main(main)
