"""Filter low-quality running text by character statistics, without word segmentation or a model.

    myllm clean --rules prose --input F.jsonl --output G.jsonl

`judge` takes a batch of texts and returns for each the reason for dropping it, or None. Every threshold is a field of
`Thresholds`, with its source; `myllm clean --set min_characters=50` changes one.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocess.cleaning.characters import (
    CHINESE,
    CONTROL,
    DIGIT,
    GARBLED,
    LATIN,
    NEWLINE,
    SENTENCE,
    SPACE,
    Characters,
    line_end_table,
    mixed,
    window_hashes,
)
from preprocess.cleaning.phrases import finder

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff0-\ufffc\ufffe\uffff]"
)
LINE_BREAKS = re.compile("\r\n?|[\u2028\u2029\x85]")
# box-drawing characters and rules: a tokenizer would learn them as words
RULED = "-=_*~#+.·—…"
ORNAMENTS = re.compile(f"[\u2500-\u259f]+|([{re.escape(RULED)}])\\1{{5,}}")
BLANKS = " \t\u3000\xa0"
TRAILING = re.compile(f"[{BLANKS}]+\n|\n{{3,}}")
# a fast test whether a batch needs any of this: one regex class, and substrings, which are found much faster
SUSPECT = re.compile(CONTROLS.pattern[:-1] + "\u2028\u2029\u2500-\u259f]")
SUSPECT_PARTS = ["\n\n\n", *(blank + "\n" for blank in BLANKS), *(mark * 6 for mark in RULED)]


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the quality filter; shares are between 0 and 1. A text beyond a threshold is dropped.

    Sources: CWT = ChineseWebText (Chen et al. 2023, arXiv 2311.01149, section 3); FW2 = FineWeb 2's tuned values for
    cmn_Hani (Penedo et al. 2025, configs/cmn_Hani.yml); Gopher = Rae et al. 2021, table A1; own = chosen here with
    `python -m benchmarks.preprocess`, on real clean prose and planted junk.
    """

    min_characters: int = 10  # white space excluded; WuDaoCorpora (Yuan et al. 2021) drops pages below ten
    min_chinese: float = 0.2  # of these characters; CWT uses 0.3, which drops technical prose with commands in it
    max_mojibake: float = 0.03  # of these characters: accented Latin letters and U+FFFD; own
    max_garbled: float = 0.08  # of Chinese characters: those typical of UTF-8 decoded as GBK; own
    min_sentence_marks: float = 0.01  # of the characters that are not white space; own (running text has 0.08 to 0.15)
    max_digits: float = 0.4  # of the characters that are not white space; own
    max_repeated_lines: float = 0.287  # share of lines that repeat an earlier one of the text; FW2 dup_line_frac
    max_repeated_windows: float = 0.5  # share of 13-character windows that repeat an earlier one; CWT
    repeated_window: int = 13  # characters; CWT
    min_line_ends: float = 0.106  # share of lines that end like a sentence; FW2 line_punct_thr
    min_line_length: float = 10.0  # mean; checked only if too few lines end like a sentence; CWT
    max_line_breaks: float = 0.178  # line feeds per character, checked as above; FW2 new_line_ratio
    advert_phrases: int = 3  # this many different ones that fill a fifth of `advert_share`, ...
    advert_share: float = 0.05  # ... or two that fill this share, or one that fills twice this share; own
    furniture_phrases: int = 4  # different ones, if they fill `furniture_share`; own
    furniture_share: float = 0.08
    garbage_phrases: int = 2  # such as 锟斤拷; own


def normalised(text: str) -> str:
    """Normalise a text: NFC, line feeds as line breaks, no control or invisible characters, rules, trailing blanks."""
    text = LINE_BREAKS.sub("\n", unicodedata.normalize("NFC", text))
    text = ORNAMENTS.sub(lambda match: (match[1] or "") * 3, CONTROLS.sub("", text))
    while (cut := TRAILING.sub(lambda match: match[0].lstrip(BLANKS)[:2], text)) != text:
        text = cut
    return text.strip()


def normalise_rows(rows: list[dict]) -> None:
    """Normalise the texts of a batch in place. One search over the joined texts skips batches that need no change."""
    joined = "\n".join([row["text"] for row in rows])
    untidy = SUSPECT.search(joined) or any(part in joined for part in SUSPECT_PARTS)
    if untidy or not unicodedata.is_normalized("NFC", joined):
        for row in rows:
            row["text"] = normalised(row["text"])
    else:
        for row in rows:
            row["text"] = row["text"].strip()


@dataclass(frozen=True)
class Lines:
    """Line statistics of each text, without blank lines; arrays of shape [texts]."""

    count: np.ndarray  # lines of each text
    repeated: np.ndarray  # of them, those that repeat an earlier line of the text
    ended: np.ndarray  # of them, those that end like a sentence

    @staticmethod
    def of(characters: Characters) -> Lines:
        texts = characters.count
        keep = (characters.kinds != SPACE) & (characters.kinds != CONTROL)
        codes, kinds = characters.codes[keep], characters.kinds[keep]
        place: np.ndarray = np.zeros(len(keep) + 1, dtype=np.int64)
        np.cumsum(keep, out=place[1:])
        ends = np.flatnonzero(kinds == NEWLINE)  # every text ends with a line feed, so every line does
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts
        # hash of a line: the sum of a hash of each character with its position in the line
        within = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
        values = mixed((within.astype(np.uint64) << np.uint64(20)) ^ codes)
        values[ends] = 0  # the line feeds
        owners: Any = np.searchsorted(place[characters.ends], ends, side="left")
        full = lengths > 0
        starts, ends, owners = starts[full], ends[full], owners[full]
        if not len(starts):
            zeros: np.ndarray = np.zeros(texts, dtype=np.int64)
            return Lines(zeros, zeros, zeros)
        last: Any = codes[ends - 1]
        ended = np.bincount(owners[line_end_table()[last]], minlength=texts)
        count = np.bincount(owners, minlength=texts)
        return Lines(count, _repeats(owners, np.add.reduceat(values, starts), texts), ended)


def _repeats(owners: np.ndarray, hashes: np.ndarray, texts: int) -> np.ndarray:
    """How many hashes of each text repeat an earlier one. The sort key is the text's number above 40 bits of hash."""
    keys = (owners.astype(np.uint64) << np.uint64(40)) | (hashes >> np.uint64(24))
    keys.sort()
    again = keys[1:][keys[1:] == keys[:-1]]
    return np.bincount((again >> np.uint64(40)).astype(np.int64), minlength=texts)


def repeated_windows(solid: Characters, size: int) -> np.ndarray:
    """The share of windows of `size` characters that repeat an earlier one of the text; shape [texts]."""
    hashes = window_hashes(solid.codes, size)
    counts = solid.window_counts(size)
    hashes = hashes[solid.window_starts(size)]
    repeated = _repeats(np.repeat(np.arange(solid.count), counts), hashes, solid.count)
    return repeated / np.maximum(counts, 1)


def judge(texts: list[str], thresholds: Thresholds = Thresholds()) -> list[str | None]:  # noqa: B008 (frozen)
    """For each normalised text, the first rule that it breaks, or None. Batches of a few megabytes are fastest."""
    if not texts:
        return []
    t = thresholds
    characters = Characters.of(texts)
    solid = characters.without_space()
    counts = characters.counts()
    length = solid.ends - solid.starts
    floor = np.maximum(length, 1)
    chinese = counts[:, CHINESE] + counts[:, GARBLED]
    lines = Lines.of(characters)
    line_count = np.maximum(lines.count, 1)
    phrases = finder().counts(characters)
    adverts, advert_size = phrases["advert"]
    furniture, furniture_size = phrases["furniture"]
    advert_share, furniture_share = advert_size / floor, furniture_size / floor
    marks = counts[:, SENTENCE] / floor
    listed = lines.ended / line_count < t.min_line_ends
    short_lines = (length / line_count < t.min_line_length) | (lines.count / floor > t.max_line_breaks)
    broken = {
        "too short": length < t.min_characters,
        "mojibake": (counts[:, LATIN] > t.max_mojibake * floor)
        | (counts[:, GARBLED] > t.max_garbled * np.maximum(chinese, 1))
        | (phrases["garbage"][0] >= t.garbage_phrases)
        | (phrases["garbage"][1] > 0.02 * floor),
        "not mostly Chinese": chinese < t.min_chinese * floor,
        "mostly digits": counts[:, DIGIT] > t.max_digits * floor,
        "repeated lines": lines.repeated > t.max_repeated_lines * line_count,
        "repeated passages": repeated_windows(solid, t.repeated_window) > t.max_repeated_windows,
        "advert": (adverts >= t.advert_phrases) & (advert_share > t.advert_share / 5)
        | (adverts >= 2) & (advert_share > t.advert_share)
        | (adverts >= 1) & (advert_share > 2 * t.advert_share),
        "page furniture": (furniture >= t.furniture_phrases) & (furniture_share > t.furniture_share)
        | (furniture >= 2) & (furniture_share > 3 * t.furniture_share),
        "no sentences": marks < t.min_sentence_marks,
        "lists of short lines": listed & short_lines & (lines.count >= 5),
    }
    reasons: list[str | None] = [None] * len(texts)
    for reason, hit in reversed(broken.items()):
        for index in np.flatnonzero(hit).tolist():
            reasons[index] = reason
    return reasons


def judge_rows(rows: list[dict], thresholds: Thresholds) -> list[str | None]:
    """`judge` of a batch of documents."""
    return judge([row["text"] for row in rows], thresholds)
