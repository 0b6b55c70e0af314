"""The MFU that `myllm estimate` counts with: measured where `benchmarks/gpu.json` has a row of the card, else assumed.

The benchmark on a GPU writes that file. It is read here as data, by its path: without it, or with one that cannot be
read, the estimate is made all the same and says what it assumes.
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

MFU = 0.40  # of Megatron-LM's own tables: 41 % for 1.7B on 48 H100; the smaller the model, the less
GPU_RESULTS = REPOSITORY / "benchmarks" / "gpu.json"


@dataclass(frozen=True)
class Row:
    """One measured training speed."""

    model: str
    hardware: str
    parameters: int
    mfu: float  # 0-1


def speed_rows(found: Any, card: str) -> list[Row]:
    """The rows of part `speed` that were measured on a card; a row that cannot be used is left out."""
    rows = []
    for row in found["rows"]:
        try:
            if row["part"] != "speed" or row["card"] != card or not 0 < row["mfu_percent"] <= 100:
                continue
            recipe = load_recipe(row["model"], row["training"], row["hardware"], row["set"])
            rows.append(Row(row["model"], row["hardware"], parameters(model_of(recipe)), row["mfu_percent"] / 100))
        except (KeyError, TypeError, UserError):  # of another version: a field or a recipe that is gone
            continue
    return rows


def mfu_for(card: str, model: str, hardware: str, size: int, results: Path = GPU_RESULTS) -> tuple[float, str]:
    """The MFU to count with, 0-1, and where it comes from, as text.

    The row of the same model and hardware file counts, else the one whose model is nearest in parameters. Rows of
    other cards say nothing: their ratio of arithmetic to memory speed is another.

    Args:
        card: a name of launch/pretraining/gpus.yaml.
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
