"""The record of a rehearsal: which pipeline file, in which revision, passed; read before the real run is submitted."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from artifacts.files import read_json, sha256
from artifacts.layout import REPOSITORY
from launch.pipeline.arguments import name_of

RECORD = "rehearsal.json"
NEEDS = "rehearsal_needs.json"
LAST_STAGE = "rehearsal"  # the stage that a rehearsal adds, which writes the table


def rehearsal_folder(name: str) -> Path:
    """The run of a pipeline's rehearsal."""
    return REPOSITORY / "runs" / f"{name_of(name)}-rehearsal"


def revision() -> str:
    """The commit, with a mark if files were changed since; empty if this is not a git clone."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=REPOSITORY, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def identity(file: Path, values: dict[str, str]) -> dict[str, Any]:
    """What a rehearsal is a rehearsal of: the file's content, the values it ran with, the code's revision."""
    return {"file": sha256(file), "values": values, "revision": revision()}


def not_rehearsed(name: str, file: Path, values: dict[str, str]) -> str:
    """Why a submission is told to rehearse first, or "" if this very file, values and revision have passed."""
    record = rehearsal_folder(name) / RECORD
    mend = f"`myllm rehearse {name}` tries every command in small first"
    if not record.exists():
        return f"{name} has not been rehearsed here: {mend}"
    found, now = read_json(record), identity(file, values)
    if not found.get("passed"):
        return f"the last rehearsal of {name} did not pass: {mend}"
    changed = [what for what in ("file", "values", "revision") if found.get("of", {}).get(what) != now[what]]
    names = {"file": "its file", "values": "its values", "revision": "the code"}
    what = ", ".join(names[part] for part in changed)
    return f"since the last rehearsal of {name}, {what} changed: {mend}" if changed else ""
