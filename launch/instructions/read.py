"""Read instruction and preference data, and find what is wrong with a row.

A file is a JSON list, has one JSON object per line (BELLE's `train_1M_CN.json`), or is Parquet; the suffix tells only
Parquet. `launch.instructions.shapes` knows the formats of a row. A file has one format, that of its first row.
Standard library only; pyarrow for Parquet.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from launch.instructions.fault import Fault
from launch.instructions.shapes import SHAPES, refuse_media

KINDS = ("sft", "pairs", "kto")
SUFFIXES = (".json", ".jsonl", ".parquet")  # of the data files in a folder


@dataclass(frozen=True)
class Form:
    """Format of a file's rows, and what they are for."""

    form: str  # one of SHAPES
    kind: str  # one of KINDS
    label: str | None = None  # name of the column with KTO labels


@dataclass(frozen=True)
class Example:
    """A row in the common format: the prompt, and one answer, or the chosen and the rejected one."""

    prompt: tuple[tuple[str, str], ...]  # (role, text); the last message is the user's
    answers: tuple[str, ...]
    label: bool | None = None

    @property
    def key(self) -> str:
        """Hash of prompt and answers; two rows with the same hash are repeats."""
        return hashlib.sha256(json.dumps([self.prompt, self.answers]).encode()).hexdigest()

    @property
    def prompt_key(self) -> str:
        """Hash of the prompt; the split uses it, so that no question is in both parts."""
        return hashlib.sha256(json.dumps(self.prompt).encode()).hexdigest()


def data_files(given: Iterable[Path]) -> list[Path]:
    """The files themselves; of a folder, every data file in it and below. Raises UserError if a folder has none."""
    found: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} has no {', '.join(SUFFIXES)} file: give the file or folder of the data")
        found += inside
    return found


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a data file with their numbers from 1. For a line that is not JSON, a `Fault` takes the row's place.

    Raises:
        UserError: the file is missing, empty, not UTF-8, damaged, or an invalid JSON list.
    """
    if path.suffix == ".parquet":
        yield from enumerate(_table_rows(path), start=1)
        return
    try:
        with path.open(encoding="utf-8-sig") as stream:
            first = stream.read(1)
            while first and first.isspace():
                first = stream.read(1)
            if not first:
                raise UserError(f"{path} is empty")
            stream.seek(0)
            if first != "[":
                number = 0
                for line in stream:
                    if line.strip():
                        number += 1
                        try:
                            yield number, json.loads(line.lstrip("\ufeff"))  # one more where files were joined
                        except json.JSONDecodeError as error:
                            yield number, Fault(f"not valid JSON ({error.msg} at character {error.pos})")
                return
            try:
                found = json.load(stream)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Correct it, or "
                    "write one object per line, so that one invalid row does not hide the others"
                ) from None
            yield from enumerate(found, start=1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise UserError(not_utf8(path)) from None


def _table_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not Parquet or is damaged ({error}): download it again") from None


def not_utf8(path: Path) -> str:
    """What to do with a file that is not UTF-8: it is UTF-16, GB18030 (or GBK), or damaged UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    given, ascii_so_far = 0, True  # bytes given to the decoder
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            if given == 0 and chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return f"{path} is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8 {path} > NEW`"
            given += len(chunk)
            try:
                ascii_so_far = decoder.decode(chunk).isascii() and ascii_so_far
            except UnicodeDecodeError as error:
                at = given - len(error.object) + error.start
                if ascii_so_far and error.object[: error.start].isascii():
                    return (
                        f"{path} is not UTF-8 at byte {at}, and seems to be GBK or GB18030: convert it with "
                        f"`iconv -f GB18030 -t UTF-8 {path} > NEW`"
                    )
                return f"{path} is UTF-8, but damaged at byte {at}: download or write it again, or remove that row"
    return f"{path} ends within a character: it is truncated, download or write it again"


def form_of_row(row: dict[str, Any]) -> Form | None:
    """The format of a row; None if it is unknown."""
    name = next((name for name, shape in SHAPES.items() if shape.known(row)), None)
    if name is None:
        return None
    if kind := SHAPES[name].kind:
        return Form(name, kind)
    if "chosen" in row or "rejected" in row:
        return Form(name, "pairs")
    if "kto_tag" in row:
        return Form(name, "kto", "kto_tag")
    # Infinity-Instruct's `label` is an object, and others' a category
    if "label" in row and not isinstance(row["label"], (str, dict, list)):
        return Form(name, "kto", "label")
    return Form(name, "sft")


def form_of(path: Path) -> Form:
    """The format of a file, from its first row that is an object. Raises UserError if it is unknown."""
    for number, row in rows(path):
        if isinstance(row, dict):
            form = form_of_row(row)
            if form is None:
                raise UserError(
                    f"{path}, row {number}: unknown format with the fields {', '.join(row) or '(none)'}. Known are "
                    "instruction/input/output, conversations, messages, each also with chosen/rejected or label; "
                    "launch/instructions/shapes.py lists all"
                )
            return form
        if number >= 100:
            break
    raise UserError(f"{path} holds no row that is a JSON object")


def read_row(row: Any, form: Form) -> Example:
    """Convert a row to an example.

    Raises:
        Fault: a field is missing or empty, roles are out of order, the last turn is wrong, the answers are equal, or
            the row has pictures, sound or video.
    """
    if isinstance(row, Fault):
        raise row
    if not isinstance(row, dict):
        raise Fault("not a JSON object")
    refuse_media(row)
    turns, answers = SHAPES[form.form].read(row, form.kind == "pairs")
    _check_order(turns, form.kind)
    if form.kind == "pairs":
        if answers[0] == answers[1]:
            raise Fault("`chosen` and `rejected` are equal")
        return Example(tuple(turns), answers)
    label = None
    if form.label:
        label = row.get(form.label)
        if not isinstance(label, bool):
            raise Fault(f"`{form.label}` is neither true nor false")
    return Example(tuple(turns[:-1]), (turns[-1][1],), label)


def _check_order(turns: list[tuple[str, str]], kind: str) -> None:
    """Check the roles: optional system text, then user and assistant in turn; last the answer (pairs: question)."""
    spoken = turns[1:] if turns[0][0] == "system" else turns
    for number, (role, _) in enumerate(spoken):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            raise Fault(
                f"turn {number + 1 + len(turns) - len(spoken)} is from the {role}, but should be from the {wanted}"
            )
    last = "user" if kind == "pairs" else "assistant"
    if not spoken or spoken[-1][0] != last:
        raise Fault(f"the last turn is not from the {last}")


class Repeats:
    """Tell which rows of a file repeat an earlier one; `first` maps an example's hash to its first row."""

    def __init__(self) -> None:
        self.first: dict[str, int] = {}

    def of(self, number: int, example: Example) -> int | None:
        """The row that row `number` repeats, or None."""
        first = self.first.setdefault(example.key, number)
        return None if first == number else first
