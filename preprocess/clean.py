"""Drop documents that are not worth training on, and say why.

    python -m preprocess.clean --input F.jsonl.zst --output G.jsonl.zst --rules verse

A rule set is a function from a document to the reason for dropping it, or None. Dropped documents are written beside
the output (`*.dropped.jsonl.zst`) with their reason, so that a threshold can be judged by what it costs.

The rule set `verse` keeps regular verse: 4 to 12 lines, all of five or all of seven characters, nothing lost. The
kept text names its form first (`五绝：`, `七律：`), so that a model learns to obey a form before it is asked for one.
The rule set `prose` is a first version: long enough, mostly Chinese, not one line over and over.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from artifacts.errors import run_main
from artifacts.files import read_jsonl, write_jsonl
from artifacts.stage import report_metrics

Document = dict[str, Any]

PUNCTUATION = re.compile(r"[，。！？；：、\n]")
VERSE_LINES = range(4, 13, 2)
NUMERALS = {5: "五", 7: "七"}
FORMS = {4: "绝", 8: "律"}  # by number of lines; verse of any other is called 古
FORM = re.compile(r"^[五七][绝律古]：")

PROSE_SHORTEST = 20  # characters
PROSE_CHINESE_SHARE = 0.5  # of the characters that are not white space
PROSE_REPEATED_LINES = 0.3  # share of lines that stand more than once


def is_chinese(character: str) -> bool:
    """Whether a character is a CJK unified ideograph of the basic block (Unicode U+4E00 to U+9FFF)."""
    return "\u4e00" <= character <= "\u9fff"


def verse_lines(text: str) -> list[str]:
    """The lines of a poem, without the form before them and without punctuation."""
    return [line for line in PUNCTUATION.split(FORM.sub("", text)) if line]


def verse_form(lines: list[str]) -> str:
    """The form's short name: 五绝, 七绝, 五律, 七律; 五古 or 七古 for other numbers of lines."""
    return NUMERALS[len(lines[0])] + FORMS.get(len(lines), "古")


def couplets(lines: list[str]) -> str:
    """Lines set as verse: `line，line。` couplet by couplet; a last odd line ends with a comma."""
    return "".join(line + ("。" if index % 2 else "，") for index, line in enumerate(lines))


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


def prose(document: Document) -> str | None:
    """A first honest filter for running text; on keeping, the text is NFC and without control characters."""
    text = unicodedata.normalize("NFC", document["text"])
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C").strip()
    solid = [c for c in text if not c.isspace()]
    if len(solid) < PROSE_SHORTEST:
        return "too short"
    if sum(map(is_chinese, solid)) < PROSE_CHINESE_SHARE * len(solid):
        return "not mostly Chinese"
    lines = Counter(line.strip() for line in text.splitlines() if line.strip())
    if sum(count for count in lines.values() if count > 1) > PROSE_REPEATED_LINES * lines.total():
        return "repeated lines"
    document["text"] = text
    return None


RULES: dict[str, Callable[[Document], str | None]] = {"verse": verse, "prose": prose}


def clean(source: Path, rules: str, reasons: Counter[str]) -> Iterator[tuple[Document, str | None]]:
    """Every document with the reason for dropping it, or None; `reasons` is counted up."""
    rule = RULES[rules]
    for document in read_jsonl(source):
        reason = rule(document)
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
        raw = stack.enter_context(stack.enter_context(atomic_file(dropped_path(output))).open("wb"))
        dropped = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(raw))

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
    arguments = parser.parse_args()
    reasons: Counter[str] = Counter()
    split_out(clean(arguments.input, arguments.rules, reasons), arguments.output)
    report_metrics(documents_in=reasons.total(), documents=reasons.pop("kept", 0), dropped=dict(reasons))


if __name__ == "__main__":
    run_main(main)
