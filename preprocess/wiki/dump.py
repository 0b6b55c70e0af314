"""Split a MediaWiki dump at its bz2 streams, and stream its pages without loading the dump into memory.

for part in divide(dump, 8):        # each part is a number of whole streams, for one process
    for block in pages(part):
        …
"""

from __future__ import annotations

import bz2
import html
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UserError

CHUNK = 1 << 20
STREAM = b"BZh91AY&SY"  # first bytes of a bz2 stream with the largest block size
PAGE_END = b"</page>"
BASE = re.compile(r"<base>([^<]+)</base>")
NAMESPACE = re.compile(r"<namespace\b[^>]*?\bkey=\"(-?\d+)\"[^>]*?(?<!/)>([^<]*)</namespace>")


@dataclass(frozen=True)
class Part:
    """Bytes [`start`, `end`) of a dump: whole streams of a bz2 file, or all of any other file."""

    dump: Path
    start: int
    end: int


def divide(dump: Path, parts: int) -> list[Part]:
    """Split a multistream dump at its streams into at most `parts` parts; any other dump is one part."""
    size = dump.stat().st_size
    if dump.suffix != ".bz2" or parts == 1 or not size:
        return [Part(dump, 0, size)]
    cuts = [0]
    with dump.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for number in range(1, parts):
            at = whole.find(STREAM, max(size * number // parts, cuts[-1] + 1))
            # the ten bytes can also occur inside a stream by chance: a position that does not decompress is skipped
            while at > 0:
                try:
                    bz2.BZ2Decompressor().decompress(whole[at : at + CHUNK], 1)
                    break
                except OSError:
                    at = whole.find(STREAM, at + 1)
            if at > 0:
                cuts.append(at)
    return [Part(dump, start, end) for start, end in zip(cuts, [*cuts[1:], size])]


def chunks(part: Part) -> Iterator[bytes]:
    """Decompressed bytes of a part. Raises UserError, with the dump's name, if it is truncated or damaged."""
    with part.dump.open("rb") as stream:
        stream.seek(part.start)
        left = part.end - part.start
        if part.dump.suffix != ".bz2":
            while left and (chunk := stream.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
            return
        decompressor, begun = bz2.BZ2Decompressor(), False
        try:
            while packed := stream.read(min(CHUNK, left)):
                left -= len(packed)
                while packed:
                    yield decompressor.decompress(packed)
                    begun, packed = True, b""
                    if decompressor.eof:
                        packed, decompressor, begun = decompressor.unused_data, bz2.BZ2Decompressor(), False
            if begun:
                raise EOFError("the last stream is incomplete")
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"{part.dump} is not a whole bz2 file ({error}): download it again") from None


def pages(part: Part) -> Iterator[bytes]:
    """Split the text after each `</page>`. The first block includes the dump's head; the last is its end."""
    rest = b""
    for chunk in chunks(part):
        blocks = (rest + chunk).split(PAGE_END)
        rest = blocks.pop()
        for block in blocks:
            yield block + PAGE_END
    yield rest


@dataclass(frozen=True)
class Site:
    """What a dump's `<siteinfo>` says: `base`, the address of its main page, and the names of its namespaces."""

    base: str = "https://zh.wikipedia.org/wiki/"
    namespaces: tuple[tuple[int, str], ...] = ()

    def head(self) -> bytes:
        """The head of a dump of this site for WikiExtractor.

        WikiExtractor drops every page whose title begins with the name of namespace 10, and every page if there is
        none. It only gets articles here, so that it is told a name with which no title begins.
        """
        base = self.base.replace("&", "&amp;").replace("<", "&lt;")
        named = '<namespaces>\n<namespace key="10">\uf4ff</namespace>\n</namespaces>\n'
        return f"<mediawiki>\n<siteinfo>\n<base>{base}</base>\n{named}</siteinfo>\n".encode()

    def names(self, key: int) -> frozenset[str]:
        """Names of a namespace in lower case."""
        return frozenset(name.lower() for number, name in self.namespaces if number == key and name)


def read_site(dump: Path) -> Site:
    """The site of a dump, from its head up to the first page; a default for what is missing."""
    head = b""
    for chunk in chunks(Part(dump, 0, dump.stat().st_size)):
        head += chunk
        if b"</siteinfo>" in head or b"<page>" in head or len(head) > 4 * CHUNK:
            break
    text = head.partition(b"<page>")[0].partition(b"</siteinfo>")[0].decode("utf-8", "replace")
    base = BASE.search(text)
    names = tuple((int(key), html.unescape(name).strip()) for key, name in NAMESPACE.findall(text))
    return Site(html.unescape(base[1]).strip() if base else Site.base, names)


def index_beside(dump: Path) -> Path | None:
    """The index published with a multistream dump: `X-index.txt.bz2` beside `X.xml.bz2`; None if it is not there."""
    for place in (dump, dump.resolve()):  # a link of `myllm download --from-file`
        index = place.with_name(place.name.removesuffix(".bz2").removesuffix(".xml") + "-index.txt.bz2")
        if index.exists():
            return index
    return None


def indexed_parts(dump: Path, index: Path) -> list[Part]:
    """The streams with conversion groups, found in the index published with the dump (lines `offset:page id:title`)."""
    offsets: list[int] = []
    wanted: set[int] = set()
    opened = bz2.open(index, "rt", encoding="utf-8") if index.suffix == ".bz2" else index.open(encoding="utf-8")
    with opened as lines:
        for line in lines:
            offset, _, rest = line.partition(":")
            if not offset.isdigit():
                raise UserError(
                    f"{index} is not the index of a multistream dump (lines offset:id:title): pass --index "
                    "…-multistream-index.txt.bz2"
                )
            if not offsets or offsets[-1] != int(offset):
                offsets.append(int(offset))
            if ":CGroup/" in rest:
                wanted.add(int(offset))
    ends = dict(zip(offsets, [*offsets[1:], dump.stat().st_size]))
    return [Part(dump, start, ends[start]) for start in sorted(wanted)]
