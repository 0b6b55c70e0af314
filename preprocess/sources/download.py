"""Download a source of `sources.yaml` into the cache and check it against the published size and digest.

    myllm download chinese-poetry zhwiki-sample
    myllm download c4-zh --files 4                      # the first four of its files
    myllm download fineweb-edu-chinese --files '3_4/*/8' --dry-run   # list the first eight of those that match
    myllm download wudao --from-file /data/WuDaoCorpus  # your own copy: linked, not copied
    myllm download zhwiki --from-file zhwiki-20261101-pages-articles-multistream.xml.bz2   # of several files, one
    myllm download ceval                                # an evaluation set, for OpenCompass
    myllm download --list

All runs share the cache ($MYLLM_CACHE, by default ~/.cache/myllm), so a second call downloads nothing. An interrupted
download resumes. Datasets of the Hugging Face hub come from $HF_ENDPOINT if it is set; HF_HUB_OFFLINE=1 forbids
downloading them. Gated datasets need a token (`preprocess.sources.hub`).
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError, nearest
from artifacts.files import atomic_file, read_yaml
from artifacts.layout import REPOSITORY, cache_folder
from artifacts.stage import report_metrics
from preprocess.sources import hub
from preprocess.sources.http import Wanted, asked, check, digest_of, fetch
from preprocess.sources.unpack import place, sets_folder

SOURCES = Path(__file__).with_name("sources.yaml")
RUN = re.compile(r"\{(\d+)\.\.(\d+)\}")


def load_source(name: str) -> dict[str, Any]:
    """The entry of a source. Raises UserError, with the nearest name, if there is no such source."""
    sources = read_yaml(SOURCES)
    if name not in sources:
        raise UserError(f"{SOURCES.name} has no source {name!r}{nearest(name, sources)}; it lists {', '.join(sources)}")
    return sources[name]


def expand(pattern: str) -> list[str]:
    """`part-{08..10}` -> part-08, part-09, part-10."""
    found = RUN.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    return [RUN.sub(str(n).zfill(len(first)), pattern, count=1) for n in range(int(first), int(last) + 1)]


def undated(name: str) -> str:
    """A file's name without the date, or `latest`, that Wikimedia puts into it."""
    return re.sub(r"-(latest|\d{8})-", "-", name)


def files_in(source: dict[str, Any]) -> list[str]:
    """Every file of a `url` or `hub` source, as a path below the source's folder; none for a source of another kind.

    A pattern with `*` stays as it is: only the hub knows the names (`published_files`).
    """
    return [file for pattern in source.get("files", []) for file in expand(pattern)]


def published_files(name: str, source: dict[str, Any]) -> dict[str, int]:
    """The files of a source, with their sizes in bytes where the hub was asked for the names, else 0."""
    files = files_in(source)
    if any(map(hub.is_pattern, files)):
        return hub.list_files(source["repository"], files, cache_folder() / "listings" / f"{name}.json")
    return dict.fromkeys(files, 0)


def selected(files: list[str], wish: str | int | None) -> list[str]:
    """The files that `--files` asks for: N, the first N; PATTERN, those that match; PATTERN/N, the first N of those.

    Raises UserError if no file is asked for.
    """
    if wish is None:
        return files
    pattern, _, count = str(wish).rpartition("/")
    if not count.isdigit():
        pattern, count = str(wish), ""
    found = [file for file in files if not pattern or fnmatchcase(file, pattern)]
    found = found[: int(count)] if count else found
    if not found:
        raise UserError(f"--files {wish} matches none of {len(files)} files: they are {files[0]} … {files[-1]}")
    return found


def is_single(source: dict[str, Any]) -> bool:
    """Whether a source is one file, so that its path is that file and not a folder."""
    files = files_in(source)
    return len(files) == 1 and not hub.is_pattern(files[0])


def source_file(name: str) -> Path:
    """The path of a source, downloaded or not: a file, or a folder if the source has several files."""
    source = load_source(name)
    if source["kind"] == "file":
        return REPOSITORY / source["path"]
    if source["kind"] == "npm":
        return cache_folder() / f"{source['package']}-{source['version']}.tgz"
    files = files_in(source)
    return cache_folder() / name / files[0] if is_single(source) else cache_folder() / name


def integrity(path: Path) -> str:
    """`sha512-<base64>` of a file, as npm publishes it (Subresource Integrity, W3C)."""
    return "sha512-" + base64.b64encode(bytes.fromhex(digest_of(path, "sha512"))).decode()


def published(source: dict[str, Any]) -> Wanted:
    """The size and digest that an entry of `sources.yaml` states for its file."""
    digest = source.get("digest")
    if "integrity" in source:
        algorithm, _, encoded = source["integrity"].partition("-")
        digest = f"{algorithm}:{base64.b64decode(encoded).hex()}"
    return Wanted((), source.get("bytes"), digest)


def npm_pack(package: str, version: str, folder: Path) -> Path:
    """Download a package's tarball with npm. Raises UserError if npm is not installed or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not installed: install Node.js with npm (`apt-get install npm`), "
            f"or download {package}-{version}.tgz elsewhere and pass it with --from-file or in MYLLM_POETRY_TARBALL"
        )
    command = [npm, "pack", f"{package}@{version}", "--silent", "--pack-destination", str(folder)]
    print("$ " + " ".join(command), flush=True)
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    tarballs = list(folder.glob("*.tgz"))
    if result.returncode != 0 or not tarballs:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise UserError(
            f"npm pack {package}@{version} failed ({lines[-1].strip()}): check the network and `npm ping`, "
            "or pass the tarball with --from-file or in MYLLM_POETRY_TARBALL"
        )
    return tarballs[0]


def listed_digest(source: dict[str, Any], file: str) -> str | None:
    """A file's digest from the publisher's listing. Prints a message and returns None if the listing cannot be read.

    Wikimedia's listings of `latest` give dated file names, so names are compared without the date or `latest`.
    """
    listing: dict[str, str] = source.get("digests", {})
    for mirror in source["mirrors"] if listing else ():
        try:
            with urllib.request.urlopen(asked(f"{mirror}/{listing['file']}"), timeout=60) as response:
                rows = [line.split() for line in response.read().decode().splitlines()]
        except (OSError, UnicodeDecodeError):
            continue
        for row in rows:
            if len(row) == 2 and undated(row[1].lstrip("*")) == undated(file):
                return f"{listing['algorithm']}:{row[0].lower()}"
    if listing:
        print(f"{file}: found no digest in {listing['file']}, so only the size will be checked", flush=True)
    return None


def link_own(name: str, own: list[Path], target: Path, source: dict[str, Any]) -> Path:
    """Link a user's own copy into the cache: its file, its folder, or some of its files if the source has several.

    A single file is checked if the published size or digest is known.
    """
    for path in own:
        if not path.exists():
            raise UserError(f"{path} does not exist: pass the path of {target.name} to --from-file")
    if is_own(target):
        drop_links(target)
    of_several = source["kind"] in ("url", "hub") and not is_single(source)
    if of_several and all(path.is_file() for path in own):
        known = {undated(Path(file).name): file for file in files_in(source)}
        links = {path: target / known.get(undated(path.name), path.name) for path in own}
    elif len(own) == 1:
        links = {own[0]: target}
        if own[0].is_file():
            check(own[0], published(source))
    else:
        raise UserError(f"--from-file: {name} takes one path; give the folder that holds all of its files")
    for path, link in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.exists():
            raise UserError(f"{link} was already downloaded: delete it to use {path}")
        link.symlink_to(path.resolve())
        print(f"{name}: {link} -> {path.resolve()} (yours)")
    return target


def drop_links(target: Path) -> None:
    """Remove the links of an earlier --from-file, and the folders that they leave empty."""
    if target.is_symlink():
        target.unlink()
        return
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if not any(target.iterdir()):
        target.rmdir()


def is_own(target: Path) -> bool:
    """Whether a source in the cache is the user's own copy, in whole or in part."""
    return target.is_symlink() or any(path.is_symlink() for path in target.rglob("*"))


def download_files(name: str, source: dict[str, Any], wish: str | int | None) -> Path:
    """Download the files of a `url` or `hub` source that are not in the cache yet."""
    if source.get("gated") and not hub.is_offline() and hub.token() is None:
        raise UserError(f"{name} is gated: {hub.how_to_enter(source['repository'])}")
    for file in selected(list(published_files(name, source)), wish):
        target = cache_folder() / name / file
        if target.exists():
            print(f"{name}: {target} (cached)")
            continue
        if source["kind"] == "hub":
            wanted = hub.wanted(source["repository"], file)
        else:
            own = published(source)
            urls = tuple(f"{mirror}/{file}" for mirror in source["mirrors"])
            wanted = Wanted(urls, own.size, own.digest or listed_digest(source, file))
        try:
            fetch(wanted, target)
        except UserError as error:
            if source["kind"] == "hub" and re.search("HTTP 40[13]", str(error)):
                raise UserError(f"{name}: the hub refuses {file}: {hub.how_to_enter(source['repository'])}") from None
            raise
        told = wanted.digest.split(":")[0] if wanted.digest else "no published digest: only the size was checked"
        print(f"{name}: {target} (new, {target.stat().st_size:,} bytes, {told})")
    return source_file(name)


def show_plan(name: str, source: dict[str, Any], wish: str | int | None) -> None:
    """Print what a download would fetch: each file, and its size where the hub tells it."""
    if source["kind"] not in ("url", "hub"):
        print(f"{name}: {source_file(name)} ({source['kind']})")
        return
    sizes = published_files(name, source)
    files = selected(list(sizes), wish)
    for file in files:
        target = cache_folder() / name / file
        size = f", {sizes[file]:,} bytes" if sizes[file] else ""
        print(f"{name}: {file} ({'cached' if target.exists() else 'to be downloaded'}{size})")
    total = sum(sizes[file] for file in files)
    guess = source.get("about_gb", 0) * (share_of(source, wish) or 0)
    told = f", {total / 1e9:.1f} GB" if total else f", about {guess:.1f} GB" if guess else ""
    print(f"{name}: {len(files):,} of {len(sizes):,} files{told}; licence: {source['licence']}")


def download_set(name: str, source: dict[str, Any], own: Path | None, wish: str | int | None) -> Path:
    """Download an evaluation set, or take a user's own copy, and place it where OpenCompass reads it."""
    if own is not None:
        if not own.exists():
            raise UserError(f"{own} does not exist: pass the zip file or folder of {name} to --from-file")
        print(f"{name}: {own} (yours: not checked against the published file)")
        return place(name, source, own)
    if source["kind"] == "own":
        raise UserError(
            f"{name} cannot be downloaded automatically: get it from {source['home']}, "
            f"then `myllm download {name} --from-file PATH`"
        )
    archive = download_files(name, source, wish)
    check(archive, published(source))
    return place(name, source, archive)


def download(name: str, own: list[Path] | None = None, wish: str | int | None = None) -> Path:
    """Put a source into the cache, complete and checked, and return its path (a file, or a folder of files).

    Args:
        own: the user's own copy, to link instead of a download.
        wish: which of the files, see `selected`.
    """
    source, target = load_source(name), source_file(name)
    kind = source["kind"]
    if kind == "file":
        if not target.exists():
            raise UserError(f"{target} is missing: restore it with `git checkout {source['path']}`")
        print(f"{name}: {target} (shipped)")
        return target
    if len(own or []) > 1 and ("unpack" in source or kind == "npm"):
        raise UserError(f"--from-file: {name} takes one path")
    from_file = own[0] if own else None
    if "unpack" in source:
        return download_set(name, source, from_file, wish)
    if kind != "npm" and own:
        return link_own(name, own, target, source)
    if kind in ("url", "hub") and not is_own(target):
        return download_files(name, source, wish)
    if target.exists():
        if target.is_file():
            check(target, published(source))
        print(f"{name}: {target} ({'yours' if is_own(target) else 'cached'})")
        return target
    if kind != "npm":
        raise UserError(
            f"{name} cannot be downloaded automatically: get it from {source.get('home', 'its publisher')} "
            f"({source['licence']}), then `myllm download {name} --from-file PATH`"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, atomic_file(target) as aside:
        if from_file is not None and not from_file.exists():
            raise UserError(f"{from_file} does not exist: pass the path of {target.name}")
        found = from_file or npm_pack(source["package"], source["version"], Path(folder))
        check(found, published(source))
        shutil.copyfile(found, aside)
    print(f"{name}: {target} (new, {target.stat().st_size:,} bytes)")
    return target


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return sum(file.stat().st_size for file in files)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="*", help="names in preprocess/sources/sources.yaml")
    parser.add_argument(
        "--from-file", type=Path, action="append", default=[], metavar="PATH",
        help="use this file or folder, do not download (one source only); repeatable for a source of several files",
    )  # fmt: skip
    parser.add_argument(
        "--files",
        metavar="WHICH",
        help="of a source of many files: N (the first N), 'PATTERN' (those that match), or 'PATTERN/N'",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files, and download nothing")
    parser.add_argument("--list", action="store_true", help="list the sources, their licences and paths")


def share_of(source: dict[str, Any], wish: str | int | None) -> float | None:
    """The share of a source's files that `--files` asks for, without asking the hub; None if that cannot be known."""
    files = files_in(source)
    if wish is None or not files:
        return 1.0
    if not any(map(hub.is_pattern, files)):
        return len(selected(files, wish)) / len(files)
    count, many = str(wish).rpartition("/")[2], source.get("about_files")
    return min(int(count) / many, 1.0) if count.isdigit() and many else None


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    unknown = []
    for name in arguments.source:
        source = load_source(name)
        target = sets_folder() / source["unpack"]["into"] if "unpack" in source else source_file(name)
        ahead.makes(target)
        if target.exists():
            continue
        if source["kind"] == "own" and not arguments.from_file:
            ahead.problem(
                f"{name} cannot be downloaded automatically: get it from {source.get('home', 'its publisher')}, "
                f"then `myllm download {name} --from-file PATH`, or leave it out"
            )
        elif source["kind"] == "npm" and not shutil.which("npm"):
            ahead.machine(f"npm is not installed, which downloads {name}: `apt-get install npm`")
        elif source["kind"] == "hub" and not arguments.from_file and hub.is_offline():
            ahead.machine(f"{name} is not in the cache and HF_HUB_OFFLINE is set: unset it, or pass --from-file")
        elif source.get("gated") and not arguments.from_file and hub.token() is None:
            ahead.machine(f"{name} is gated: {hub.how_to_enter(source['repository'])}")
        part = share_of(source, arguments.files)
        if size := float(source.get("bytes", 1e9 * source.get("about_gb", 0))) * (part or 0.0):
            ahead.needs(disk=size)
        else:
            unknown.append(name)
    if unknown:
        ahead.needs(f"sizes not known before they are downloaded: {', '.join(unknown)}")


def run(arguments: argparse.Namespace) -> None:
    if arguments.list:
        for name, source in read_yaml(SOURCES).items():
            place_of = sets_folder() / source["unpack"]["into"] if "unpack" in source else source_file(name)
            there = "here" if place_of.exists() else "not here"
            kind = f"{source['kind']}, gated" if source.get("gated") else source["kind"]
            print(f"{name}\t{kind}\t{source['licence']}\t{place_of} ({there})")
        return
    if not arguments.source:
        raise UserError("no source given: name one, `myllm download --list` shows them")
    if arguments.from_file and len(arguments.source) > 1:
        raise UserError("--from-file takes one source: run `myllm download` once for each")
    total = 0
    for name in arguments.source:
        if warning := load_source(name).get("warning"):
            print(f"warning: {name}: {warning}", flush=True)
        if arguments.dry_run:
            show_plan(name, load_source(name), arguments.files)
            continue
        tarball = os.environ.get("MYLLM_POETRY_TARBALL") if name == "chinese-poetry" else None
        own = arguments.from_file or ([Path(tarball)] if tarball else [])
        total += size_of(download(name, own, arguments.files))
    if not arguments.dry_run:
        report_metrics(sources=len(arguments.source), bytes=total)


if __name__ == "__main__":
    main(__name__)
