"""A MediaWiki dump to clean documents, with WikiExtractor as a program.

    python -m preprocess.extract_wiki --dump zhwiki-pages-articles.xml.bz2 --output corpus/zhwiki/extracted.jsonl.zst

Language-variant markup, `-{zh-hans:…; zh-hant:…}-`, is resolved before: WikiExtractor would leave it in the text, and
OpenCC convert inside it. The Simplified variant is taken where there is one. After it, what templates leave behind
(`（）`, `（；`) is mended, and redirects and pages without text are dropped.
"""

from __future__ import annotations

import argparse
import bz2
import html
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from artifacts.errors import UserError, run_main
from artifacts.files import write_jsonl
from artifacts.stage import report_metrics
from preprocess.download import source_file

VARIANT = re.compile(r"-\{(?:[A-Za-z|;\-]*\|)?((?:(?!-\{|\}-).)*)\}-", re.S)
VARIANT_ORDER = ("zh-hans", "zh-cn", "zh-sg", "zh-my", "zh")
REDIRECT = re.compile(r"^\s*#\s*(?:redirect|重定向)", re.I)
EMPTY_BRACKETS = re.compile(r"[（(][\s；;，,、]*[）)]")
HEADING = re.compile(r"^[^。！？\n]{1,30}\.$\n?", re.M)  # WikiExtractor ends a heading with an ASCII full stop
LEADING_IN_BRACKETS = re.compile(r"([（(])[\s；;，,、]+")


def resolve_variant(match: re.Match[str]) -> str:
    """The Simplified reading of one `-{…}-` (MediaWiki: Writing systems/Syntax); plain text in it stands for itself."""
    content = html.unescape(match[1])
    choices: dict[str, str] = {}
    for part in content.split(";"):
        name, colon, text = part.partition(":")
        if colon and re.fullmatch(r"\s*zh(?:-\w+)?\s*", name):
            choices[name.strip().lower()] = text.strip()
    if not choices:
        return match[1]
    best = next((choices[name] for name in VARIANT_ORDER if name in choices), next(iter(choices.values())))
    return html.escape(best, quote=False)


def resolve_variants(text: str) -> str:
    """Resolve every `-{…}-`, innermost first."""
    while (resolved := VARIANT.sub(resolve_variant, text)) != text:
        text = resolved
    return text


def open_dump(dump: Path) -> IO[str]:
    if dump.suffix == ".bz2":
        return bz2.open(dump, "rt", encoding="utf-8")
    return dump.open(encoding="utf-8")


def prepare(dump: Path, target: Path) -> int:
    """Write the dump with variants resolved, page by page; returns the number of pages.

    Raises UserError when the dump is not there, not XML, cut short, or holds no page.
    """
    pages = 0
    try:
        with open_dump(dump) as source, target.open("w", encoding="utf-8") as output:
            parser: Any = ElementTree.XMLPullParser(["end"])
            block: list[str] = []
            for line in source:
                parser.feed(line)
                for _, element in parser.read_events():
                    element.clear()
                block.append(line)
                if "</page>" in line:
                    pages += 1
                    output.write(resolve_variants("".join(block)))
                    block = []
            parser.close()
            output.write("".join(block))
    except FileNotFoundError:
        raise UserError(f"{dump} does not exist: pass the path of a pages-articles dump") from None
    except (ElementTree.ParseError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{dump} is not whole XML ({error}): it is cut or damaged, download it again") from None
    except OSError as error:
        if dump.suffix == ".bz2" and error.errno is None:
            raise UserError(f"{dump} is not a whole bz2 file ({error}): download it again") from None
        raise
    if not pages:
        raise UserError(f"{dump} holds no <page>: it is not a MediaWiki dump")
    return pages


def tidy(text: str) -> str:
    """Mend what vanished templates leave in running text, and drop headings."""
    text = HEADING.sub("", EMPTY_BRACKETS.sub("", html.unescape(text)))
    return LEADING_IN_BRACKETS.sub(r"\1", text).strip()


def documents(prepared: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Documents as WikiExtractor gives them, tidied; raises UserError when it fails."""
    import orjson

    command = [sys.executable, "-m", "wikiextractor.WikiExtractor", "--json", "--no-templates", "--discard_empty"]
    command += ["--quiet", "--processes", str(processes), "-o", "-", str(prepared)]
    print("$ " + " ".join(command), flush=True)
    with tempfile.TemporaryFile("w+") as errors:
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert program.stdout is not None
        for line in program.stdout:
            page = orjson.loads(line)
            text = tidy(page["text"])
            if text and not REDIRECT.match(text):
                yield {
                    "id": f"zhwiki-{int(page['id']):08d}",
                    "text": text,
                    "metadata": {"title": page["title"], "url": page["url"]},
                }
        if program.wait() != 0:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"WikiExtractor failed on {prepared}: {last}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=Path, help=".xml or .xml.bz2; by default the sample of this repository")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    dump = arguments.dump or source_file("zhwiki-sample")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    prepared = arguments.output.with_name(".prepared.xml")  # a fixed name: what a kill leaves is written over
    try:
        pages = prepare(dump, prepared)
        # WikiExtractor's workers answer in any order; by id the result is the same every time
        rows = sorted(documents(prepared, arguments.processes), key=lambda row: row["id"])
    finally:
        prepared.unlink(missing_ok=True)
    if not rows:
        raise UserError(f"{dump}: none of its {pages} pages has text (redirects and empty pages only)")
    report_metrics(pages=pages, pages_with_text=write_jsonl(arguments.output, rows))


if __name__ == "__main__":
    run_main(main)
