"""Fetch a source of `sources.yaml` into the cache, checked against its published integrity.

    python -m preprocess.download --source chinese-poetry
    python -m preprocess.download --source chinese-poetry --from-file chinese-poetry-2.0.1.tgz   # no network

The cache ($MYLLM_CACHE, by default ~/.cache/myllm) serves every run: a second call downloads nothing.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest, run_main
from artifacts.files import CHUNK, atomic_file, read_yaml
from artifacts.layout import REPOSITORY, cache_folder
from artifacts.stage import report_metrics

SOURCES = Path(__file__).with_name("sources.yaml")


def load_source(name: str) -> dict[str, Any]:
    """The entry of a source; raises UserError with the nearest name when there is none."""
    sources = read_yaml(SOURCES)
    if name not in sources:
        raise UserError(f"{SOURCES.name} has no source {name!r}{nearest(name, sources)}; it has {', '.join(sources)}")
    return sources[name]


def source_file(name: str) -> Path:
    """Where a source lies, or will lie once downloaded."""
    source = load_source(name)
    if source["kind"] == "file":
        return REPOSITORY / source["path"]
    return cache_folder() / f"{source['package']}-{source['version']}.tgz"


def integrity(path: Path) -> str:
    """`sha512-<base64>` of a file, as npm publishes it (Subresource Integrity, W3C)."""
    digest = hashlib.sha512()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return "sha512-" + base64.b64encode(digest.digest()).decode()


def check(path: Path, source: dict[str, Any]) -> None:
    """Raise UserError when a file is not the published one, byte for byte."""
    size = path.stat().st_size
    if size != source["bytes"]:
        raise UserError(
            f"{path} has {size:,} bytes, not the published {source['bytes']:,}: it is truncated or another version; "
            "delete it and download it again"
        )
    if integrity(path) != source["integrity"]:
        raise UserError(
            f"{path} differs from the published file (its sha512 is wrong): delete it and download it again"
        )


def npm_pack(package: str, version: str, folder: Path) -> Path:
    """Download a package's tarball with npm; raises UserError when npm is missing or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not installed: install Node.js with npm (`apt-get install npm`), "
            f"or fetch {package}-{version}.tgz elsewhere and pass it with --from-file or in MYLLM_POETRY_TARBALL"
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


def download(name: str, from_file: Path | None = None) -> Path:
    """Put a source into the cache, whole and checked, and return where it lies."""
    source = load_source(name)
    target = source_file(name)
    if source["kind"] == "file":
        if not target.exists():
            raise UserError(f"{target} is missing: it is part of the repository, `git checkout {source['path']}`")
        print(f"{name}: {target} (shipped)")
        return target
    if target.exists():
        check(target, source)
        print(f"{name}: {target} (cached)")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, atomic_file(target) as aside:
        if from_file is not None and not from_file.exists():
            raise UserError(f"{from_file} does not exist: pass the path of {target.name}")
        found = from_file or npm_pack(source["package"], source["version"], Path(folder))
        check(found, source)
        shutil.copyfile(found, aside)
    print(f"{name}: {target} (new, {target.stat().st_size:,} bytes)")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True, help="name in sources.yaml; may be repeated")
    parser.add_argument("--from-file", type=Path, help="take this file instead of downloading (one --source only)")
    arguments = parser.parse_args()
    from_file = arguments.from_file or (Path(p) if (p := os.environ.get("MYLLM_POETRY_TARBALL")) else None)
    total = 0
    for name in arguments.source:
        kind = load_source(name)["kind"]
        total += download(name, from_file if kind == "npm" else None).stat().st_size
    report_metrics(sources=len(arguments.source), bytes=total)


if __name__ == "__main__":
    run_main(main)
