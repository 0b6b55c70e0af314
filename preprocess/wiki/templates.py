"""Templates and parser functions as a reader sees them, by the table `templates.yaml`.

    table = read_table([Path("mine.yaml")])                    # the project's table, and a user's own over it
    text = expand(wikitext, lambda call: render(call, table))  # unknown templates become holes

A line of the table is `names: text`. Names are separated by commas; `lang-*` is every name that begins with `lang-`. In
the text, `{1}` is an argument, `{3|2}` the first of these that is there, `[（{2}）]` a piece that is left out if one of
its arguments is missing. An empty text leaves nothing; `@gone` is for what stands beside the text (infoboxes); `@NAME`
is a function of `preprocess.wiki.values`, `@country` a country or the code of one. A template
without a needed argument is a hole, as an unknown one is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.errors import UserError
from artifacts.files import read_yaml
from preprocess.wiki.links import ANY, resolve_links
from preprocess.wiki.marks import GONE, hole, literal
from preprocess.wiki.parser_functions import FUNCTIONS
from preprocess.wiki.values import VALUES, Arguments, Renderer

TABLE = Path(__file__).with_name("templates.yaml")
BRACES = re.compile(r"\{{2,}|\}{2,}")
BAR, EQUALS, OPEN, CLOSE = literal("|"), literal("="), literal("{"), literal("}")
PIECE = re.compile(r"\{([^{}\\]*)\}|\[((?:[^\[\]{}\\]|\{[^{}]*\}|\[[^\[\]]*\])*)\]|\\(.)|([^{\[\]\\]+)", re.S)
NAMESPACE = re.compile(r"^(?:template|模板|样板|樣板)\s*:\s*", re.I)


@dataclass
class Table:
    exact: dict[str, Renderer]
    families: list[tuple[str, str, Renderer]]  # how the names begin and end
    seen: dict[str, Renderer | None] = field(default_factory=dict)

    def find(self, written: str) -> Renderer | None:
        """The function of a template's name as it is written; None if the table does not have it."""
        if written not in self.seen:
            name = normal(written)
            found = self.exact.get(name)
            if found is None:
                family = (say for head, tail, say in self.families if name.startswith(head) and name.endswith(tail))
                found = next(family, None)
            self.seen[written] = found
        return self.seen[written]


@dataclass
class Call:
    """A template or a parser function with its arguments rendered: `parts` is what stood between the bars."""

    parts: list[str]
    begins_line: bool


def pattern(text: str) -> Renderer:
    """Compile a text of the table to a function from arguments to text, or None if an argument is missing."""
    pieces: list[str | list[str] | Renderer] = []
    at = 0
    while at < len(text):
        found = PIECE.match(text, at)
        if not found:
            raise ValueError(f"{text[at:]!r} is not closed")
        wanted, optional, escaped, plain_text = found.groups()
        if wanted is not None:
            pieces.append(wanted.split("|"))
        elif optional is not None:
            pieces.append(pattern(optional))
        else:
            pieces.append(literal(escaped) if escaped else plain_text)
        at = found.end()

    def render(arguments: Arguments) -> str | None:
        said: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                said.append(piece)
            elif isinstance(piece, list):
                value = next((arguments[name] for name in piece if arguments.get(name)), None)
                if value is None:
                    return None
                said.append(value)
            else:
                said.append(piece(arguments) or "")
        return "".join(said)

    return render


def read_table(own: list[Path] | None = None) -> Table:
    """The project's table and a user's own, whose lines win. Raises UserError for a line that cannot be read."""
    exact: dict[str, Renderer] = {}
    families: list[tuple[str, str, Renderer]] = []
    for path in [TABLE, *(own or [])]:
        lines = read_yaml(path)
        if not isinstance(lines, dict):
            raise UserError(f'{path} must have lines `name: text`, for example `lang, transl: "{{2}}"`')
        for names, text in lines.items():
            try:
                render = _renderer("" if text is None else str(text), exact)
            except ValueError as error:
                raise UserError(f"{path}, {names}: {error}. See the head of {TABLE.name}") from None
            for name in (normal(part) for part in str(names).split(",")):
                head, star, tail = name.partition("*")
                if star and len(name) > 1:
                    families.insert(0, (head, tail, render))
                else:
                    exact[name] = render
    return Table(exact, families)


def _renderer(text: str, exact: dict[str, Renderer]) -> Renderer:
    if text == "@gone":
        return lambda arguments: GONE
    if text == "@country":
        return lambda arguments: _country(arguments, exact)
    if text.startswith("@"):
        if text[1:] not in VALUES:
            raise ValueError(
                f"{text} is not one of @gone, @country, {', '.join('@' + name for name in sorted(VALUES))}"
            )
        return VALUES[text[1:]]
    return pattern(text)


def _country(arguments: Arguments, exact: dict[str, Renderer]) -> str | None:
    """{{flag|CHN}} says what {{CHN}} says; {{flag|中国}} its argument."""
    said = arguments.get("name") or arguments.get("1")
    if said and said.isascii() and said.isupper():
        return exact[said.lower()]({}) if said.lower() in exact else None
    return said or None


def normal(name: str) -> str:
    """A template's name as the table has it: lower case, blanks for underscores, without `Template:`."""
    name = " ".join(name.replace("_", " ").split()).lower()
    return NAMESPACE.sub("", name).removeprefix("subst:").removeprefix("safesubst:").strip()


def expand(text: str, say: Callable[[Call], str]) -> str:
    """Replace every `{{…}}`, innermost first, by what `say` makes of it, and `{{{name|default}}}` by its default.

    Braces are matched as MediaWiki's preprocessor does: of a run of closing braces, as many as the innermost open run
    has, three at most. A single brace is text. A pair that is open at the end, or closed without being open, is a hole.
    """
    top: list[str] = []
    opened: list[tuple[int, list[str]]] = []  # the number of braces, and the text after them
    done = 0
    for match in BRACES.finditer(text):
        pieces = opened[-1][1] if opened else top
        pieces.append(text[done : match.start()])
        done = match.end()
        count = done - match.start()
        if match[0][0] == "{":
            opened.append((count, []))
            continue
        while count >= 2 and opened:
            braces, inner = opened.pop()
            taken = min(braces, count, 3)
            content = "".join(inner)
            outer = opened[-1][1] if opened else top
            if taken == 3:
                _, bar, default = content.partition("|")
                said = default if bar else hole("{{{}}}")
            else:
                said = say(Call(_split(content), braces == 2 and _begins_line(outer)))
            braces, count = braces - taken, count - taken
            said = said.replace("|", BAR) if "|" in said else said
            if braces >= 2:
                opened.append((braces, [said]))
            else:
                outer += [OPEN * braces, said.replace("=", EQUALS) if opened and "=" in said else said]
        if count:
            (opened[-1][1] if opened else top).append(CLOSE if count == 1 else hole("}}"))
    for _, inner in opened:  # never closed
        top += [hole("{{"), "".join(inner)]
    top.append(text[done:])
    return "".join(top)


def _begins_line(pieces: list[str]) -> bool:
    for piece in reversed(pieces):
        if piece and (last := piece.rstrip(" \t")):
            return last[-1] == "\n" or last.endswith(GONE)
    return True


def _split(content: str) -> list[str]:
    if "[[" in content:
        content = resolve_links(content, ANY)
    return content.split("|")


def arguments_of(parts: list[str]) -> Arguments:
    """Arguments by name or by number from "1", without blanks at both ends. Of two of one name, the last counts."""
    found: Arguments = {}
    number = 0
    for part in parts:
        name, equals, value = part.partition("=")
        if equals:
            found[name.strip()] = value.strip()
        else:
            number += 1
            found[str(number)] = part.strip()
    return found


def render(call: Call, table: Table, title: str = "") -> str:
    """What a reader sees of a template or parser function. A hole if it is unknown or an argument is missing."""
    first = call.parts[0].strip()
    head, colon, rest = first.partition(":") if ":" in first else (first, "", "")
    if colon and (function := FUNCTIONS.get(head.strip().lower())):
        said = function([rest.strip(), *(part.strip() for part in call.parts[1:])])
        return hole(head + ":") if said is None else said
    if first.isupper() and first in ("PAGENAME", "FULLPAGENAME", "SUBJECTPAGENAME", "BASEPAGENAME"):
        return title
    arguments = arguments_of(call.parts[1:])
    if call.begins_line:
        arguments["begins line"] = "yes"
    known = table.find(first)
    if known is None and normal(first).endswith(("box", "table", "navigation")):
        return GONE
    said = known(arguments) if known else None
    if said is None:
        # an unknown template that begins a line and has names for all its arguments is a box, not a word
        if known is None and call.begins_line and len(arguments) > 1 and not any(map(str.isdigit, arguments)):
            return GONE
        return hole(first)
    return said
