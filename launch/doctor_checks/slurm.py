"""Slurm's client on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from artifacts import layout
from launch.doctor_checks.base import INFO, OK, WARN, Finding, ask
from launch.doctor_checks.machine import kind_of


def slurm() -> Iterator[Finding]:
    version, problem = ask("sinfo", "--version")
    if problem == "not installed":
        yield Finding("sinfo", INFO, "not installed: `myllm submit` works on a cluster's login node")
        return
    listed, other = ask("sinfo", "--noheader", "--format=%P|%a|%D|%T|%G|%l") if version else ("", problem)
    if other:
        mend = "`myllm submit` needs it: load your cluster's module or set SLURM_CONF; else nothing"
        yield Finding("sinfo", WARN, f"{version or 'it'} fails: {other}", mend)
        return
    yield Finding("sinfo", OK, version)
    for line in listed.splitlines():
        partition, up, nodes, state, gres, limit = (line.split("|") + [""] * 6)[:6]
        told = f"{up}, {nodes} nodes {state}, GRES {gres}, limit {limit}"
        yield Finding(f"partition {partition}", INFO if up.startswith("up") else WARN, told)
    if not listed:
        yield Finding("partitions", WARN, "none is shown to this user", "ask your cluster's administrators")
    temporary = Path(tempfile.gettempdir()).resolve()
    kinds = f"repository on {kind_of(layout.REPOSITORY)}, {temporary} on {kind_of(temporary)}"
    yield Finding(
        "shared folders",
        INFO,
        f"{kinds}: whether all nodes see them cannot be known here; try `srun -N2 ls {layout.REPOSITORY}`",
    )
