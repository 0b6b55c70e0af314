"""Put an evaluation set where OpenCompass looks for it, from a zip file or a folder, whole or not at all.

Used by `preprocess.sources.download`; there is nothing to run here. Archives of one set differ in what stands around it
(`ceval/formal_ceval/val/…`, `val/…`), so the folder that is wanted is known by what it holds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.errors import UserError
from artifacts.files import atomic_folder
from artifacts.layout import cache_folder

JUNK = "__MACOSX"  # what a Mac's archiver leaves in its archives


def sets_folder() -> Path:
    """For $COMPASS_DATA_CACHE."""
    return cache_folder() / "opencompass"


def innermost(names: list[str], holding: list[str]) -> PurePosixPath | None:
    """The shortest folder of an archive in which every one of `holding` lies, as file or folder."""
    paths = {PurePosixPath(name) for name in names if JUNK not in name}
    places = {parent for path in paths for parent in (path, *path.parents)}
    folders = {place.parent for place in places if place.name == holding[0]}
    fitting = [folder for folder in folders if all(folder / name in places for name in holding)]
    return min(fitting, key=lambda folder: (len(folder.parts), str(folder)), default=None)


def place(name: str, source: dict[str, Any], found: Path) -> Path:
    """Copy a set out of `found` (zip file or folder); returns where it lies. Raises UserError if not in there."""
    into, holding = sets_folder() / source["unpack"]["into"], list(source["unpack"]["holding"])
    lacking = UserError(f"{found} holds no folder with {', '.join(holding)}: it is not the set {name}")
    copies: list[tuple[PurePosixPath, Callable[[], bytes]]] = []
    if found.is_dir():
        files = {path.relative_to(found).as_posix(): path for path in found.rglob("*") if path.is_file()}
        folder = innermost(list(files), holding)
        copies = [(PurePosixPath(inside), path.read_bytes) for inside, path in files.items()]
    else:
        try:
            archive = zipfile.ZipFile(found)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{found} is not a whole zip file ({error}): download it again") from None
        members = [member for member in archive.infolist() if not member.is_dir()]
        folder = innermost([member.filename for member in members], holding)
        copies = [(PurePosixPath(m.filename), lambda m=m: archive.read(m)) for m in members]  # type: ignore[misc]
    if folder is None:
        raise lacking
    with atomic_folder(into) as aside:
        for inside, read in copies:
            if not inside.is_relative_to(folder) or {"..", JUNK} & set(inside.parts):
                continue
            target = aside / inside.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(read())
            except (zipfile.BadZipFile, RuntimeError) as error:
                raise UserError(f"{found}: {inside} is broken ({error}): download it again") from None
    count = sum(path.is_file() for path in into.rglob("*"))
    print(f"{name}: {into} ({count:,} files)")
    return into
