"""Links `[[…]]` as a reader sees them: the label or the title; nothing for pictures and categories.

Which titles are pictures or categories follows MediaWiki: the names of namespaces 6 and 14 in English, in Chinese, and
in the dump's own `<namespaces>`. Any other title with a colon is a title: `[[NieR:Automata]]`, `[[UTC+08:00]]`.
"""

from __future__ import annotations

import re

from preprocess.wiki.marks import hole, literal

FILES = frozenset("file image 文件 档案 檔案 图像 圖像 图片 圖片".split())
CATEGORIES = frozenset("category 分类 分類 category talk".split())
# the first 60 or so Wikipedias by size: such a link without a leading colon only stands in the margin
LANGUAGES = frozenset(
    "aa af ang ar arz ast az azb ba be bg bn br bs ca ce ceb cs cy da de el en eo es et eu fa fi fr fy ga gan gl he hi "
    "hr hu hy ia id io is it ja jv ka kk ko la lb lt lv mg min mk ml mn mr ms my ne new nl nn no oc pa pl pnb pt ro ru "
    "sco sh simple sk sl sq sr su sv sw ta te tg th tl tr tt uk ur uz vec vi vo war wuu yo zh-classical zh-min-nan "
    "zh-yue".split()
)
SIMPLE = re.compile(r"\[\[([^\[\]{}]*)\]\]")
ANY = re.compile(r"\[\[((?:[^\[\]]|\[(?!\[)|\](?!\]))*)\]\]")
FLOATS = re.compile(
    r"\|\s*(?:thumb|thumbnail|frame|left|right|center|none|缩略图|縮圖|替代|有框|左|右|居中|置中|无|無)\s*(?:[|=]|$)"
)
EXTERNAL = re.compile(r"\[(?:(?:https?:|ftps?:)?//|mailto:|news:)[^\s\[\]<>\"]+[ \t\u3000]*([^\]\n]*)\]", re.I)
NEEDS_MORE = "为為是见見于於在自址站即：:"  # a sentence that goes on with an address


def resolve_links(text: str, pattern: re.Pattern[str] = SIMPLE, files: frozenset[str] = FILES) -> str:
    """Resolve links, innermost first. `files`: names of the namespaces of pictures, in lower case."""

    def say(match: re.Match[str]) -> str:
        title, bar, label = match[1].partition("|")
        head, colon, _ = title.partition(":")
        if colon:
            head = head.strip().replace("_", " ").lower()
            if not head:  # [[:en:River|River]]
                title = title.strip()[1:]
            elif head in files:
                return _picture(match)
            elif head in CATEGORIES or head in LANGUAGES:
                return ""
        said = label if label.strip() else title
        # a bar or an equals sign in the label is no argument of the template around it
        return said.replace("|", literal("|")).replace("=", literal("=")) if "=" in said or "|" in said else said

    while "[[" in text and (resolved := pattern.sub(say, text)) != text:
        text = resolved
    return text


def _picture(match: re.Match[str]) -> str:
    """Nothing for a picture beside the text; a hole for one between two words, which a reader would see there."""
    text, begin, end = match.string, match.start(), match.end()
    before, after = text[begin - 1 : begin] if begin else "", text[end : end + 1]
    inside = before.isalnum() and after.isalnum() and not FLOATS.search(match[1])
    return hole("[[File:]]") if inside else ""


def resolve_external(text: str) -> str:
    """`[http://… label]` becomes its label. Without a label a reader sees a number: nothing, or a hole."""

    def say(match: re.Match[str]) -> str:
        if match[1].strip():
            return match[1].strip()
        before = match.string[: match.start()].rstrip(" ")[-1:]
        return hole("[http://]") if before and before in NEEDS_MORE else ""

    return EXTERNAL.sub(say, text)
