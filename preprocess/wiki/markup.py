"""Clean wikitext of the Chinese Wikipedia before WikiExtractor, and tidy the text that it extracts.

    text = ready(wikitext, groups)     # resolves variants as for a reader in mainland China, removes templates, tables
    text = tidy(extracted)             # removes the remains of deleted markup

Language variants, `-{…}-` and the rules of {{noteTA}}, follow MediaWiki's LanguageConverter (mediawiki.org, "Writing
systems/Syntax") for zh-cn, whose fallbacks are zh-hans, zh-sg, zh-my and zh.
"""

from __future__ import annotations

import html
import re

FALLBACKS = ("zh-cn", "zh-hans", "zh-sg", "zh-my", "zh")
Rules = dict[str, str]  # wording in the source -> wording for mainland readers

VARIANT = re.compile(r"-\{((?:(?!-\{|\}-).)*)\}-", re.S)
FLAGS = re.compile(r"\s*([A-Za-z\-;+\s]*)\|")
CHOICE = re.compile(r"\s*(zh(?:-\w+)?)\s*:")
RULE = re.compile(r"(?:[^\s'\"|{}=>;]+\s*=>\s*)?(?:zh(?:-\w+)?\s*:[^;|{}'\"\n]*;?[ \t]*)+")
NOTE_BEGINS = re.compile(r"\{\{\s*noteTA", re.I)
NOTE = re.compile(r"\{\{\s*noteTA\s*\|((?:[^{}]|\{\{[^{}]*\}\}|-\{[^{}]*\}-)*)\}\}", re.I)
GROUP_TITLE = re.compile(r"^[^:]+:CGroup/(.+)$", re.I)
REDIRECT = re.compile(r"^\s*#\s*(?:redirect|重定向)", re.I)

COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
HIDDEN = re.compile(
    r"<(ref|math|chem|gallery|timeline|syntaxhighlight|source|score|templatestyles|imagemap|graph|mapframe)\b"
    r"(?:[^<>]*?/>|[^<>]*?(?<!/)>.*?</\1\s*>)",
    re.S | re.I,
)
CODE = re.compile(r"</?(?:code|tt|kbd|samp|nowiki|pre)\b[^<>]*>", re.I)
TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.S)
MAGIC = re.compile(r"__[A-Z\u4e00-\u9fff]{3,}__")
# templates whose text is part of the sentence, and the argument that holds it (from 1); lang-…, link-…: 1
SPOKEN = {
    "lang": 2, "transl": 2, "link": 2, "tsl": 3, "le": 1, "nowrap": 1, "nobold": 1, "small": 1, "ruby": 1, "zh": 1,
    "internal link helper": 1, "ill": 1, "illm": 1, "ilh": 1, "langwithname": 3,
}  # fmt: skip

HEADING = re.compile(r"^[^。！？\n]{1,30}\.$\n?", re.M)  # WikiExtractor ends a heading with an ASCII full stop
PLACEHOLDER = re.compile(r"(?:formula|codice)_\d+")
LEFT_OVER = re.compile(r"-\{|\}-|\{\{+|\}\}+|\{\||\|\}|\[\[|\]\]|'{2,}|__[A-Z]+__|</?[a-z]+[^<>\n]{0,200}>")
EMPTY_BRACKETS = re.compile(r"[（(][\s；;，,、：:]*[）)]|《\s*》|「\s*」|“\s*”")
LEFT_OVER_BEGINS = ("{", "}", "[[", "]]", "''", "__", "<")
EMPTY = ("（）", "()", "（)", "(）", "《", "「", "“", "（ ", "( ")  # brackets that may be empty; some with a blank
LEADING_IN_BRACKETS = re.compile(r"([（(])[\s；;，,、：:]+")
TRAILING_IN_BRACKETS = re.compile(r"[\s；;，,、]+([）)])")
DOUBLED = re.compile(r"([，、；：])[，、；]+|[，、；：]+([。！？])")
BLANK_LINES = re.compile(r"[ \t]+\n|\n{3,}")


def parse_rule(text: str) -> Rules:
    """Parse a rule, `zh-cn:甲;zh-tw:乙` or `丙=>zh-cn:甲`, into other wordings -> mainland wording."""
    source, arrow, rest = text.partition("=>")
    choices: dict[str, str] = {}
    for part in (rest if arrow else text).split(";"):
        name, colon, value = part.partition(":")
        if colon and value.strip():
            choices.setdefault(name.strip().lower(), value.strip())
    best = next((choices[name] for name in FALLBACKS if name in choices), None)
    if best is None:
        return {}
    if arrow:
        return {source.strip(): best}
    return {value: best for value in choices.values() if value != best and len(value) > 1}


def group_rules(text: str) -> Rules:
    """The rules of a conversion group, a page `Module:CGroup/…` (Lua) or `Template:CGroup/…`."""
    rules: Rules = {}
    for match in RULE.finditer(text):
        rules.update(parse_rule(match[0]))
    return rules


def note_rules(text: str, groups: dict[str, Rules]) -> Rules:
    """Rules of a page's {{noteTA}}: those of its groups (G1=…), overridden by its own (1=…); T= (title) is ignored."""
    rules: Rules = {}
    own: Rules = {}
    for note in NOTE.finditer(text):
        for argument in re.sub(r"-\{(.*?)\}-", r"\1", note[1]).split("|"):
            name, equals, value = argument.partition("=")
            name = name.strip().upper()
            if re.fullmatch(r"G\d*", name) and equals:
                rules.update(groups.get(value.strip().lower(), {}))
            elif not equals or name.isdigit() or value.startswith(">"):
                own.update(parse_rule(value if equals and name.isdigit() else argument))
    return {**rules, **own}


def apply_rules(text: str, rules: Rules) -> str:
    """Replace every wording, the longest at each position. The time does not grow with the number of rules."""
    if not rules:
        return text
    by_first: dict[str, list[str]] = {}
    for wording in sorted(rules, key=len, reverse=True):
        if wording:
            by_first.setdefault(wording[0], []).append(wording)
    firsts = re.compile("[" + "".join(map(re.escape, by_first)) + "]")
    pieces, done = [], 0
    for match in firsts.finditer(text):
        at = match.start()
        if at < done:
            continue
        for wording in by_first[match[0]]:
            if text.startswith(wording, at):
                pieces += [text[done:at], rules[wording]]
                done = at + len(wording)
                break
    return "".join([*pieces, text[done:]])


def resolve_variants(text: str, rules: Rules | None = None, shown: list[str] | None = None) -> str:
    """Resolve every `-{…}-`, innermost first. Flags A, H and - add rules for the page to `rules`, or remove them.

    With `shown`, resolved text is stored there and replaced by `\\x02N\\x03`, so that rules do not change it again.
    """

    def resolve(match: re.Match[str]) -> str:
        content = match[1]
        flags: set[str] = set()
        if flagged := FLAGS.match(content):
            flags = {flag.strip().upper() for flag in flagged[1].split(";")}
            content = content[flagged.end() :]
        content = html.unescape(content) if "&" in content and CHOICE.search(content) else content
        said = content
        if (CHOICE.match(content) or "=>" in content) and "R" not in flags:
            rule = parse_rule(content)
            if rules is not None and flags & {"A", "H"}:
                rules.update(rule)
            if rules is not None and "-" in flags:
                for wording in rule:
                    rules.pop(wording, None)
            choices = [part.partition(":") for part in content.split(";")]
            named = {name.strip().lower(): value.strip() for name, colon, value in choices if colon}
            said = next((named[name] for name in FALLBACKS if name in named), next(iter(named.values()), ""))
        if flags & {"H", "T", "-"}:
            return ""
        if shown is None:
            return said
        shown.append(said)
        return f"\x02{len(shown) - 1}\x03"

    while "-{" in text and (resolved := VARIANT.sub(resolve, text)) != text:
        text = resolved
    return text


def _restore(text: str, shown: list[str]) -> str:
    while "\x02" in text:
        restored = re.sub("\x02(\\d+)\x03", lambda match: shown[int(match[1])], text)
        if restored == text:
            return text.replace("\x02", "").replace("\x03", "")
        text = restored
    return text


def _say(match: re.Match[str]) -> str:
    """A template's text in the sentence: empty, except for SPOKEN and {{bd}} (years of birth and death)."""
    name, *arguments = match[1].split("|")
    name = name.strip().lower()
    plain = [argument.strip() for argument in arguments if not re.match(r"\s*\w+\s*=", argument)]
    if name == "bd":
        years = [year for year in (plain + [""] * 4)[:4:2]]
        return "－".join(years) if any(years) else ""
    place = SPOKEN.get(name, 1 if name.startswith(("lang-", "link-")) else 0)
    return plain[place - 1] if 0 < place <= len(plain) else ""


def ready(text: str, groups: dict[str, Rules]) -> str:
    """Resolve variants, and remove markup of which WikiExtractor would leave traces. Returns wikitext."""
    if "<" in text:
        text = CODE.sub("", HIDDEN.sub("", COMMENT.sub("", text)))
    rules: Rules = {}
    if NOTE_BEGINS.search(text):
        rules = note_rules(text, groups)
        text = NOTE.sub("", text)
    shown: list[str] = []
    if "-{" in text:
        text = resolve_variants(text, rules, shown)
    # each `in` test costs a hundredth of the search, and most texts need few searches
    while "{{" in text and (spoken := TEMPLATE.sub(_say, text)) != text:
        text = spoken
    while "{|" in text and (cut := TABLE.sub("", text)) != text:
        text = cut
    text = apply_rules(MAGIC.sub("", text) if "__" in text else text, rules)
    return _restore(text, shown) if shown else text


def tidy(text: str) -> str:
    """Remove the remains of deleted markup from running text, and drop headings."""
    text = HEADING.sub("", html.unescape(text) if "&" in text else text)
    if "_" in text:
        text = PLACEHOLDER.sub("", text)
    if any(mark in text for mark in LEFT_OVER_BEGINS):
        text = LEFT_OVER.sub("", text)
    if "（" in text or "(" in text:
        text = TRAILING_IN_BRACKETS.sub(r"\1", LEADING_IN_BRACKETS.sub(r"\1", text))
    while any(pair in text for pair in EMPTY) and (mended := EMPTY_BRACKETS.sub("", text)) != text:
        text = mended
    text = DOUBLED.sub(lambda match: match[1] or match[2], text)
    return BLANK_LINES.sub(lambda match: match[0].lstrip(" \t")[:2], text).strip()


def group_name(title: str) -> str:
    """The conversion group that a page defines: `Module:CGroup/IT` -> `it`; empty for any other page."""
    match = GROUP_TITLE.match(title)
    return match[1].strip().lower() if match else ""
