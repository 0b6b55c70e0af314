"""Render the wikitext of the Chinese Wikipedia before WikiExtractor, so that nothing of a sentence is lost in it.

    text = ready(wikitext, groups, title)      # variants, templates, links, formulas, tags, tables, lists
    text = tidy(extracted)                     # whole sentences, lists as lines (preprocess.wiki.sentences)

What a reader sees stays: values of templates (`preprocess.wiki.templates`), labels of links, formulas as LaTeX between
dollar signs, code, angle brackets. What cannot be rendered becomes a hole (`preprocess.wiki.marks`), for which `tidy`
drops the sentence. What stands beside the text (tables, pictures, infoboxes, notes) goes.
"""

from __future__ import annotations

import html
import re
from functools import cache

from preprocess.wiki.links import ANY, FILES, resolve_external, resolve_links
from preprocess.wiki.marks import GONE, HEADING, HOLE, HOLE_END, LISTS, PRIVATE, hole, literal, literal_code
from preprocess.wiki.parser_functions import formula
from preprocess.wiki.sentences import MAGIC, tidy
from preprocess.wiki.templates import Table, expand, read_table, render
from preprocess.wiki.values import lowered, raised
from preprocess.wiki.variants import (
    NOTE,
    NOTE_BEGINS,
    Rules,
    apply_rules,
    group_name,
    group_rules,
    note_rules,
    parse_rule,
    resolve_variants,
    restore,
)

__all__ = ["ready", "tidy", "REDIRECT", "Rules", "apply_rules", "group_name", "group_rules", "parse_rule"]

REDIRECT = re.compile(r"^\s*[#＃]\s*(?:redirect|重定向|重新導向|重新导向)", re.I)
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
# elements whose content is not wikitext, or not text; the third alternative of an end is `<ref name="x"/ >`
ELEMENT = re.compile(
    r"<(ref|references|math|chem|ce|nowiki|pre|code|tt|samp|kbd|syntaxhighlight|source|gallery|timeline|score|table|"
    r"templatestyles|imagemap|graph|mapframe|maplink|hiero|rt|rp|inputbox|categorytree|section|includeonly)\b"
    r"([^<>]*?)(?:/\s*>|(?<!/)>(.*?)</\1\s*>)",
    re.S | re.I,
)
NOWIKI = re.compile(r"<nowiki\s*>(.*?)</nowiki\s*>|<nowiki\s*/>", re.S | re.I)
BESIDE = {"gallery", "timeline", "table", "imagemap", "graph", "mapframe", "inputbox", "categorytree"}
SILENT = {"ref", "references", "templatestyles", "maplink", "rt", "rp", "section", "includeonly"}
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
ALL_TAGS = (
    "a|abbr|b|bdi|bdo|big|blockquote|caption|center|cite|data|dd|del|dfn|div|dl|dt|em|font|h[1-6]|i|ins|li|mark|"
    "noinclude|onlyinclude|ol|p|poem|q|rb|rtc|ruby|s|small|span|strike|strong|tbody|td|th|thead|time|tr|tt|u|ul|var|wbr|"
    "code|samp|kbd|nowiki|ref|gallery|references|indicator|sub|sup|hr|br|center|noclude|translate|languages|img"
)
SCRIPT = re.compile(r"<(su[bp])\b[^<>]*>([^<>\n]{0,80}?)</\1\s*>", re.I)
BREAK = re.compile(r"[ \t]*<\s*/?\s*br\b[^<>]*>[ \t]*\n?", re.I)
OWN_LINE = re.compile(r"<(?:/?(?:p|div|blockquote|poem|center|ul|ol|dl)|hr)\b[^<>]*>", re.I)
ITEM = re.compile(r"\s*<li\b[^<>]*>\s*", re.I)
TAG = re.compile(rf"</?(?:{ALL_TAGS})(?:\s[^<>]*=[^<>]*|\s*/?\s*)>", re.I)  # not `a<b 且 c>d`
HALF_TAG = re.compile(rf"</?(?:{ALL_TAGS})(?:\s[^<>\n]*=[^<>\n]*|(?<=[a-z])\s*)(?=[<\n]|\Z)", re.I)
TABLE_EDGE = re.compile(r"^[ \t:*#]*(\{\|)|^[ \t]*(\|\})(?!\})", re.M)
STOPS = re.compile(r"\n[ \t]*\n|\n==")
QUOTES = re.compile(r"'{2,}")
HOLE_MARK = f"{HOLE}[^{HOLE_END}]*{HOLE_END}"
# holes alone on a line, or after the last sentence of a line: a box or a note that nobody knows, not a word
OUTSIDE = re.compile(rf"^(?:[ \t]*(?:{HOLE_MARK}|{GONE}))+[ \t]*$", re.M)
TRAILING = re.compile(rf"(?<=[。！？”」』）])(?:[ \t]*(?:{HOLE_MARK}|{GONE}))+[ \t]*$", re.M)
SECTION = re.compile(r"^(={2,6})[ \t]*(.*?)[ \t]*\1[ \t]*$", re.M)
# sections that list other pages and books; 来源 and 备注 may be prose
LISTINGS = frozenset(
    "参见 參見 参看 參看 另见 另見 参照 參照 相关条目 相關條目 外部链接 外部鏈接 外部連結 外部连结 外部連接 "
    "参考文献 參考文獻 参考资料 參考資料 参考来源 參考來源 参考书目 參考書目 参考 參考 资料来源 資料來源 "
    "注释 註釋 注釋 注解 註解 脚注 腳註 腳注 引注 引註 注释与参考文献 注釋與參考文獻 参考与注释 參考與註釋 "
    "延伸阅读 延伸閱讀 扩展阅读 擴展閱讀 进一步阅读 進一步閱讀".split()
)
LINE = re.compile(
    r"^(?:(={1,6})[^\n]*?\1[ \t]*(?=\n|\Z)|([*#:;]+)[ \t]*|[ \t]*[|!][^\n]*|----+|[ \t]*([({\-.+])|[ \t]+)", re.M
)


def ready(
    text: str, groups: dict[str, Rules], title: str = "", files: frozenset[str] = FILES, table: Table | None = None
) -> str:
    """Render wikitext to text that WikiExtractor only has to read. `files`: names of the namespaces of pictures."""
    if PRIVATE.search(text):
        text = PRIVATE.sub(hole("private character"), text)
    if "<" in text:
        text = ELEMENT.sub(_element, COMMENT.sub("", text))
    if "==" in text:
        text = without_listings(text)
    if "&" in text:
        text = ENTITY.sub(_entity, text)
    rules: Rules = {}
    if NOTE_BEGINS.search(text):
        rules = note_rules(text, groups)
        text = NOTE.sub("", text)
    shown: list[str] = []
    if "-{" in text:
        text = resolve_variants(text, rules, shown)
    if "{|" in text:
        text = drop_tables(text)
    text = apply_rules(text, rules)
    text = restore(text, shown) if shown else text
    # each `in` test costs a hundredth of the search, and most texts need few searches
    if "<" in text or ">" in text:
        text = render_tags(text)
    text = resolve_links(text, files=files)
    if "{{" in text or "}}" in text:
        known = table or project_table()
        text = expand(text, lambda call: render(call, known, title))
        text = text.replace("““", "“").replace("””", "”") if "““" in text else text  # {{quote}} inside of “”
        if "{|" in text:
            text = drop_tables(text)
    if "[[" in text:
        text = resolve_links(text, ANY, files)
        text = text.replace("[[", hole("[[")) if "[[" in text else text
    if "[" in text:
        text = resolve_external(text)
    if "''" in text:
        text = QUOTES.sub("", _apostrophes(text) if "'''" in text else text)
    if "__" in text:
        text = MAGIC.sub("", text).replace("__", literal("__"))
    if HOLE in text or GONE in text:
        text = TRAILING.sub("", OUTSIDE.sub(GONE, text))
        text = _alone(text) if GONE in text else text
    return LINE.sub(_line, text)


def without_listings(text: str) -> str:
    """The wikitext without what stands in the sections of LISTINGS and in their subsections. Their headings stay."""
    kept, begin, dropped = [], 0, 0  # dropped: the level of the section that is left out, 0 for none
    for heading in SECTION.finditer(text):
        level = len(heading[1])
        if dropped and level > dropped:
            continue
        if dropped:
            begin = heading.start()
        dropped = level if heading[2] in LISTINGS else 0
        if dropped:
            kept.append(text[begin : heading.end()] + "\n")
    return "".join(kept) if dropped else "".join([*kept, text[begin:]])


@cache
def project_table() -> Table:
    return read_table()


def _element(match: re.Match[str]) -> str:
    """An element that is not wikitext: literal text, a formula, nothing, or a hole."""
    name, attributes, content = match[1].lower(), match[2], match[3] or ""
    if name in SILENT:
        return ""
    if name in ("math", "chem", "ce"):
        return formula(html.unescape(content), name)
    if name == "nowiki":
        return literal(html.unescape(content))
    if name in ("code", "tt", "samp", "kbd"):
        content = NOWIKI.sub(lambda inner: literal(html.unescape(inner[1] or "")), content)
        return literal_code(TAG.sub("", content)) if "\n" not in content.strip() else _listing(content)
    if name in ("pre", "syntaxhighlight", "source"):
        content = NOWIKI.sub(lambda inner: inner[1] or "", content)
        return literal(html.unescape(content.strip())) if "inline" in attributes.lower() else _listing(content)
    before = match.string[match.start() - 1 : match.start()]
    if name in BESIDE or before in ("", "\n"):
        return f"\n{GONE}\n" if before in ("", "\n") else GONE
    return hole(f"<{name}>")


def _listing(content: str) -> str:
    content = html.unescape(content.strip("\n"))
    return f"\n{literal(content)}\n" if content.strip() else ""


def _entity(match: re.Match[str]) -> str:
    said = html.unescape(match[0])
    return literal(said) if said != match[0] else match[0].replace("&", literal("&"))


def render_tags(text: str) -> str:
    """Tags of HTML as a reader sees them; other angle brackets are text. Half a tag is a hole."""
    text = SCRIPT.sub(lambda match: (raised if match[1].lower() == "sup" else lowered)(match[2]), text)
    if "br" in text or "BR" in text:
        text = BREAK.sub(_break, text)
    text = OWN_LINE.sub("\n", ITEM.sub("\n* ", text))
    text = TAG.sub("", text)
    text = HALF_TAG.sub(lambda match: hole(match[0].split(maxsplit=1)[0]), text)
    return text.replace("<", literal("<")).replace(">", literal(">"))


def _break(match: re.Match[str]) -> str:
    """A new line between sentences; inside one a blank."""
    before = match.string[match.start() - 1 : match.start()]
    return "\n" if before in "。！？：；”」』\n" else " "


def _apostrophes(text: str) -> str:
    return "\n".join(_apostrophe(line) if "'''" in line else line for line in text.split("\n"))


def _apostrophe(line: str) -> str:
    """A line with one bold and one italic mark too many has an apostrophe before an italic mark: ''y'''(''t'')."""
    runs = list(QUOTES.finditer(line))
    bold, italic = (sum(len(run[0]) in (length, 5) for run in runs) for length in (3, 2))
    if bold % 2 and italic % 2:
        for run in runs:
            if len(run[0]) == 3 and line[: run.start()][-1:].isalnum():
                return f"{line[: run.start()]}{literal(chr(39))}{line[run.end() :]}"
    return line


def drop_tables(text: str) -> str:
    """Remove tables, which begin and end at the beginning of a line. One that never ends, ends with its paragraph."""
    kept, done, depth, begin = [], 0, 0, 0
    for edge in TABLE_EDGE.finditer(text):
        if edge[1]:
            begin = begin if depth else edge.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                kept += [text[done:begin], f"{GONE}\n"]
                done = edge.end()
    if depth:
        stop = STOPS.search(text, begin)
        kept += [text[done:begin], f"{GONE}\n"]
        done = stop.start() if stop else len(text)
    return "".join([*kept, text[done:]])


def _alone(text: str) -> str:
    """Keep the marks of what is gone that are lines of their own; one between two words is a hole."""
    lines = []
    for line in text.split("\n"):
        if GONE in line and line.strip() != GONE:
            if not line.replace(GONE, "").strip():
                line = GONE
            else:
                line = re.sub(rf"(?<=[\w，、]){GONE}(?=[\w，、。])", hole("box"), line.strip()).replace(GONE, "")
        lines.append(line)
    return "\n".join(lines)


def _line(match: re.Match[str]) -> str:
    """The beginning of a line: a heading, a list, the rest of a table, or text that WikiExtractor would drop."""
    if match[1]:
        return HEADING
    if match[2]:
        return "".join(LISTS[mark] for mark in match[2])
    return literal(match[3]) if match[3] else ""
