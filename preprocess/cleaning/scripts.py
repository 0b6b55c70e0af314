"""Tell Traditional text from Simplified text by the characters that only one of the two has.

    kinds_of(["看著窗外，他有三部書。", "乾清宫在北京。"], "t2s")     # the kind of each character, a byte each

Some characters belong to both scripts: 乾 is Simplified in 乾安县, and Traditional in 乾淨, which is 干净. Such a
SHARED character proves nothing. Its sentence decides, by characters that only one script has; if the sentence has as
many of one as of the other, its line decides, then its text, then its document (`Evidence`).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from preprocess.cleaning.characters import TOP
from preprocess.cleaning.conversion import converted_characters

# the kind of a character; RARE ones are SHARED, and converted by OpenCC's whole configuration alone
NEITHER, SIMPLIFIED, TRADITIONAL, SHARED, RARE, ENDS_SENTENCE, ENDS_LINE = (bytes([kind]) for kind in range(7))
SENTENCE_ENDS = "。！？；!?;"

# Characters that OpenCC converts though they are right in Simplified text. Those of GB 2312 (乾徵於麴 …) are found by
# its codec. The Table of General Standard Chinese Characters (2013) adds these, for names and terms such as 毕昇:
STANDARD = "剋劄扞昇氾爇祕脩苧蒐薳谿釐陞"
# OpenCC converts these in some phrases only: 回覆, 憑藉, 深沈, 土坏
IN_PHRASES = "沈藉覆坏瞭衹甦哩么俱彷梁吃"
# Forms that Traditional editions print too, so that they prove nothing: in chinese-poetry at least one 黃, 卻, 帶 … in
# fifty stands as 黄, 却, 带 …
PRINTED_IN_BOTH = (
    "黄却烟韵凉卧带遥强荆携迹况脚摇别瑶衮横决虚咏潜笋葱静虬厨兹凭脱彦温争耻户厦恒脉凛没禄疴姹侣咤抛净吕冲戯盗秃刹溆毁叙"
    "悦峥娱蘖潴剥奥兖亘灾猪粤嘘鞲飚蹰悮渌懔税蜕廪䅉愠猫氲筝来宫将泪盖壮减踪堕装叠莱个峡寝册稳挟滚碍惬媪箧禀蒋垅匀眦娈麹嘱"
)


def _has(encoding: str, character: str) -> bool:
    return bool(character.encode(encoding, "ignore"))


@cache
def kinds_table(config: str) -> np.ndarray:
    """The kind of every code point up to TOP; shape [TOP + 1], uint8."""
    kinds: dict[str, bytes] = {}
    codes: np.ndarray = np.arange(TOP + 1)
    whole, light = converted_characters(config), converted_characters(config, light=True)
    for character in map(chr, np.flatnonzero(converted_characters("s2t") != codes).tolist()):
        if (
            not _has("big5", character) and character not in PRINTED_IN_BOTH
        ):  # Traditional text has 里, 后 and 面 too, though s2t converts them
            kinds[character] = SIMPLIFIED
    for character in map(chr, np.flatnonzero(whole != codes).tolist()):
        kinds[character] = SHARED if _has("gb2312", character) else TRADITIONAL
    kinds |= dict.fromkeys(STANDARD + IN_PHRASES, SHARED)
    kinds |= dict.fromkeys(map(chr, np.flatnonzero(whole != light).tolist()), RARE)
    kinds |= dict.fromkeys(SENTENCE_ENDS, ENDS_SENTENCE)
    kinds["\n"] = ENDS_LINE
    table: np.ndarray = np.zeros(TOP + 1, dtype=np.uint8)
    table[list(map(ord, kinds))] = [kind[0] for kind in kinds.values()]
    return table


def kinds_of(texts: list[str], config: str) -> list[bytes]:
    """The kind of each character of each text, a byte a character."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds: bytes = np.take(kinds_table(config), codes, mode="clip").tobytes()
    found, start = [], 0
    for text in texts:
        found.append(kinds[start : start + len(text)])
        start += len(text)
    return found


def balance(kinds: bytes, start: int = 0, stop: int | None = None) -> int:
    """How many more characters only Traditional has than only Simplified has."""
    return kinds.count(TRADITIONAL, start, stop) - kinds.count(SIMPLIFIED, start, stop)


class Evidence:
    """Whether a place of a text is Traditional; `kinds` are those of the text, `document` is its document's balance."""

    def __init__(self, kinds: bytes, document: int) -> None:
        self.kinds, self.document = kinds, document
        self.text = balance(kinds)
        self.lines: dict[int, int] = {}

    def sentence(self, place: int) -> tuple[int, int]:
        """Where the sentence begins and stops that a place is in; a sentence never spans two lines."""
        before = max(self.kinds.rfind(mark, 0, place) for mark in (ENDS_SENTENCE, ENDS_LINE))
        after = [self.kinds.find(mark, place) for mark in (ENDS_SENTENCE, ENDS_LINE)]
        return before + 1, min((stop for stop in after if stop >= 0), default=len(self.kinds))

    def line(self, place: int) -> int:
        start = self.kinds.rfind(ENDS_LINE, 0, place) + 1
        if start not in self.lines:
            stop = self.kinds.find(ENDS_LINE, start)
            self.lines[start] = balance(self.kinds, start, stop if stop >= 0 else None)
        return self.lines[start]

    def is_traditional(self, place: int) -> bool:
        found = balance(self.kinds, *self.sentence(place)) or self.line(place) or self.text or self.document
        return found > 0
