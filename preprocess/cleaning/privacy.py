"""Mask and count personal data: mail addresses, and mobile and identity numbers of mainland China.

    myllm mask --input F.jsonl --output G.jsonl

    写信给 zhang@example.com，或打 138 1234 5678   ->   写信给 [邮箱]，或打 [电话]

Mobile numbers: eleven digits, 1 then 3 to 9 (numbering plan of the Ministry of Industry and Information Technology,
2017), with or without +86 and with single hyphens or spaces between the groups. Identity numbers: eighteen
characters with a date of birth and the check digit of GB 11643-1999 (ISO 7064 MOD 11-2); a number with a wrong check
digit is not an identity number and is kept. Digits may be full width. `myllm corpora` masks by default.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.files import write_jsonl
from artifacts.stage import report_metrics
from preprocess.sources.documents import read_documents

MAIL, PHONE, IDENTITY = "[邮箱]", "[电话]", "[身份证号]"
BATCH = 1024  # documents per call
SEPARATOR = "\x1e"

# the regex engine searches fast for a leading literal or class, so lookbehinds come after it
_MAIL = re.compile(r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])")
_LOCAL_PART = re.compile(r"[A-Za-z0-9._%+\-]{1,64}\Z")
_PHONE = re.compile(r"[1１](?<![\d０-９.][1１])[3-9３-９]\d[- ]?\d{4}[- ]?\d{4}(?![\d０-９])(?!\.\d)(?![A-Za-z])")
_COUNTRY_CODE = re.compile(r"(?:(?<!\d)[+＋]?86|[(（][+＋]?86[)）])[- ]?\Z")
_IDENTITY = re.compile(
    r"[1-9１-９](?<![0-9０-９A-Za-z][1-9１-９])\d{5}(?:19|20|１９|２０)\d{2}"
    r"(?:[0０][1-9１-９]|[1１][0-2０-２])(?:[0０][1-9１-９]|[12１２]\d|[3３][01０１])\d{3}[\dXxＸｘ](?![\dA-Za-z])"
)
_WEIGHTS = [pow(2, 17 - i, 11) for i in range(17)]


def valid_identity(number: str) -> bool:
    """Whether the last of eighteen characters is the check digit of the rest (ISO 7064 MOD 11-2)."""
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS))
    check = (12 - total) % 11
    last = number[17]
    return (check == 10) if last in "XxＸｘ" else int(last) == check


def _mask_mails(text: str, counts: Counter[str]) -> str:
    pieces, done = [], 0
    for match in _MAIL.finditer(text):
        local = _LOCAL_PART.search(text, max(done, match.start() - 64), match.start())
        if local:
            pieces += [text[done : local.start()], MAIL]
            done = match.end()
            counts["mail addresses"] += 1
    return "".join([*pieces, text[done:]]) if done else text


def _mask_phones(text: str, counts: Counter[str]) -> str:
    pieces, done = [], 0
    for match in _PHONE.finditer(text):
        before = _COUNTRY_CODE.search(text, max(done, match.start() - 6), match.start())
        pieces += [text[done : before.start() if before else match.start()], PHONE]
        done = match.end()
        counts["phone numbers"] += 1
    return "".join([*pieces, text[done:]]) if done else text


def mask(text: str, counts: Counter[str]) -> str:
    """Replace identifying numbers and addresses in a text; adds the number of each kind to `counts`."""

    def identity(match: re.Match[str]) -> str:
        if not valid_identity(match[0]):
            return match[0]
        counts["identity numbers"] += 1
        return IDENTITY

    # identity numbers first: one can contain a phone number, never the reverse
    text = _IDENTITY.sub(identity, text)
    text = _mask_phones(text, counts)
    return _mask_mails(text, counts) if "@" in text else text


def mask_rows(rows: list[dict[str, Any]]) -> Counter[str]:
    """Mask the texts of a batch in place, joined (a call costs more than a short text). Returns the counts."""
    counts: Counter[str] = Counter()
    joined = SEPARATOR.join(row["text"] for row in rows)
    masked = mask(joined, counts)
    if masked is not joined and masked != joined:
        parts = masked.split(SEPARATOR)
        if len(parts) != len(rows):  # a text contains the separator: mask one by one
            counts.clear()
            parts = [mask(row["text"], counts) for row in rows]
        for row, text in zip(rows, parts):
            row["text"] = text
    return counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="documents: a .jsonl or .jsonl.zst file")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl or .jsonl.zst file")


def run(arguments: argparse.Namespace) -> None:
    counts: Counter[str] = Counter()

    def masked() -> Iterator[dict[str, Any]]:
        rows = read_documents(arguments.input)
        while batch := list(islice(rows, BATCH)):
            counts.update(mask_rows(batch))
            yield from batch

    report_metrics(documents=write_jsonl(arguments.output, masked()), masked=dict(counts))


if __name__ == "__main__":
    main(__name__)
