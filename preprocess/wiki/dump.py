"""A MediaWiki dump divided at the streams of its bz2, and cut into pages, without holding it in memory.

for part in divide(dump, 8):        # whole streams each, to be read by processes of their own
    for block in pages(part):
        …
"""

from __future__ import annotations

import bz2
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UserError

CHUNK = 1 << 20
STREAM = b"BZh91AY&SY"  # how a bz2 stream of the largest block size begins
PAGE_END = b"</page>"


@dataclass(frozen=True)
class Part:
    """The bytes `start` to `end` of a dump: whole streams of a bz2, or all of any other."""

    dump: Path
    start: int
    end: int


def divide(dump: Path, parts: int) -> list[Part]:
    """Divide a multistream dump at its streams; any other dump is one part."""
    size = dump.stat().st_size
    if dump.suffix != ".bz2" or parts == 1 or not size:
        return [Part(dump, 0, size)]
    cuts = [0]
    with dump.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for number in range(1, parts):
            at = whole.find(STREAM, max(size * number // parts, cuts[-1] + 1))
            # the ten bytes may stand inside a stream by chance: one in which nothing can be read is no beginning
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
    """Decompressed bytes of a part; raises UserError naming the dump when it is cut short or damaged."""
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
                raise EOFError("the last stream does not end")
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"{part.dump} is not a whole bz2 file ({error}): download it again") from None


def pages(part: Part) -> Iterator[bytes]:
    """Everything up to and with each `</page>`; the first holds the dump's head, the last one its end."""
    rest = b""
    for chunk in chunks(part):
        blocks = (rest + chunk).split(PAGE_END)
        rest = blocks.pop()
        for block in blocks:
            yield block + PAGE_END
    yield rest


def site_head(dump: Path) -> bytes:
    """The dump's beginning up to `</siteinfo>`, from which WikiExtractor takes addresses and namespaces."""
    head = b""
    for chunk in chunks(Part(dump, 0, dump.stat().st_size)):
        head += chunk
        if (end := head.find(b"</siteinfo>")) >= 0:
            return head[:end] + b"</siteinfo>\n"
        if b"<page>" in head or len(head) > 4 * CHUNK:
            break
    return b"<mediawiki>\n<siteinfo>\n<base>https://zh.wikipedia.org/wiki/</base>\n</siteinfo>\n"


def index_beside(dump: Path) -> Path | None:
    """`X-index.txt.bz2` of `X.xml.bz2`, as a multistream dump and its index are published, where it lies beside it."""
    index = dump.with_name(dump.name.removesuffix(".bz2").removesuffix(".xml") + "-index.txt.bz2")
    return index if index.exists() else None


def indexed_parts(dump: Path, index: Path) -> list[Part]:
    """The streams that hold conversion groups, by the index published with the dump (`offset:page id:title` lines)."""
    offsets: list[int] = []
    wanted: set[int] = set()
    opened = bz2.open(index, "rt", encoding="utf-8") if index.suffix == ".bz2" else index.open(encoding="utf-8")
    with opened as lines:
        for line in lines:
            offset, _, rest = line.partition(":")
            if not offset.isdigit():
                raise UserError(f"{index} is not an index of a multistream dump: its lines are offset:id:title")
            if not offsets or offsets[-1] != int(offset):
                offsets.append(int(offset))
            if ":CGroup/" in rest:
                wanted.add(int(offset))
    ends = dict(zip(offsets, [*offsets[1:], dump.stat().st_size]))
    return [Part(dump, start, ends[start]) for start in sorted(wanted)]
