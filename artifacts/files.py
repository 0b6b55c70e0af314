"""Read and write files. Writes are atomic: to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import json
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from artifacts.errors import UserError

CHUNK = 1 << 20
PACKINGS = {  # the end of the name of a compressed file, and its first bytes
    "gzip": (".gz", b"\x1f\x8b"),
    "zstd": (".zst", b"\x28\xb5\x2f\xfd"),
    "bz2": (".bz2", b"BZh"),
    "xz": (".xz", b"\xfd7zXZ"),
}
OPENERS: dict[str, Callable[..., IO[bytes]]] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}  # type: ignore[dict-item]
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)  # an OSError with an errno is another matter


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to `path` only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        yield aside
        _sync(aside)
        os.replace(aside, path)
        _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder to fill. It replaces `path` only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(aside, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def hold_lock(path: Path, taken: str) -> IO[str]:
    """Lock a file until it is closed (use `with`). Raises UserError(taken) if another process holds the lock.

    Linux releases the lock when the process dies. Programs that the process starts do not inherit it.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(taken) from None
    return lock


def only_run(folder: Path) -> IO[str]:
    """Lock a working folder. Raises UserError if another process has locked it."""
    return hold_lock(folder / "lock", f"{folder} is in use by another run of this command: wait for it, or end it")


def only_maker(output: Path) -> IO[str]:
    """Lock an output while it is made, by a file beside it. Raises UserError if another process has locked it."""
    taken = f"{output} is being made by another run of this command: wait for it, end it, or name another folder"
    return hold_lock(output.with_name(f".{output.name}.lock"), taken)


def write_text(path: Path | str, text: str) -> None:
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file. Raises UserError if it is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the stage that makes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}): delete it and make it again") from None


def read_yaml(path: Path | str) -> Any:
    """Parse a YAML file. Raises UserError if it is missing or is not YAML."""
    import yaml

    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, or of a folder: the names and bytes of all its files, in the order of the names."""
    path = Path(path)
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(f"{file.relative_to(path)}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def zstd_pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """Decompress a zstd stream of one or more frames, in pieces. Raises EOFError if it is damaged or truncated.

    zstandard's own `stream_reader` does not report a truncated file.
    """
    import zstandard

    frame = None
    try:
        while piece := stream.read(CHUNK):
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(piece)
                piece = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if frame is not None:
        raise EOFError("it is cut off: its last zstd frame is incomplete")


def packing(name: str, begin: bytes) -> str | None:
    """The compression of a file: by its first bytes, or by its name if they are no text, e.g. because it is damaged."""
    for kind, (_, magic) in PACKINGS.items():
        if begin.startswith(magic):
            return kind
    named = next((kind for kind, (ending, _) in PACKINGS.items() if name.lower().endswith(ending)), None)
    return None if begin.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"", b"{", b"[") else named


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the stage that makes it first") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give one of its files") from None


def packing_of(path: Path | str) -> str | None:
    """The compression of a local file, or None. Raises UserError if it does not exist, or is a folder."""
    with _open(Path(path)) as raw:
        return packing(str(path), raw.peek(8))


@contextmanager
def unpacked(path: Path | str) -> Iterator[Iterable[bytes]]:
    """The decompressed text of a file, in pieces of any size.

    Raises UserError if the file does not exist, is a folder, or, while it is read, if it is damaged or cut.
    """
    path = Path(path)
    with _open(path) as raw:
        kind = packing(path.name, raw.peek(8))
        stream: Iterable[bytes] = raw
        if kind is not None:
            stream = zstd_pieces(raw) if kind == "zstd" else OPENERS[kind](raw)
        try:
            yield stream
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"{path} is not a complete {kind} file ({error}): delete it and make it again") from None


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Split text that arrives in pieces into lines, without their line ends."""
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        yield from whole
    if held:
        yield held


@cache
def tell(message: str) -> None:
    """Print a message, but once, however often a step reads a file."""
    print(message, flush=True)


def numbered_rows(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a file of JSON lines, compressed or not; blank lines are left out.

    A lone surrogate, half of a character, is replaced by U+FFFD, and the rows that had one are counted and told.
    Raises UserError with file and line if a row is not a JSON object.
    """
    from artifacts.json_rows import parse, refusal  # here, because not every environment has orjson

    mended = 0
    with unpacked(path) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line or line.isspace():
                continue
            try:
                row, replaced = parse(line)
            except ValueError as error:
                raise UserError(refusal(f"{path} line {number}", line, error)) from None
            if not isinstance(row, dict):
                raise UserError(refusal(f"{path} line {number}", line))
            mended += bool(replaced)
            yield number, row
    if mended:
        tell(f"{path}: {mended:,} rows had a lone surrogate, half of a character; it was replaced by U+FFFD")


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """Rows of a file of JSON lines: `numbered_rows` without the numbers."""
    return (row for _, row in numbered_rows(path))


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows to a `.jsonl` or `.jsonl.zst` file, atomically. Returns the number of rows.

    Raises UserError if the name promises another compression.
    """
    import zstandard

    from artifacts.json_rows import dumped

    if Path(path).suffix in (".gz", ".bz2", ".xz"):
        raise UserError(f"{path}: rows are written as .jsonl or .jsonl.zst, so give the file such a name")
    count = 0
    with atomic_file(path) as aside, aside.open("wb") as raw:
        compressor = zstandard.ZstdCompressor(level=3)
        stream = compressor.stream_writer(raw, closefd=False) if Path(path).suffix == ".zst" else raw
        for row in rows:
            stream.write(dumped(row))
            count += 1
        if stream is not raw:
            stream.close()
    return count
