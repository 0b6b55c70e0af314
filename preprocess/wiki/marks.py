"""Characters that carry meaning through WikiExtractor: literal punctuation, lists, and places where text is missing.

WikiExtractor treats `<`, `{`, `|`, `*` … as markup. Punctuation that is text (in a formula, in code, behind an entity
such as `&lt;`) is moved to private characters before it, and moved back after it. A hole marks a place where something
stood that cannot be rendered; the sentence around it is dropped (`preprocess.wiki.sentences`).
"""

from __future__ import annotations

import re
import string

FIRST = 0xF400  # a range of 256 private characters
PRIVATE = re.compile("[\uf400-\uf4ff]")
HOLE, HOLE_END = "\uf4f0", "\uf4f1"
GONE = (
    "\uf4f2x"  # a line: a table, picture or infobox stood here. The x is for WikiExtractor, which drops lines without
)
HEADING = "\uf4f3x"  # a line: a heading stood here                     # letters
LISTS = dict(zip("*#;:", "\uf4e0\uf4e1\uf4e2\uf4e3"))  # the beginning of a line of a list
HOLES = re.compile(f"{HOLE}([^{HOLE_END}]*){HOLE_END}")

_AWAY = {ord(mark): chr(FIRST + ord(mark)) for mark in string.punctuation + " \n\t"}
_BACK = {moved: chr(code) for code, moved in _AWAY.items()}
# in <code>, templates and links still work
_CODE = {code: moved for code, moved in _AWAY.items() if chr(code) not in "{}[]|'=&#;\n"}


def literal(text: str) -> str:
    """Text that is not markup: its punctuation and blanks become private characters."""
    return text.translate(_AWAY)


def literal_code(text: str) -> str:
    """As `literal`, except for the characters of templates, links and entities."""
    return text.translate(_CODE)


def plain(text: str) -> str:
    """The inverse of `literal`. Other private characters of the range are removed."""
    return PRIVATE.sub(lambda match: _BACK.get(match[0], ""), text)


def hole(name: str) -> str:
    """A place where `name`, a template or a tag, stood and could not be rendered."""
    return HOLE + literal(" ".join(name.split())[:60] or "?") + HOLE_END
