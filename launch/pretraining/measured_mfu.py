"""The MFU for `myllm estimate`: measured if `benchmarks/gpu.json` has a row for the GPU, else assumed.

The GPU benchmark writes that file. If it is missing or cannot be read, the estimate is made with an assumed MFU and
says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY, relative
from launch.pretraining.model_size import model_of, parameters
from launch.pretraining.recipe import load_recipe

MFU = 0.40  # from Megatron-LM's tables: 41 % for 1.7B on 48 H100; smaller models reach less
GPU_RESULTS = REPOSITORY / "benchmarks" / "gpu.json"


@dataclass(frozen=True)
class Row:
    """One measured training speed."""

    model: str
    hardware: str
    parameters: int
    mfu: float  # 0-1


def speed_rows(found: Any, card: str) -> list[Row]:
    """The usable rows of part `speed` that were measured on this card."""
    rows = []
    for row in found["rows"]:
        try:
            if row["part"] != "speed" or row["card"] != card or not 0 < row["mfu_percent"] <= 100:
                continue
            recipe = load_recipe(row["model"], row["training"], row["hardware"], row["set"])
            rows.append(Row(row["model"], row["hardware"], parameters(model_of(recipe)), row["mfu_percent"] / 100))
        except (KeyError, TypeError, UserError):  # written by another version: a field or a recipe no longer exists
            continue
    return rows


def mfu_for(card: str, model: str, hardware: str, size: int, results: Path = GPU_RESULTS) -> tuple[float, str]:
    """The MFU to use, 0-1, and where it comes from, as text.

    The row of the same model and hardware file is used, else the row whose model is nearest in parameters. Rows of
    other cards are not used: their ratio of compute to memory bandwidth differs.

    Args:
        card: a name in launch/pretraining/gpus.yaml.
        size: parameters of the model.
    """
    where = relative(results)
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        rows = speed_rows(found, card)
        name = found["machine"]["gpu"]
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError, KeyError, TypeError):
        return MFU, f"assumed, {where} cannot be read"
    if not rows:
        return MFU, f"assumed, no measured row of {card}"

    def distance(row: Row) -> tuple[bool, int, bool]:
        return (row.model, row.hardware) != (model, hardware), abs(row.parameters - size), row.hardware != hardware

    best = min(rows, key=distance)
    source = f"measured: {best.model} on {best.hardware}, {name} ({where})"
    if (best.model, best.hardware) != (model, hardware):
        source += f"; no row of {model} on {hardware}, this is the nearest in parameters"
    return best.mfu, source
