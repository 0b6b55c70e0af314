"""The results of the proof, written to `gpu.json` and `gpu.md` after every row."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.files import write_json, write_text
from artifacts.layout import REPOSITORY
from benchmarks.gpu_proof.proof import Row

MFU_BAR = 45.0  # percent; target for local layers with PyTorch's attention


class Results:
    """Rows in the order in which they were added."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        self.machine: Row = {}
        self.made = {"command": command, "commit": commit(), "date": f"{datetime.date.today()}"}
        self.rows: list[Row] = []
        self.seconds: dict[str, float] = {}

    def add(self, part: str, row: Row) -> None:
        """Keep a row and write both files."""
        if part == "machine" and row.get("what") == "machine":
            self.machine = {key: value for key, value in row.items() if key not in ("what", "ok")}
        self.rows.append({"part": part, **row})
        self.write()

    def of(self, part: str) -> list[Row]:
        return [row for row in self.rows if row["part"] == part]

    def write(self) -> None:
        document = {"machine": self.machine, "made": self.made, "seconds": self.seconds, "rows": self.rows}
        write_json(self.folder / "gpu.json", document)
        write_text(self.folder / "gpu.md", page(self))


def commit() -> str:
    """The git revision of the repository; "unknown" if git or its folder is missing."""
    asked = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def page(results: Results) -> str:
    """The Markdown page, with a section for each part that has rows."""
    machine, made = results.machine, results.made
    lines = [
        "# One GPU: measured\n",
        f"Made by `{made['command']}` at {made['commit']}, {made['date']}. All rows were measured in one run; "
        "parts that failed are marked.\n",
    ]
    if machine:
        lines.append(
            f"{machine['gpu']} ({machine['memory_gb']} GB), driver {machine['driver']}, CUDA {machine['cuda']}, "
            f"{machine['cores']} cores; Python {machine['python']}, torch {machine['torch']}, megatron-core "
            f"{machine['megatron-core']}, transformers {machine['transformers']}, Transformer Engine "
            f"{'installed' if machine['transformer_engine'] else 'not installed'}.\n"
        )
    for part, (title, tables) in SECTIONS.items():
        rows = results.of(part)
        if not rows:
            continue
        seconds = f" ({results.seconds[part]:.0f} s)" if part in results.seconds else ""
        lines.append(f"## {title}{seconds}\n")
        lines += tables([row for row in rows if "failed" not in row])
        lines += [f"**Not done**: {row['failed']}\n" for row in rows if "failed" in row]
    return "\n".join(lines)


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    if not rows:
        return []
    shown = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in shown), ""]


def of_machine(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row["what"] == "ceilings":
            lines.append(
                f"A bf16 matrix product of {row['matrix_size']} squared: {row['matrix_tflops']} TFLOP/s. A copy: "
                f"{row['copy_gb_per_second']:,} GB/s, read and written.\n"
            )
    shapes = [row for row in rows if row["what"] == "attention"]
    backends = list(shapes[0]["ms"]) if shapes else []
    lines += table(
        ["attention of", "batch, heads, groups, width, length", "kernel that PyTorch chose", "ms", *backends],
        [
            [
                row["model"], ", ".join(str(size) for size in row["shape"].values()),
                "; ".join(f"`{kernel}`" for kernel in row["kernels"]), row["chosen_ms"], *row["ms"].values(),
            ]
            for row in shapes
        ],
    )  # fmt: skip
    return lines


def of_speed(rows: list[Row]) -> list[str]:
    heads = ["model", "hardware file", "ms a step", "tokens/s", "TFLOP/s", "peak assumed", "MFU", "GB", "loss"]
    lines = table(heads, [[row["model"], row["hardware"], *speed_cells(row)] for row in rows])
    for row in rows:
        profile = row.get("profile")
        if not profile:
            continue
        kinds = sorted([*profile["kinds_ms"].items(), ("no kernel running", profile["gap_ms"])], key=lambda k: -k[1])
        lines += [f"One profiled step of {row['model']}, {profile['step_ms']:.0f} ms:\n"]
        share = 100 / profile["step_ms"]
        lines += table(["kind", "ms", "share"], [[kind, ms, f"{ms * share:.1f} %"] for kind, ms in kinds if ms])
        lines += table(["slowest kernels", "ms"], [[f"`{name}`", ms] for ms, name in profile["kernels"][:6]])
    low = [row for row in rows if row["ok"] and (row["mfu_percent"] or MFU_BAR) < MFU_BAR]
    lines += [f"{row['model']} is below the target of {MFU_BAR} % MFU: see its profile.\n" for row in low]
    return lines


def speed_cells(row: Row) -> list[Any]:
    if not row["ok"]:
        return [row["error"], *[None] * 6]
    mfu = None if row["mfu_percent"] is None else f"{row['mfu_percent']} %"
    return [
        row["milliseconds"], f"{row['tokens_per_second']:,}", row["tflops_per_gpu"], row["peak_tflops"], mfu,
        row["memory_gb"], f"{row['first_loss']:.2f} → {row['last_loss']:.2f}",
    ]  # fmt: skip


def of_levers(rows: list[Row]) -> list[str]:
    heads = ["lever", "time a step, share of the recipe's", "ms a step", "tokens/s", "TFLOP/s", "peak assumed", "MFU",
             "GB", "loss"]  # fmt: skip
    return table(heads, [[row["lever"], row["ratio"], *speed_cells(row)] for row in rows])


def of_facts(rows: list[Row]) -> list[str]:
    """The table of a part whose rows have a few figures each. Lists are curves, which are only in gpu.json."""
    hidden = ("part", "what", "ok")
    cells = []
    for row in rows:
        facts = {k: v for k, v in row.items() if k not in hidden and not isinstance(v, list | dict) and v is not None}
        told = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" if isinstance(value, float) else
                         f"{name.replace('_', ' ')} {value}" for name, value in facts.items())  # fmt: skip
        cells.append([row["what"], "yes" if row["ok"] else "**no**", told])
    return table(["what", "passed", "figures"], cells)


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], list[str]]]] = {
    "machine": ("Machine", of_machine),
    "speed": ("Speed of the recipes as they ship", of_speed),
    "levers": ("Levers, one at a time", of_levers),
    "fidelity": ("Fidelity", of_facts),
    "learning": ("Learning", of_facts),
    "posttraining": ("Post-training", of_facts),
}
