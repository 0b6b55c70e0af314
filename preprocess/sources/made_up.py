"""Write small made-up files in exactly the published layout of each source, for a rehearsal without downloads.

    python -m preprocess.sources.rehearsal baidu-baike --from CACHE --into OTHER     # where none is downloaded

The layouts are those of the publishers: field names, containers, compression, file names, and quirks that the real
files have (an empty output, a summary that is null, a page in Traditional characters, an advertisement, a page that two
sources share). `made_up_sets` has instruction data. The text is random sentences in plain Chinese: enough for every
step to have something to do, and nothing that a model could learn from. The output is deterministic.
"""

from __future__ import annotations

import bz2
import gzip
import html
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import atomic_file
from preprocess.sources.containers import container
from preprocess.sources.download import files_in
from preprocess.sources.hub import is_pattern
from preprocess.sources.made_up_sets import LISTS, ROWS, Row
from preprocess.sources.made_up_text import PLACES, article

DOCUMENTS = 300


def _lines(rows: Iterator[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _list(rows: Iterator[dict[str, Any]]) -> bytes:
    return json.dumps(list(rows), ensure_ascii=False, indent=2).encode()


def wikipedia_cn(numbers: range) -> bytes:
    """wikipedia-cn-20230720-filtered: a JSON list."""
    for_all = ({"completion": "\n".join([title, *parts]), "source": "wikipedia.zh2307"}
               for title, parts in map(article, numbers))  # fmt: skip
    return _list(for_all)


def baidubaike(numbers: range) -> bytes:
    """BaiduBaike-5.63M: JSON lines in a `.json`; some summaries are null."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            title, parts = article(number)
            sections = [{"title": f"第{n}节", "content": text} for n, text in enumerate(parts[1:], start=1)]
            yield {
                "title": title,
                "summary": None if number % 17 == 5 and sections else parts[0],
                "sections": sections,
                "tags": ["地理", "建筑"],
                "url": f"http://baike.baidu.com/item/{number}",
            }

    return _lines(rows())


def c4_zh(numbers: range) -> bytes:
    """C4 multilingual zh: gzipped JSON lines; a page in Traditional characters, an advertisement, a repeated page."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in numbers:
            title, parts = article(number - number % 10 if number % 25 == 7 else number)
            text = "\n".join([title, *parts])
            if number % 40 == 3:
                text = "車站旁的書店賣舊書，老闆姓陳，他說這裡的書都是從臺北買來的。\n" * 2 + text
            if number % 60 == 11:
                text = "加微信代开发票，免费咨询，点击这里立即注册，送彩金。"
            yield {"text": text, "timestamp": "2019-04-22T12:22:31Z", "url": f"https://example.com/{number}.html"}

    return gzip.compress(_lines(rows()), mtime=0)


def wudao(numbers: range) -> bytes:
    """WuDaoCorpora Text: JSON lists, several files."""
    return _list(
        {
            "id": number,
            "uniqueKey": f"{number:032x}",
            "titleUkey": f"{number:032x}",
            "dataType": "百科",
            "title": title,
            "content": "\n".join(parts),
        }
        for number, (title, parts) in ((n, article(n)) for n in numbers)
    )


def web_pages(numbers: range, source: Row) -> Iterator[Row]:
    """The records of a corpus by its `columns`, `text_key` and `score_range`; `a.b` is the key b in the object a."""
    key = source.get("text_key", "text")
    low, high = source.get("score_range", (0, 1))
    for number in numbers:
        title, parts = article(number)
        row: Row = {}
        for column in source.get("columns", [key]):
            score = round(low + (high - low) * random.Random(f"{column} {number}").random(), 4)
            value = "\n".join([title, *parts]) if column == key else score if "score" in column else f"made-up-{number}"
            outer, _, inner = column.rpartition(".")
            (row.setdefault(outer, {}) if outer else row)[inner] = value
        yield row


def write_rows(rows: Iterator[Row], name: str, path: Path) -> None:
    """Write rows in the container that a published file's name tells: Parquet, or JSON lines, plain or compressed."""
    ending, compression = container(name)
    if ending == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return
    text = _lines(rows)
    if compression == "gzip":
        text = gzip.compress(text, mtime=0)
    elif compression == "zstd":
        import zstandard

        text = zstandard.ZstdCompressor().compress(text)
    path.write_bytes(text)


SITE = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="zh">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>zhwiki</dbname>
    <base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base>
    <generator>MediaWiki 1.45.0</generator>
    <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="10" case="first-letter">Template</namespace>
      <namespace key="14" case="first-letter">Category</namespace>
      <namespace key="828" case="case-sensitive">Module</namespace>
    </namespaces>
  </siteinfo>
"""
PAGE = """  <page>
    <title>{title}</title>
    <ns>0</ns>
    <id>{number}</id>
{leads}    <revision>
      <id>{number}0</id>
      <timestamp>2026-11-01T00:00:00Z</timestamp>
      <contributor>
        <username>Example</username>
        <id>7</id>
      </contributor>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      <text bytes="{size}" sha1="0" xml:space="preserve">{text}</text>
      <sha1>0</sha1>
    </revision>
  </page>
"""


def page(number: int, title: str, text: str, redirect: str = "") -> str:
    return PAGE.format(
        title=title, number=number, size=len(text.encode()), text=html.escape(text, quote=False),
        leads=f'    <redirect title="{redirect}" />\n' if redirect else "",
    )  # fmt: skip


def zhwiki(numbers: range, dump: Path, index: Path, pages_per_stream: int = 50) -> None:
    """A multistream dump and its index: bz2 streams of some pages each, lines `offset:id:title`."""
    streams, lines, offset = [bz2.compress(SITE.encode())], [], 0
    offset = len(streams[0])
    for start in range(numbers.start, numbers.stop, pages_per_stream):
        written = ""
        for number in range(start, min(start + pages_per_stream, numbers.stop)):
            title, parts = article(number)
            body = f"'''{title}'''位于[[{PLACES[number % len(PLACES)]}]]。{parts[0]}<ref>地方志</ref>\n"
            body += "".join(f"\n== 第{n}节 ==\n{text}\n" for n, text in enumerate(parts[1:], start=1))
            body += "\n{{reflist}}\n[[Category:地理]]\n"
            if number % 30 == 29:
                body = f"#REDIRECT [[{article(number - 1)[0]}]]"
            written += page(number + 1, title, body, article(number - 1)[0] if number % 30 == 29 else "")
            lines.append(f"{offset}:{number + 1}:{title}\n")
        streams.append(bz2.compress(written.encode()))
        offset += len(streams[-1])
    streams.append(bz2.compress(b"</mediawiki>\n"))
    dump.write_bytes(b"".join(streams))
    index.write_bytes(bz2.compress("".join(lines).encode()))


# by reader
WRITERS: dict[str, Callable[[range], bytes]] = {
    "wikipedia_cn": wikipedia_cn, "baidubaike": baidubaike, "c4_zh": c4_zh, "wudao": wudao,
}  # fmt: skip
# the first article of each source: of 300, the last 50 of zhwiki are in wikipedia_cn too, and so on
FIRST = {"wikipedia_cn": 250, "baidubaike": 500, "c4_zh": 750, "wudao": 1000}


def write(name: str, source: dict[str, Any], folder: Path, files: list[str], documents: int = DOCUMENTS) -> None:
    """Write the files of a source, by their published names, with `documents` documents together.

    Raises:
        UserError: the layout of this source is not known here.
    """
    reader = source.get("reader", "")
    if reader == "wiki_dump":
        folder.mkdir(parents=True, exist_ok=True)
        zhwiki(range(documents), folder / files[0], folder / files[1])
        return
    writer, rows = WRITERS.get(reader), ROWS.get(name)
    if writer is None and rows is None and reader != "jsonl":
        raise UserError(
            f"{name}: no made-up sample of its layout is known; download it first, then its beginning is used"
        )
    first, each = FIRST.get(reader, 0), -(-documents // len(files))
    for place, file in enumerate(files):
        numbers = range(first + place * each, first + (place + 1) * each)
        with atomic_file(folder / file) as aside:
            if writer is not None:
                aside.write_bytes(writer(numbers))
            elif name in LISTS:
                aside.write_bytes(_list(ROWS[name](numbers)))
            else:
                write_rows(rows(numbers) if rows else web_pages(numbers, source), file, aside)


def made_names(source: dict[str, Any], most: int) -> list[str]:
    """Names for at most `most` made-up files of a source, as it publishes them: a number for the last `*`."""
    names = files_in(source) or ["part-0.json", "part-1.json"]
    if is_pattern(names[0]):
        before, _, after = names[0].rpartition("*")
        names = [f"{before.replace('*', '')}{number:05d}{after}" for number in range(most)]
    return names[:most]
