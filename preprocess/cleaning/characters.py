"""Hold the characters of many documents in one array, so that rules take nanoseconds per character, not microseconds.

A batch of texts becomes an array of code points, each text followed by a line feed, and an array with the kind of each
character. Everything that the rules need (shares, lines, n-grams) is then computed with a few numpy passes.

    characters = Characters.of(["春风。", "明月。"])
    characters.counts()[:, CHINESE]      # Chinese characters of each text
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

OTHER, CHINESE, SPACE, NEWLINE, LETTER, DIGIT, SENTENCE, CONTROL, LATIN, GARBLED, KINDS = range(11)
SENTENCE_MARKS = "，。！？；：、…,.!?;:"
LINE_ENDS = "。！？；：…”』」）》!?;.:)"  # the last character of a line of running text
TOP = 0x40000  # larger code points (tags, private planes) are clipped to this one
# U+FFFD replaces undecodable bytes; accented Latin letters are the sign of UTF-8 decoded as Latin-1
REPLACEMENT = 0xFFFD

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_BASE = np.uint64(0xD6E8FEB86659FD93)  # odd: the rolling hash is a polynomial in it, modulo 2^64

# The most common characters and marks: their UTF-8 decoded as GBK gives the characters that reveal this error.
_COMMONEST = "的一是了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年，。、：；！？“”"


def is_chinese(character: str) -> bool:
    """Whether a character is a CJK unified ideograph of the basic block (Unicode U+4E00 to U+9FFF)."""
    return "\u4e00" <= character <= "\u9fff"


def garbled_characters() -> str:
    """Characters common in UTF-8 text decoded as GBK, but very rare in Chinese: 锛 銆 鐨 鏄 …"""
    seen = {c for mark in _COMMONEST for c in (mark * 2).encode().decode("gbk", "ignore") if is_chinese(c)}
    # level 1 of GB 2312 (first byte 0xB0 to 0xD7) is the 3,755 characters in daily use, so they are left out
    return "".join(sorted(c for c in seen if not 0xB0 <= (c.encode("gb2312", "ignore") or b"\0")[0] <= 0xD7))


@cache
def kinds_table() -> np.ndarray:
    """The kind of every code point up to TOP; shape [TOP + 1], uint8."""
    table: np.ndarray = np.full(TOP + 1, OTHER, dtype=np.uint8)
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)):
        table[first : last + 1] = CHINESE
    table[ord("〇")] = CHINESE
    for code in range(0x3100):
        category = unicodedata.category(chr(code))
        if category == "Zs":
            table[code] = SPACE
        elif category == "Nd":
            table[code] = DIGIT
        elif category[0] == "C":
            table[code] = CONTROL
        elif category[0] == "L":
            table[code] = LATIN if 0x80 <= code < 0x100 else LETTER
        elif 0x80 <= code < 0x100:
            table[code] = LATIN
    table[0xB7] = OTHER  # the middle dot of foreign names
    for code in (0xA7, 0xB0, 0xB1, 0xD7, 0xF7):  # § ° ± × ÷ are usual in Chinese text
        table[code] = OTHER
    for code in range(0xFF10, 0xFF1A):
        table[code] = DIGIT
    for code in (*range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B)):
        table[code] = LETTER
    for first, last in ((0xD800, 0xF8FF), (0xFFF0, 0xFFFC), (0xFFFE, 0xFFFF)):  # surrogates, private use, specials
        table[first : last + 1] = CONTROL
    table[[0xFEFF, *range(0xE0000 if TOP > 0xE0000 else TOP, TOP + 1)]] = CONTROL
    table[REPLACEMENT] = LATIN
    table[[ord(c) for c in SENTENCE_MARKS]] = SENTENCE
    table[[ord(c) for c in garbled_characters()]] = GARBLED
    table[[ord("\t"), ord("\r")]] = SPACE
    table[ord("\n")] = NEWLINE
    return table


@cache
def line_end_table() -> np.ndarray:
    table: np.ndarray = np.zeros(TOP + 1, dtype=bool)
    table[[ord(c) for c in LINE_ENDS]] = True
    return table


@dataclass(frozen=True)
class Characters:
    """`count` texts as code points: text i is codes[starts[i]:ends[i]], and codes[ends[i]] is a line feed."""

    codes: np.ndarray  # uint32, clipped to TOP
    kinds: np.ndarray  # uint8, one of the kinds above
    starts: np.ndarray  # int64
    ends: np.ndarray  # int64

    @staticmethod
    def of(texts: list[str]) -> Characters:
        joined = "\n".join(texts) + "\n"
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        codes = np.minimum(codes, np.uint32(TOP))
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        starts: np.ndarray = np.zeros(len(texts), dtype=np.int64)
        np.cumsum(lengths[:-1] + 1, out=starts[1:])
        return Characters(codes, kinds_table()[codes], starts, starts + lengths)

    @property
    def count(self) -> int:
        return len(self.starts)

    def owners(self) -> np.ndarray:
        """Which text each character belongs to (its line feed too); shape [characters]."""
        return np.repeat(np.arange(self.count), self.ends - self.starts + 1)

    def counts(self) -> np.ndarray:
        """Characters of each kind in each text; shape [texts, KINDS]."""
        if not self.count:
            return np.zeros((0, KINDS), dtype=np.int64)
        key: np.ndarray = self.owners() * KINDS
        key += self.kinds
        counts = np.bincount(key, minlength=self.count * KINDS).reshape(self.count, KINDS)
        counts[:, NEWLINE] -= 1  # the line feed that this class adds after each text does not count
        return counts

    def without_space(self) -> Characters:
        """The same texts without white space and control characters."""
        return self.only((self.kinds != SPACE) & (self.kinds != NEWLINE) & (self.kinds != CONTROL))

    def only(self, keep: np.ndarray) -> Characters:
        """The same texts with only the characters where `keep` is true. Modifies `keep`."""
        keep[self.ends] = True
        place: np.ndarray = np.zeros(len(keep) + 1, dtype=np.int64)
        np.cumsum(keep, out=place[1:])
        return Characters(self.codes[keep], self.kinds[keep], place[self.starts], place[self.ends])

    def window_starts(self, size: int) -> np.ndarray:
        """Start positions of the windows of `size` characters within each text, its line feed excluded."""
        counts = np.maximum(self.ends - self.starts - size + 1, 0)
        shift: np.ndarray = np.repeat(self.starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
        return np.arange(counts.sum()) + shift

    def window_counts(self, size: int) -> np.ndarray:
        """How many windows of `size` characters each text has; shape [texts]."""
        return np.maximum(self.ends - self.starts - size + 1, 0)


def mixed(values: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit values, in place (the final step of a multiplicative hash)."""
    values ^= values >> np.uint64(31)
    values *= _MIX[0]
    values ^= values >> np.uint64(29)
    values *= _MIX[1]
    values ^= values >> np.uint64(32)
    return values


def window_hashes(codes: np.ndarray, size: int) -> np.ndarray:
    """A 64-bit hash of the `size` characters that start at each position; shape [len(codes) - size + 1].

    A polynomial hash (Karp and Rabin 1987). Windows are doubled until they are long enough, so that a window of 13
    takes five multiplications instead of thirteen.
    """
    if len(codes) < size:
        return np.zeros(0, dtype=np.uint64)
    power: np.ndarray = codes.astype(np.uint64)
    width = 1
    power += np.uint64(1)
    power *= _MIX[0]
    whole: Any = None
    covered = 0
    rest = size
    while True:
        if rest & 1:
            if whole is None:
                whole = power.copy()
            else:  # extend the window by `width` characters
                length = len(power) - covered
                whole = whole[:length] * _BASE ** np.uint64(width) + power[covered:]
            covered += width
        rest >>= 1
        if not rest:
            break
        power = power[:-width] * _BASE ** np.uint64(width) + power[width:]
        width *= 2
    return mixed(whole[: len(codes) - size + 1])
