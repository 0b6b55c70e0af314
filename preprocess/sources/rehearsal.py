"""Fill a cache for a rehearsal: the beginning of what is downloaded, else made-up files in the published layout.

    python -m preprocess.sources.rehearsal zhwiki baidu-baike ceval --from ~/.cache/myllm --into runs/x/cache

`myllm rehearse` runs it in place of `myllm download`. Of a downloaded source it copies the first --megabytes of each of
its first files, cut where a record ends, in the same container: what is read later is real text in its real format.
Evaluation sets are small and linked whole; one that is not downloaded is taken from --made-sets (`python -m
eval_configs.smoke_data --whole`), and the scores are then marked as smoke.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import atomic_file, write_text
from artifacts.layout import REPOSITORY, cache_folder
from artifacts.stage import report_metrics
from preprocess.sources.containers import LINES, container, layout, lines, list_items, opened
from preprocess.sources.download import is_single, load_source, source_file
from preprocess.sources.made_up import made_names, write

LONGEST = 16 << 20  # bytes of a record
FILES = 2  # of a source, at most


def head(path: Path, target: Path, size: int) -> None:
    """Copy the beginning of a file, about `size` bytes of its text, to a whole file of the same kind."""
    ending, compression = container(path.name)
    with atomic_file(target) as aside:
        if ending == ".parquet":
            head_of_parquet(path, aside, size)
        elif path.name.endswith(".xml.bz2"):
            head_of_dump(path, aside, size)
        elif ending == ".xml" or compression not in (None, "gzip", "bz2", "zstd"):
            shutil.copyfile(path, aside)  # of a kind that cannot be cut here
        else:
            text = head_of_text(path, size, ending)
            if compression:
                text = compressed(text, compression)
            aside.write_bytes(text)


def compressed(text: bytes, compression: str) -> bytes:
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(text)
    return gzip.compress(text) if compression == "gzip" else bz2.compress(text)


def head_of_text(path: Path, size: int, ending: str) -> bytes:
    """The first records of JSON lines or of a JSON list; of other text, its first lines."""
    kept: list[bytes] = []
    held = 0
    with opened(str(path)) as stream:
        form = layout(str(path)) if ending == ".json" else None
        if form not in (None, LINES):
            items = []
            for _, item, fault in list_items(stream, LONGEST, form):
                if fault is None:
                    items.append(item)
                    held += len(json.dumps(item, ensure_ascii=False).encode())
                if held >= size:
                    break
            return json.dumps(items, ensure_ascii=False).encode()
        for _, line in lines(stream, 0, None, LONGEST):
            if line is not None:
                kept.append(line + b"\n")
                held += len(line)
            if held >= size:
                break
    return b"".join(kept)


def head_of_parquet(path: Path, target: Path, size: int) -> None:
    import pyarrow
    import pyarrow.parquet

    kept, held = [], 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=8):
        kept.append(batch)
        held += batch.nbytes
        if held >= size:
            break
    pyarrow.parquet.write_table(pyarrow.Table.from_batches(kept), target)


def streams_of(path: Path) -> Iterator[bytes]:
    """The decompressed bz2 streams of a multistream dump; a dump in one stream comes in pieces."""
    decompressor, text = bz2.BZ2Decompressor(), b""
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            while chunk:
                text += decompressor.decompress(chunk)
                chunk = b""
                if decompressor.eof:
                    yield text
                    chunk, decompressor, text = decompressor.unused_data, bz2.BZ2Decompressor(), b""
                elif len(text) > LONGEST:
                    yield text
                    text = b""
    if text:
        yield text


def head_of_dump(path: Path, target: Path, size: int) -> None:
    """The siteinfo and the first pages of a dump, each in a stream, and its end."""
    kept, held = [], 0
    for text in streams_of(path):
        whole = text[: text.rindex(b"</page>") + len(b"</page>\n")] if b"</page>" in text else text
        kept.append(whole.replace(b"</mediawiki>", b""))
        held += len(whole)
        if held >= size:
            break
    target.write_bytes(b"".join(bz2.compress(part) for part in [*kept, b"</mediawiki>\n"]))


def fill_source(name: str, source: dict[str, Any], there: Path, here: Path, size: int, documents: int) -> str:
    """Put a corpus or a data file into the cache `here`; returns where it comes from, as text."""
    single = source["kind"] == "npm" or is_single(source)
    found = [there] if there.is_file() else []
    if there.is_dir():
        found = sorted(path for path in there.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not found:
        home = here.parent if single else here
        write(name, source, home, [Path(here).name] if single else made_names(source, FILES), documents)
        return f"made up, {documents} documents"
    if source["kind"] == "npm":
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(there, here)  # an archive is not cut
        return "whole, as downloaded"
    for file in found[:FILES]:
        if not file.name.endswith("-index.txt.bz2"):
            head(file, here if there.is_file() else here / file.relative_to(there), size)
    return f"the first {size / 1e6:.0f} MB of {min(FILES, len(found))} of {len(found)} downloaded files"


def fill_set(name: str, source: dict[str, Any], there: Path, here: Path, made: Path | None) -> str:
    """Link an evaluation set into the cache `here`: the downloaded one, else the made-up one."""
    into = Path(source["unpack"]["into"])
    place, downloaded = here / "opencompass" / into, there / "opencompass" / into
    origin = downloaded if downloaded.exists() else made / into if made else downloaded
    if not origin.exists():
        raise UserError(f"{name} is not downloaded, and --made-sets has no made-up one: run `myllm download {name}`")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    place.symlink_to(origin.resolve())
    if origin is not downloaded:
        told = "Some of these sets are made up: scores say nothing about a model.\n"
        write_text(here / "opencompass" / "SMOKE", told)
        return "made up (smoke)"
    return "as downloaded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", help="names in preprocess/sources/sources.yaml")
    parser.add_argument("--from", dest="there", type=Path, default=cache_folder(), help="the cache of downloads")
    parser.add_argument("--into", type=Path, required=True, help="the cache of the rehearsal")
    parser.add_argument("--megabytes", type=float, default=3.0, help="of a downloaded file (default 3)")
    parser.add_argument("--documents", type=int, default=300, help="of a made-up source (default 300)")
    parser.add_argument("--made-sets", type=Path, help="folder of made-up evaluation sets")


def place_in(here: Path, name: str) -> Path:
    """Where a source lies in the cache `here`."""
    source = load_source(name)
    if "unpack" in source:
        return here / "opencompass" / source["unpack"]["into"]
    return here / source_file(name).relative_to(cache_folder()) if source["kind"] != "file" else source_file(name)


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    for name in arguments.source:
        ahead.makes(place_in(arguments.into, name))


def run(arguments: argparse.Namespace) -> None:
    told = {}
    for name in arguments.source:
        source = load_source(name)
        if "unpack" in source:
            told[name] = fill_set(name, source, arguments.there, arguments.into, arguments.made_sets)
        elif source["kind"] == "file":
            told[name] = f"shipped: {(REPOSITORY / source['path']).name}"
        else:
            below = source_file(name).relative_to(cache_folder())
            told[name] = fill_source(
                name, source, arguments.there / below, arguments.into / below,
                int(arguments.megabytes * 1e6), arguments.documents,
            )  # fmt: skip
        print(f"{name}: {told[name]}", flush=True)
    report_metrics(sources=len(told), rehearsed_with=told)


if __name__ == "__main__":
    main(__name__)
