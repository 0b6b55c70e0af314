"""Describe the machine and the package versions for a table of measurements."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path


def describe(*packages: str) -> str:
    """One line: processor, cores, GPU, Python, versions of the packages."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {card}; Python {platform.python_version()}, {versions}"
