"""Split a file of instructions or pairs into training and held-out rows, by the hash of each question.

    myllm split-data alpaca_zh.json --output-folder data --share 0.02
    myllm split-data belle.json --output-folder data --drop-faulty              # leave faulty rows out, and list them
    myllm split-data ~/.cache/myllm/infinity-instruct --output-folder data --where langdetect=zh-cn   # a folder

Rows keep the format that they have; post-training reads every format that the linter reads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.errors import UserError
from artifacts.files import write_text
from launch.instructions.fault import Fault
from launch.instructions.lint import KIND_NAMES, MEND
from launch.instructions.read import data_files, form_of, read_row, rows


def split(
    path: Path, folder: Path, share: float, drop_faulty: bool = False, where: dict[str, str] | None = None
) -> tuple[int, int, int]:
    """Split a file, or the files of a folder, into `<name>_train.json` and `<name>_valid.json` by questions' hashes.

    A question always falls into the same part, also when the file grows. Rows keep the format that they have. A row
    that repeats another is left out; it and the faulty rows are listed in `<name>_dropped.json`.

    Args:
        share: share of the questions to hold out, 0-1.
        drop_faulty: leave out faulty rows too.
        where: values of columns; other rows are not looked at.

    Returns:
        Number of training rows, held-out rows and dropped rows.

    Raises:
        UserError: a row is faulty (the message names it), two files have different formats, or a part would be empty.
    """
    files = data_files([path])
    form = form_of(files[0])
    parts: tuple[list[Any], list[Any]] = ([], [])
    dropped: list[dict[str, Any]] = []
    first: dict[str, str] = {}
    for file in files:
        if (other := form_of(file)) != form:
            raise UserError(
                f"{file} holds {other.form} {KIND_NAMES[other.kind]}, but {files[0]} {form.form} "
                f"{KIND_NAMES[form.kind]}: split them one by one"
            )
        for number, row in rows(file):
            if where and isinstance(row, dict) and any(str(row.get(name)) != value for name, value in where.items()):
                continue
            place = f"row {number}" if len(files) == 1 else f"{file.name}, row {number}"
            try:
                example = read_row(row, form)
            except Fault as fault:
                if not drop_faulty:
                    raise UserError(f"{file}, row {number}: {fault}. {MEND}") from None
                content = None if isinstance(row, Fault) else row  # a line that is not JSON
                dropped.append({"file": file.name, "row": number, "fault": str(fault), "content": content})
                continue
            if (earlier := first.setdefault(example.key, place)) != place:
                dropped.append({"file": file.name, "row": number, "fault": f"repeats {earlier}", "content": row})
                continue
            parts[int(example.prompt_key[:8], 16) < share * 2**32].append(row)
    if not parts[0] or not parts[1]:
        raise UserError(f"{path}: {len(parts[0])} rows to train on and {len(parts[1])} held out; change --share")
    for name, part in zip(("train", "valid"), parts, strict=True):
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, default=str) for row in part) + "\n]\n"
        write_text(folder / f"{path.stem}_{name}.json", text)
    if dropped:
        text = json.dumps(dropped, indent=2, default=str)  # ASCII: half a character may be what is wrong with a row
        write_text(folder / f"{path.stem}_dropped.json", text + "\n")
    return len(parts[0]), len(parts[1]), len(dropped)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, help="the data file: a JSON list, JSON lines, Parquet, or a folder of such files"
    )
    parser.add_argument(
        "--output-folder", type=Path, required=True, help="folder for NAME_train.json and NAME_valid.json"
    )
    parser.add_argument("--share", type=float, default=0.02, help="share of the questions to hold out (default 0.02)")
    parser.add_argument(
        "--drop-faulty", action="store_true", help="leave out faulty rows, and list them in NAME_dropped.json"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="take only rows with this value; repeatable",
    )


def conditions(given: list[str]) -> dict[str, str]:
    """The conditions of `--where`. Raises UserError for one without `=`."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--where {text}: write COLUMN=VALUE")
        found[name] = value
    return found


def look_ahead(given: argparse.Namespace, ahead: Ahead) -> None:
    ahead.wants(given.file, "download it in an earlier stage, or correct the path")
    ahead.makes(given.output_folder, complete=True)
    for part in ("train", "valid"):
        ahead.makes(given.output_folder / f"{given.file.stem}_{part}.json")


def run(given: argparse.Namespace) -> None:
    train, valid, dropped = split(
        given.file, given.output_folder, given.share, given.drop_faulty, conditions(given.where)
    )
    name = f"{given.output_folder}/{given.file.stem}"
    print(f"{name}_train.json: {train:,} rows, _valid.json: {valid:,} rows")
    if dropped:
        print(f"{name}_dropped.json: {dropped:,} rows left out, each with the reason")
