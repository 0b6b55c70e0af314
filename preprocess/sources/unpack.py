"""Copy an evaluation set from a zip file or folder to where OpenCompass reads it, completely or not at all.

Used by `preprocess.sources.download`; not a command. Archives of the same set have different outer folders
(`ceval/formal_ceval/val/…`, `val/…`), so the right folder is found by its contents.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.errors import UserError
from artifacts.files import atomic_folder
from artifacts.layout import cache_folder

JUNK = "__MACOSX"  # metadata folder in archives made by macOS


def sets_folder() -> Path:
    """The folder for $COMPASS_DATA_CACHE."""
    return cache_folder() / "opencompass"


def innermost(names: list[str], holding: list[str]) -> PurePosixPath | None:
    """The folder nearest to an archive's root that contains all of `holding`, as files or folders, or None."""
    paths = {PurePosixPath(name) for name in names if JUNK not in name}
    places = {parent for path in paths for parent in (path, *path.parents)}
    folders = {place.parent for place in places if place.name == holding[0]}
    fitting = [folder for folder in folders if all(folder / name in places for name in holding)]
    return min(fitting, key=lambda folder: (len(folder.parts), str(folder)), default=None)


def place(name: str, source: dict[str, Any], found: Path) -> Path:
    """Copy a set out of `found` (zip file or folder) and return its path. Raises UserError if `found` lacks it."""
    into, holding = sets_folder() / source["unpack"]["into"], list(source["unpack"]["holding"])
    lacking = UserError(f"{found} has no folder with {', '.join(holding)}: pass the archive or folder of {name}")
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
                raise UserError(f"{found}: {inside} cannot be read ({error}): download it again") from None
    count = sum(path.is_file() for path in into.rglob("*"))
    print(f"{name}: {into} ({count:,} files)")
    return into
