"""Extract clean documents from a MediaWiki dump, with WikiExtractor as a separate program.

    myllm extract-wiki --dump zhwiki-pages-articles-multistream.xml.bz2 --output zhwiki.jsonl \\
        --processes 8

A multistream dump is split at its streams. Each process decompresses a part, prepares its pages and pipes them
through its own WikiExtractor (AGPL: started as a program, never imported). Preparation (`preprocess.wiki.markup`) keeps
articles only, resolves language variants `-{…}-` and {{noteTA}} rules with the dump's own conversion groups, and
renders templates, links, formulas and lists as a reader sees them; tables and infoboxes go. A sentence with something
that cannot be rendered, such as an unknown template, is dropped. `OUTPUT.lost.tsv` then ranks these templates by the
sentences that were lost, and the data card repeats it. To keep such sentences, say in a file what the template shows:

    myllm extract-wiki --output zhwiki.jsonl --templates mine.yaml   # lines `name: "{1}"`, see wiki/templates.yaml

Conversion groups (`Module:CGroup/…`) can be anywhere in the dump. With the published index
(`…-multistream-index.txt.bz2`, found beside the dump or passed with --index) only their streams are read; without it,
the whole dump is read once more. Documents keep the dump's order, whatever the number of processes. Finished parts are
kept in `.OUTPUT.parts/` until the output is written: after an interruption, the same command does only the rest.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import atomic_file, only_run, read_json, sha256, write_json, write_text
from artifacts.processes import die_with_parent
from artifacts.stage import report_metrics, track
from preprocess.sources.download import source_file
from preprocess.wiki.dump import CHUNK, PAGE_END, Part, Site, divide, index_beside, indexed_parts, pages, read_site
from preprocess.wiki.links import FILES
from preprocess.wiki.markup import REDIRECT, Rules, group_name, group_rules, ready, tidy
from preprocess.wiki.templates import TABLE, Table, read_table
from preprocess.wiki.variants import resolve_variants

__all__ = ["prepare", "resolve_variants", "tidy"]

FIELD = {name: re.compile(rf"<{name}>([^<]*)</{name}>".encode()) for name in ("title", "ns", "id")}
PART_BYTES = 32 << 20  # of a compressed dump: about 100,000 short articles, one or two minutes of one process
OWN_TABLE = "YAML lines `name: text` that say what templates show; repeatable (see preprocess/wiki/templates.yaml)"
ALL = "(all)"  # the line of X.lost.tsv with all dropped sentences
TEXT = re.compile(rb"<text\b[^>]*?(/?)>(?:(.*?)</text>)?", re.S)


@dataclass
class Counts:
    pages: int = 0
    articles: int = 0
    redirects: int = 0
    other: int = 0  # pages of other namespaces
    empty: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # sentences by what they lacked; under "", all


@dataclass(frozen=True)
class Wiki:
    """What is needed to render a page: the dump's site and conversion groups, and the table of templates."""

    site: Site
    groups: dict[str, Rules]
    table: Table


def articles(part: Part, wiki: Wiki, counts: Counts) -> Iterator[bytes]:
    """Prepared articles, as dump XML for WikiExtractor. Raises UserError if the dump is not complete XML."""
    files = FILES | wiki.site.names(6)
    for block in pages(part):
        if not block.endswith(PAGE_END):
            if part.end == part.dump.stat().st_size:
                _check_end(part, block, counts)
            return
        begin = block.find(b"<page>")
        if begin < 0:
            raise UserError(f"{part.dump} is not whole XML (</page> without <page>): download it again")
        counts.pages += 1
        if _field("ns", block, begin).strip() not in (b"0", b""):
            counts.other += 1
            continue
        title, number = _field("title", block, begin), _field("id", block, begin)
        found = TEXT.search(block, begin)
        if found is None or found[1]:
            counts.empty += 1
            continue
        try:
            raw = (found[2] or b"").decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{part.dump} is not whole XML (page {number.decode()}: {error}): download it again"
            ) from None
        if block.find(b"<redirect", begin, found.start()) >= 0 or REDIRECT.match(raw):
            counts.redirects += 1
            continue
        wikitext = raw.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
        named = html.unescape(title.decode("utf-8", "replace"))
        text = (
            ready(wikitext, wiki.groups, named, files, wiki.table)
            .replace("&", "&amp;")
            .replace("<", "&lt;")
            .replace(">", "&gt;")
        )
        counts.articles += 1
        counts.empty += not text
        yield b"<page>\n<title>%b</title>\n<ns>0</ns>\n<id>%b</id>\n<revision>\n<id>1</id>\n" % (title, number)
        yield b'<text xml:space="preserve">%b</text>\n</revision>\n</page>\n' % text.encode()


def _field(name: str, block: bytes, begin: int) -> bytes:
    found = FIELD[name].search(block, begin)
    return found[1] if found else b""


def _check_end(part: Part, block: bytes, counts: Counts) -> None:
    if b"<page>" in block or not block.rstrip().endswith(b"</mediawiki>"):
        raise UserError(f"{part.dump} is not whole XML (no </mediawiki> at the end): download it again")
    if not counts.pages and part.start == 0:
        raise UserError(f"{part.dump} has no <page>: pass a MediaWiki dump (pages-articles) with --dump")


def prepare(dump: Path, target: Path, groups: dict[str, Rules] | None = None) -> int:
    """Write the XML that WikiExtractor gets and return the number of pages read. For tests and inspection.

    Raises UserError if the dump is missing, not XML, truncated, or has no page.
    """
    if not dump.exists():
        raise UserError(f"{dump} does not exist: pass the path of a pages-articles dump")
    counts = Counts()
    with target.open("wb") as output:
        wiki = Wiki(read_site(dump), groups or {}, read_table())
        output.write(wiki.site.head())
        for piece in articles(Part(dump, 0, dump.stat().st_size), wiki, counts):
            output.write(piece)
    return counts.pages


def find_groups(part: Part) -> dict[str, Rules]:
    """The conversion groups in a part of the dump."""
    groups: dict[str, Rules] = {}
    for block in pages(part):
        if b":CGroup/" not in block:
            continue
        name = group_name(_field("title", block, max(block.find(b"<page>"), 0)).decode("utf-8", "replace"))
        found = TEXT.search(block)
        if name and found and found[2]:
            text = found[2].decode("utf-8", "replace").replace("&lt;", "<").replace("&gt;", ">")
            groups.setdefault(name, {}).update(group_rules(text.replace("&quot;", '"').replace("&amp;", "&")))
    return groups


def documents(part: Part, wiki: Wiki, counts: Counts) -> Iterator[dict[str, Any]]:
    """Run WikiExtractor on a part and yield its documents, tidied. Raises UserError if it fails."""
    import orjson

    command = [sys.executable, "-m", "wikiextractor.WikiExtractor", "--json", "--no-templates", "--discard_empty"]
    command += ["--quiet", "--processes", "1", "-o", "-", "/dev/stdin"]
    print("$ " + " ".join(command), flush=True)
    with tempfile.TemporaryFile("w+") as errors:
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=CHUNK)
        assert program.stdin is not None and program.stdout is not None
        failed: list[Exception] = []
        feeder = threading.Thread(target=_feed, args=(program.stdin, part, wiki, counts, failed), daemon=True)
        feeder.start()
        for line in program.stdout:
            page = orjson.loads(line)
            text = tidy(page["text"], counts.lost)
            if text and not REDIRECT.match(text):
                yield {
                    "id": f"zhwiki-{int(page['id']):08d}",
                    "text": text,
                    "metadata": {"title": html.unescape(page["title"]), "url": page["url"]},
                }
        feeder.join()
        code = program.wait()
        if failed:
            raise failed[0]
        if code != 0:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"WikiExtractor failed on {part.dump}, bytes {part.start:,} to {part.end:,}: {last}")


def _feed(pipe: IO[bytes], part: Part, wiki: Wiki, counts: Counts, failed: list[Exception]) -> None:
    try:
        with pipe:
            pipe.write(wiki.site.head())
            for piece in articles(part, wiki, counts):
                pipe.write(piece)
            pipe.write(b"</mediawiki>\n")
    except BrokenPipeError:
        pass  # WikiExtractor ended early: its exit code is checked
    except Exception as error:  # noqa: BLE001 (raised by the waiting thread)
        failed.append(error)


def extract_part(task: tuple[int, Part], site: Site, groups: dict[str, Rules], own: list[Path], folder: Path) -> int:
    """Write a part's documents as JSON lines, then its counts, which mark it done. Returns the part's number."""
    import orjson

    number, part = task
    counts, written = Counts(), 0
    wiki = Wiki(site, groups, read_table(own))
    with atomic_file(folder / f"{number:05d}.jsonl") as aside, aside.open("wb") as output:
        for row in documents(part, wiki, counts):
            output.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            written += 1
    write_json(folder / f"{number:05d}.json", {**vars(counts), "pages_with_text": written})
    return number


def claim(folder: Path, parts: list[Part], own: list[Path]) -> None:
    """Delete the finished parts in `folder` unless they come from this dump and these tables, split in the same way."""
    dump = parts[0].dump
    found = dump.stat()
    plan = {"dump": str(dump.resolve()), "bytes": found.st_size, "changed": found.st_mtime_ns}
    plan["starts"] = [part.start for part in parts]
    plan["templates"] = [sha256(path) for path in [TABLE, *own]]
    path = folder / "plan.json"
    if path.exists() and read_json(path) == plan:
        return
    for old in folder.iterdir():
        if old.name != "lock":
            old.unlink()
    write_json(path, plan)


def all_groups(pool: ProcessPoolExecutor, parts: list[Part], index: Path | None, folder: Path) -> dict[str, Rules]:
    """The dump's conversion groups; they are saved in `folder`, so a resumed run does not search again."""
    path = folder / "groups.json"
    if not path.exists():
        groups: dict[str, Rules] = {}
        dump = parts[0].dump
        places = indexed_parts(dump, index) if index else parts
        for found in track(pool.map(find_groups, places), len(places), "parts looked through for conversion groups"):
            for name, rules in found.items():
                groups.setdefault(name, {}).update(rules)
        write_json(path, groups)
    return read_json(path)


def lost_beside(output: Path) -> Path:
    """Where the templates are ranked for which sentences were dropped: `X.lost.tsv` beside `X.jsonl.zst`."""
    return output.with_name(output.name.removesuffix(".zst").removesuffix(".jsonl") + ".lost.tsv")


def extract(
    dump: Path, output: Path, processes: int, index: Path | None = None, own: list[Path] | None = None
) -> dict[str, int]:
    """Extract a dump to one `.jsonl` or `.jsonl.zst` file and return the counts. Raises UserError as `prepare` does.

    `own`: tables of templates over the project's own. The templates for which sentences were dropped are written to
    `lost_beside(output)`, if there are any.
    """
    own = own or []
    if dump.is_dir():
        dumps = sorted([*dump.glob("*.xml.bz2"), *dump.glob("*.xml")])
        if len(dumps) != 1:
            raise UserError(f"{dump} has {len(dumps)} files *.xml.bz2 or *.xml: pass the path of one dump")
        dump = dumps[0]
    if not dump.exists():
        raise UserError(f"{dump} does not exist: pass the path of a pages-articles dump with --dump")
    read_table(own)  # a fault in it is told before the work
    folder = output.with_name(f".{output.name}.parts")
    parts = divide(dump, max(processes, -(-dump.stat().st_size // PART_BYTES)))
    index = index or index_beside(dump)
    with only_run(folder):
        claim(folder, parts, own)
        todo = [task for task in enumerate(parts) if not (folder / f"{task[0]:05d}.json").exists()]
        if len(todo) < len(parts):
            print(f"{len(parts) - len(todo)} of {len(parts)} parts are already done", flush=True)
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=die_with_parent) as pool:
            groups = all_groups(pool, parts, index, folder)
            print(f"{len(groups)} conversion groups", flush=True)
            work = partial(extract_part, site=read_site(dump), groups=groups, own=own, folder=folder)
            for _ in track(pool.map(work, todo), len(todo), "parts"):
                pass
        marks = [read_json(folder / f"{number:05d}.json") for number in range(len(parts))]
        lost: Counter[str] = Counter()
        for mark in marks:
            lost.update(mark.pop("lost"))
        total = {name: sum(mark[name] for mark in marks) for name in marks[0]}
        other, empty = total.pop("other"), total.pop("empty")
        if not total["pages_with_text"]:
            shutil.rmtree(folder)
            gone = total["pages"] - total["redirects"] - other - empty
            raise UserError(
                f"{dump}: none of its {total['pages']} pages has text: {total['redirects']} redirects, {other} pages "
                f"outside the articles, {empty} empty pages, {gone} with nothing but boxes, lists without text or "
                f"dropped sentences. Pass another dump"
            )
        join([folder / f"{number:05d}.jsonl" for number in range(len(parts))], output)
        write_lost(lost_beside(output), lost)
    shutil.rmtree(folder)
    return total


def read_lost(path: Path) -> Counter[str]:
    """The counts of `write_lost`; under "" the sentences dropped in all."""
    lines = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return Counter({"" if name == ALL else name: int(count) for count, _, name in lines})


def write_lost(path: Path, lost: Counter[str]) -> None:
    """Rank what the dropped sentences lacked in lines `sentences, tab, name`, after a line for all of them.

    There is no file if no sentence was dropped.
    """
    if not lost:
        path.unlink(missing_ok=True)
        return
    ranked = sorted(lost.items(), key=lambda item: (item[0] != "", -item[1], item[0]))
    write_text(path, "".join(f"{count}\t{name or ALL}\n" for name, count in ranked))
    shown = ", ".join(f"{name} {count:,}" for name, count in ranked[1:6])
    print(f"{lost['']:,} sentences were dropped for what they lacked: {shown}; all in {path}", flush=True)


def join(pieces: list[Path], output: Path) -> None:
    """Concatenate JSON lines files, compressed if `output` ends in .zst."""
    import zstandard

    with atomic_file(output) as aside, aside.open("wb") as raw:
        packed = output.suffix == ".zst"
        stream = zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) if packed else raw
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, stream, CHUNK)
        if packed:
            stream.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dump",
        type=Path,
        help=".xml or .xml.bz2 file, or the folder of a download (default: this project's sample)",
    )
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl or .jsonl.zst file")
    parser.add_argument("--processes", type=int, default=1, help="parts of the dump processed in parallel (default 1)")
    parser.add_argument("--index", type=Path, help="the dump's multistream index, plain or .bz2 (default: beside it)")
    parser.add_argument("--templates", type=Path, action="append", default=[], help=OWN_TABLE)


def look_ahead(a: argparse.Namespace, ahead: Ahead) -> None:
    ahead.wants(a.dump or source_file("zhwiki-sample"), "download it first: `myllm download zhwiki`")
    ahead.makes(a.output)


def run(a: argparse.Namespace) -> None:
    report_metrics(
        **extract(a.dump or source_file("zhwiki-sample"), a.output, max(1, a.processes), a.index, a.templates)
    )


if __name__ == "__main__":
    main(__name__)
