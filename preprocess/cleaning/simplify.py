"""Convert Traditional to Simplified Chinese with OpenCC, in several processes (OpenCC gains nothing from threads).

    myllm simplify --input F.jsonl.zst --output G.jsonl.zst --config t2s
    myllm simplify --input F.jsonl.zst --output G.jsonl.zst --phrases my_phrases.txt

`text` and the string values of `metadata` are converted. Use `t2s` for mainland-style Traditional text, `tw2s` for text
written in Taiwan (it also converts 看著 to 看着).

Simplified text stays as it is, also 乾安县 and 宫商角徵羽, whose 乾 and 徵 OpenCC alone would convert: such characters,
which both scripts have, are converted only where the text around them is Traditional (`preprocess.cleaning.scripts`).

`--phrases` is a file of your own phrases, one a line: the phrase, a tab, what it becomes. They win over OpenCC's, in
Traditional passages and in Simplified ones with Traditional characters in them.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import write_jsonl
from artifacts.stage import report_metrics
from preprocess.cleaning.conversion import CONFIGS, convert_many, converter
from preprocess.cleaning.scripts import RARE, SHARED, SIMPLIFIED, TRADITIONAL, Evidence, balance, kinds_of
from preprocess.sources.documents import read_documents

BATCH = 256  # documents: small batches fit in the CPU cache

UNCLEAR = re.compile(b"[" + SHARED + RARE + b"]")  # kinds that are converted only where the text is Traditional

Phrases = tuple[tuple[str, str], ...]  # each phrase with what it becomes


def read_phrases(path: Path) -> Phrases:
    """The phrases of a file, in its order; blank lines and lines that begin with # are skipped.

    Raises:
        UserError: the file is missing, is not UTF-8, or a line is not a phrase, a tab and what it becomes.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give --phrases a file with a phrase, a tab and what it becomes a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        phrase, *others = (part.strip() for part in line.split("\t"))
        if not phrase or len(others) != 1 or not others[0]:
            raise UserError(f"{path}, line {number}: {line!r} is not a phrase, one tab and what it becomes")
        if found.setdefault(phrase, others[0]) != others[0]:
            raise UserError(f"{path}, line {number}: {phrase} becomes {found[phrase]} in an earlier line: keep one")
    return tuple(found.items())


@lru_cache(maxsize=1)
def _index(phrases: Phrases) -> tuple[re.Pattern[str], dict[str, list[tuple[str, str]]]]:
    """A search for the first character of any phrase, and the phrases by it, the longest first."""
    by_first: dict[str, list[tuple[str, str]]] = {}
    for phrase, becomes in sorted(phrases, key=lambda pair: -len(pair[0])):
        by_first.setdefault(phrase[0], []).append((phrase, becomes))
    return re.compile(f"[{re.escape(''.join(by_first))}]"), by_first


def find_phrases(text: str, phrases: Phrases) -> Iterator[tuple[int, int, str]]:
    """Where each phrase begins and stops in a text, and what it becomes: from the left, the longest first."""
    if not phrases:
        return
    first, by_first = _index(phrases)
    place = 0
    while match := first.search(text, place):
        place = match.start()
        for phrase, becomes in by_first[match[0]]:
            if text.startswith(phrase, place):
                yield place, place + len(phrase), becomes
                place += len(phrase) - 1
                break
        place += 1


def corrected(text: str, converted: str, kinds: bytes, document: int, phrases: Phrases) -> str:
    """OpenCC's conversion of a text, without what was right in its Simplified passages, with the user's phrases.

    `kinds` are those of the text's characters, `document` is the balance of its document.
    """
    evidence = Evidence(kinds, document)
    unclear = [match.start() for match in UNCLEAR.finditer(kinds)]
    changes = [(place, place + 1, text[place]) for place in unclear if not evidence.is_traditional(place)]
    for start, stop, becomes in find_phrases(text, phrases):
        if TRADITIONAL in kinds[slice(*evidence.sentence(start))] or evidence.is_traditional(start):
            changes.append((start, stop, becomes))
    parts, done = [], 0  # OpenCC makes one character of each, so places are the same in both
    for start, stop, becomes in sorted(changes, key=lambda change: (change[0], -change[1])):
        if start >= done:  # not within a phrase
            parts += [converted[done:start], becomes]
            done = stop
    return "".join([*parts, converted[done:]])


def simplify_many(documents: list[list[str]], config: str, phrases: Phrases = ()) -> list[list[str]]:
    """Convert the texts of documents. A text that does not show its script has that of its document."""
    done = [list(texts) for texts in documents]
    places = [(texts, place) for texts in done for place in range(len(texts))]
    kinds = kinds_of([text for texts in documents for text in texts], config)
    chosen, unsure = [], {}
    for number, kind in enumerate(kinds):
        clear = TRADITIONAL in kind
        if (SHARED in kind or RARE in kind) and clear == (SIMPLIFIED in kind):
            first = number - places[number][1]
            unsure[number] = sum(map(balance, kinds[first : first + len(places[number][0])]))
        if clear or unsure.get(number, 0) > 0:
            chosen.append(number)
    rare = {number for number in chosen if RARE in kinds[number]}
    for light, numbers in ((True, [n for n in chosen if n not in rare]), (False, sorted(rare))):
        written = [places[number][0][places[number][1]] for number in numbers]
        for number, text, made in zip(numbers, written, convert_many(written, config, light)):
            if phrases or number in unsure:
                made = corrected(text, made, kinds[number], unsure.get(number, 0), phrases)
            texts, place = places[number]
            texts[place] = made
    return done


def simplify_rows(rows: list[dict[str, Any]], config: str, phrases: Phrases = ()) -> None:
    """Convert `text` and the string values of `metadata` of a batch, in place."""
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        named = [[key for key, value in row["metadata"].items() if isinstance(value, str)] for row in batch]
        documents = [[row["text"], *(row["metadata"][key] for key in keys)] for row, keys in zip(batch, named)]
        for row, keys, (text, *values) in zip(batch, named, simplify_many(documents, config, phrases)):
            row["text"] = text
            row["metadata"].update(zip(keys, values))


def simplify_batch(rows: list[dict[str, Any]], config: str, phrases: Phrases) -> list[dict[str, Any]]:
    simplify_rows(rows, config, phrases)
    return rows


def simplify(source: Path, config: str, phrases: Phrases, processes: int) -> Iterator[dict[str, Any]]:
    """Yield the documents of `source`, converted, in order. The result does not depend on `processes`."""
    rows = read_documents(source)
    batches = iter(lambda: list(islice(rows, 8 * BATCH)), [])
    done = 0
    with get_context("spawn").Pool(processes) as pool:
        for batch in pool.imap(partial(simplify_batch, config=config, phrases=phrases), batches):
            done += len(batch)
            yield from batch
            print(f"simplified {done} documents", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="documents: a .jsonl or .jsonl.zst file")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl or .jsonl.zst file")
    parser.add_argument("--config", default="t2s", help=f"OpenCC configuration: {', '.join(CONFIGS)}")
    parser.add_argument("--phrases", type=Path, metavar="FILE", help="your own phrases, which win over OpenCC's")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))


def run(arguments: argparse.Namespace) -> None:
    converter(arguments.config)
    phrases = read_phrases(arguments.phrases) if arguments.phrases else ()
    rows = simplify(arguments.input, arguments.config, phrases, arguments.processes)
    report_metrics(documents=write_jsonl(arguments.output, rows))


if __name__ == "__main__":
    main(__name__)
