"""Whole sentences out of the extracted text: what has a hole is dropped, lists become lines, headings go.

    text = tidy(extracted, lost)      # `lost` counts, for each unknown template, the sentences dropped for it

A sentence ends with 。！？ outside quotation marks and brackets, or with its line. A hole inside brackets only
takes the brackets. An introduction (a sentence that ends in a colon, or with `如下。`) goes if nothing is left of what
it introduces.
"""

from __future__ import annotations

import html
import re
from collections import Counter

from preprocess.wiki.marks import GONE, HEADING, HOLE, HOLES, LISTS, PRIVATE, plain

MAGIC = re.compile(
    r"__(?:(?:NO|FORCE)?TOC|NO(?:EDITSECTION|NEWSECTIONLINK|GALLERY|CONTENTCONVERT|CC|TITLECONVERT|TC|INDEX|GLOBAL)"
    r"|NEWSECTIONLINK|HIDDENCAT|INDEX|STATICREDIRECT|DISAMBIG|EXPECTUNUSED(?:CATEGORY|TEMPLATE)|ARCHIVEDTALK"
    r"|[不无無強强]?(?:[\u4e00-\u9fff]{1,8}))__"
)
PLACEHOLDER = re.compile(r"(?:formula|codice)_\d+")
LEFT_OVER = re.compile(r"-\{|\}-|\{\{+|\}\}+|\{\||\|\}|\[\[|\]\]|'{2,}|</?[a-z]+[^<>\n]{0,200}>")
EMPTY_BRACKETS = re.compile(r"（[\s；;，,、：:]*[）)]|(?<![A-Za-z0-9_])\([\s；;，,、：:]*[）)]|《\s*》|「\s*」|“\s*”")
LEFT_OVER_BEGINS = ("{", "}", "[[", "]]", "''", "<")
# brackets that may be empty; some with a blank
EMPTY = ("（）", "()", "（)", "(）", "（ ", "( ", "《》", "《 ", "「」", "「 ", "“”", "“ ")
LEADING_IN_BRACKETS = re.compile(r"([（(])[\s；;，,、：:]+")
TRAILING_IN_BRACKETS = re.compile(r"[\s；;，,、]+([）)])")
DOUBLED = re.compile(r"([，、；：])[，、；]+|[，、；：]+([。！？])")
BLANK_LINES = re.compile(r"[ \t]+\n|\n{3,}")

HOLE_IN_BRACKETS = re.compile(rf"（[^（）\n]*{HOLE}[^（）\n]*）|(?<![A-Za-z0-9_])\([^()\n]*{HOLE}[^()\n]*\)")
PAIRS = {"（": "）", "(": ")", "「": "」", "『": "』", "“": "”", "‘": "’", "《": "》", "〈": "〉", "【": "】", "[": "]"}
CLOSING = frozenset(PAIRS.values())
ENDS = "。！？"
STAR, NUMBER, TERM, INDENT = LISTS.values()
LIST = re.compile(f"[{STAR}{NUMBER}{TERM}{INDENT}]+")
COLON = re.compile(r"\s*[：:]\s*")
INTRODUCES = re.compile(
    r"[：:]$|(?:如下|如下所示|如下表|如下图|如下圖|见下表|見下表|如下表所示|见下图|見下圖|列于下表|列於下表)(?:[（(][^（）()]*[）)])?。$"
)


def tidy(text: str, lost: Counter[str] | None = None) -> str:
    """Keep the whole sentences of an extracted article. `lost` counts the names of what the dropped ones lacked."""
    text = html.unescape(text) if "&" in text else text
    marked = PRIVATE.search(text) is not None
    if "_" in text:
        text = MAGIC.sub("", PLACEHOLDER.sub("", text))
    if any(mark in text for mark in LEFT_OVER_BEGINS):
        text = LEFT_OVER.sub("", text)
    if HOLE in text:
        text = "\n".join(whole(line, lost) if HOLE in line else line for line in text.split("\n"))
    if "（" in text or "(" in text:
        text = TRAILING_IN_BRACKETS.sub(r"\1", LEADING_IN_BRACKETS.sub(r"\1", text))
    while any(pair in text for pair in EMPTY) and (mended := EMPTY_BRACKETS.sub("", text)) != text:
        text = mended
    text = DOUBLED.sub(lambda match: match[1] or match[2], text)
    if marked:
        text = plain("\n".join(lines_of(text)))
    if " \n" in text or "\t\n" in text or "\n\n\n" in text:
        text = BLANK_LINES.sub(lambda match: match[0].lstrip(" \t")[:2], text)
    return text.strip()


def whole(line: str, lost: Counter[str] | None = None) -> str:
    """The sentences of a line that have no hole. A line that loses all of them becomes a mark of what is gone."""
    names: list[str] = []

    def short(match: re.Match[str]) -> str:
        names.append(plain(match[1]))
        return HOLE

    begins = LIST.match(line)
    lead = begins[0] if begins else ""
    line = HOLES.sub(short, line[len(lead) :])
    found = iter(names)
    kept = []
    for sentence in sentences(line):
        missing = [next(found, "?") for _ in range(sentence.count(HOLE))]
        while HOLE in sentence and (less := HOLE_IN_BRACKETS.sub("", sentence)) != sentence:
            sentence = less
        if HOLE not in sentence:
            kept.append(sentence)
        elif lost is not None:
            lost.update(set(missing))
            lost[""] += 1  # sentences
    rest = "".join(kept).strip()
    return lead + rest if rest else lead + GONE


def sentences(line: str) -> list[str]:
    """Split after 。！？ and the closing marks after them. What is in brackets is not split."""
    found, begin, at = [], 0, 0
    waiting: list[str] = []
    while at < len(line):
        char = line[at]
        if char in PAIRS:
            waiting.append(PAIRS[char])
        elif char in CLOSING:
            if char in waiting:
                while waiting.pop() != char:
                    pass
        at += 1
        if not waiting and (char in ENDS or (char in "”」』" and at > 1 and line[at - 2] in ENDS)):
            while at < len(line) and line[at] in ENDS:
                at += 1
            if at < len(line) and line[at] in "”」』）":
                continue
            found.append(line[begin:at])
            begin = at
    return [*found, line[begin:]] if begin < len(line) else found


def lines_of(text: str) -> list[str]:
    """Lines of text without marks: lists with `- ` or their number, definitions as `term：definition`, no headings."""
    kept: list[str] = []
    kinds: list[str] = []  # of each line: text, item, gone, heading
    numbers: dict[int, int] = {}
    lines = [line for line in text.split("\n") if line.strip()]
    place = 0
    while place < len(lines):
        line = lines[place]
        place += 1
        if line.startswith(HEADING):
            numbers.clear()
            _close(kept, kinds, "heading")
            continue
        begins = LIST.match(line) if line[0] >= STAR else None
        if begins is None:
            numbers.clear()
            if line.strip() == GONE:
                _close(kept, kinds, "gone")
            else:
                _close(kept, kinds, "text", line)
            continue
        marks, body = begins[0], line[begins.end() :].strip()
        if not body or GONE in body or body.strip("，、；。：:,;. ") == "":
            _close(kept, kinds, "gone")
            continue
        kind, depth = marks[-1], len(marks) - 1
        for deeper in [level for level in numbers if level > depth or (level == depth and kind != NUMBER)]:
            del numbers[deeper]
        indent = "  " * sum(mark != INDENT for mark in marks[:-1])
        if kind == STAR:
            _close(kept, kinds, "item", f"{indent}- {body}")
        elif kind == NUMBER:
            numbers[depth] = numbers.get(depth, 0) + 1
            _close(kept, kinds, "item", f"{indent}{numbers[depth]}. {body}")
        elif kind == TERM:
            term, *definition = COLON.split(body, maxsplit=1)
            if not definition and place < len(lines) and lines[place].startswith(marks[:-1] + INDENT):
                if (following := lines[place][len(marks) :].strip()) and GONE not in following:
                    definition = [following]
                place += 1
            if definition and definition[0]:
                _close(kept, kinds, "item", f"{term}：{definition[0]}")
            else:
                _close(kept, kinds, "heading")  # a term without a definition is a heading in bold
        else:
            _close(kept, kinds, "item" if kinds and kinds[-1] == "item" else "text", indent + body)
    _close(kept, kinds, "heading")
    return kept


def _introduces(line: str) -> bool:
    return line[-1] in "：:" or ("下" in line[-30:] and INTRODUCES.search(line) is not None)


def _close(kept: list[str], kinds: list[str], kind: str, line: str = "") -> None:
    """Add a line. If it shows that nothing is left of what an introduction introduces, drop the introduction."""
    while kept and kind in ("heading", "text") and _introduces(kept[-1]):
        before = next((at for at in range(len(kinds) - 1, -1, -1) if kinds[at] != "gone"), -1)
        nothing_left = kind == "heading" or "gone" in kinds[before + 1 :]
        if before < 0 or kinds[before] == "heading" or not nothing_left:
            break
        *others, _ = sentences(kept[-1])
        remaining = "".join(others).rstrip()
        if remaining.strip("-0123456789. "):
            kept[-1] = remaining
            break
        kept.pop()
        del kinds[before:]
        kinds.append("gone")
    kinds.append(kind)
    if line:
        kept.append(line.strip() if kind == "text" else line.rstrip())
