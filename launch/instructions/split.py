"""Split a file of instructions or pairs into training and held-out rows, by the hash of each question.

    myllm split-data alpaca_zh.json --output-folder data --share 0.02
    myllm split-data belle.json --output-folder data --drop-faulty      # drop faulty and repeated rows, and list them
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.errors import UserError
from artifacts.files import write_json, write_text
from launch.instructions.lint import MEND
from launch.instructions.read import Fault, form_of, read_row, rows


def split(path: Path, folder: Path, share: float, drop_faulty: bool = False) -> tuple[int, int, int]:
    """Split a file into `<name>_train.json` and `<name>_valid.json` by the hash of each question.

    A question always falls into the same part, also when the file grows.

    Args:
        share: share of the questions to hold out, 0-1.
        drop_faulty: drop faulty and repeated rows, and write them to `<name>_dropped.json`.

    Returns:
        Number of training rows, held-out rows and dropped rows.

    Raises:
        UserError: a row is faulty (the message names it), or a part would be empty.
    """
    form = form_of(path)
    parts: tuple[list[Any], list[Any]] = ([], [])
    dropped: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for number, row in rows(path):
        try:
            example = read_row(row, form)
            if drop_faulty and first.setdefault(example.key, number) != number:
                raise Fault(f"repeats row {first[example.key]}")
        except Fault as fault:
            if not drop_faulty:
                raise UserError(f"{path}, row {number}: {fault}. {MEND}") from None
            dropped.append({"row": number, "fault": str(fault), "content": row})
            continue
        parts[int(example.prompt_key[:8], 16) < share * 2**32].append(row)
    if not parts[0] or not parts[1]:
        raise UserError(f"{path}: {len(parts[0])} rows to train on and {len(parts[1])} held out; change --share")
    for name, part in zip(("train", "valid"), parts, strict=True):
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in part) + "\n]\n"
        write_text(folder / f"{path.stem}_{name}.json", text)
    if dropped:
        write_json(folder / f"{path.stem}_dropped.json", dropped)
    return len(parts[0]), len(parts[1]), len(dropped)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the data file: a JSON list or JSON lines")
    parser.add_argument(
        "--output-folder", type=Path, required=True, help="folder for NAME_train.json and NAME_valid.json"
    )
    parser.add_argument("--share", type=float, default=0.02, help="share of the questions to hold out (default 0.02)")
    parser.add_argument(
        "--drop-faulty", action="store_true", help="drop faulty and repeated rows, and list them in NAME_dropped.json"
    )


def look_ahead(given: argparse.Namespace, ahead: Ahead) -> None:
    ahead.wants(given.file, "download it in an earlier stage, or correct the path")
    ahead.makes(given.output_folder, complete=True)
    for part in ("train", "valid"):
        ahead.makes(given.output_folder / f"{given.file.stem}_{part}.json")


def run(given: argparse.Namespace) -> None:
    train, valid, dropped = split(given.file, given.output_folder, given.share, given.drop_faulty)
    name = f"{given.output_folder}/{given.file.stem}"
    print(f"{name}_train.json: {train:,} rows, _valid.json: {valid:,} rows")
    if dropped:
        print(f"{name}_dropped.json: {dropped:,} dropped rows, each with its fault")
