"""Language variants of the Chinese Wikipedia, resolved as for a reader in mainland China.

`-{…}-` and the rules of {{noteTA}} follow MediaWiki's LanguageConverter (mediawiki.org, "Writing systems/Syntax") for
zh-cn, whose fallbacks are zh-hans, zh-sg, zh-my and zh.
"""

from __future__ import annotations

import html
import re

FALLBACKS = ("zh-cn", "zh-hans", "zh-sg", "zh-my", "zh")
Rules = dict[str, str]  # wording in the source -> wording for mainland readers

# `3-{{nowrap|…}}-x` is a template between hyphens, `-{{{nowrap|…}}}-` one inside a variant
_OPEN, _CLOSE = r"-\{(?!\{(?!\{))", r"(?:(?<!\})|(?<=\}\}))\}-"
VARIANT = re.compile(rf"{_OPEN}((?:(?!{_OPEN}|{_CLOSE}).)*){_CLOSE}", re.S)
# a semicolon only separates before another variant: `-{zh-hans:<span style="color:red;">红</span>;zh-hant:…}-`
SEPARATOR = re.compile(r";(?=\s*(?:[^;:]*=>\s*)?zh(?:-\w+)?\s*:|\s*$)")
FLAGS = re.compile(r"\s*([A-Za-z\-;+\s]*)\|")
CHOICE = re.compile(r"\s*(zh(?:-\w+)?)\s*:")
RULE = re.compile(r"(?:[^\s'\"|{}=>;]+\s*=>\s*)?(?:zh(?:-\w+)?\s*:[^;|{}'\"\n]*;?[ \t]*)+")
NOTE_BEGINS = re.compile(r"\{\{\s*noteTA", re.I)
NOTE = re.compile(r"\{\{\s*noteTA\s*\|((?:[^{}]|\{\{[^{}]*\}\}|-\{[^{}]*\}-)*)\}\}", re.I)
GROUP_TITLE = re.compile(r"^[^:]+:CGroup/(.+)$", re.I)


def parse_rule(text: str) -> Rules:
    """Parse a rule, `zh-cn:甲;zh-tw:乙` or `丙=>zh-cn:甲`, into other wordings -> mainland wording."""
    source, arrow, rest = text.partition("=>")
    choices: dict[str, str] = {}
    for part in SEPARATOR.split(rest if arrow else text):
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
            choices = [part.partition(":") for part in SEPARATOR.split(content)]
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


def restore(text: str, shown: list[str]) -> str:
    """Put the resolved text of `resolve_variants` in place of its numbers."""
    while "\x02" in text:
        restored = re.sub("\x02(\\d+)\x03", lambda match: shown[int(match[1])], text)
        if restored == text:
            return text.replace("\x02", "").replace("\x03", "")
        text = restored
    return text


def group_name(title: str) -> str:
    """The conversion group that a page defines: `Module:CGroup/IT` -> `it`; empty for any other page."""
    match = GROUP_TITLE.match(title)
    return match[1].strip().lower() if match else ""
