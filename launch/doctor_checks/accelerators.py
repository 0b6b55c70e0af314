"""GPUs, their driver, and whether the environments use them."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Iterator

from artifacts import layout
from launch.doctor_checks import base
from launch.doctor_checks.base import FAULT, INFO, OK, WARN, Finding, ask, text_of
from launch.doctor_checks.environments import pins_of


def cuda_of(lock: str) -> int:
    """The CUDA that a lock file's torch is built for: 13; 0 if it is for a CPU."""
    pins = pins_of(lock)
    build = re.search(r"\+cu(\d\d)", pins.get("torch", ""))
    return int(build[1] if build else pins.get("nvidia-cuda-runtime", "0").partition(".")[0])


def nvidia_rows() -> tuple[list[list[str]], str]:
    """Name, memory in MiB, driver and compute capability of each GPU; or why they are not known."""
    problem = ""
    for columns in ("name,memory.total,driver_version,compute_cap", "name,memory.total,driver_version"):
        listed, problem = ask("nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits")
        if listed:
            return [[field.strip() for field in row] for row in csv.reader(listed.splitlines()) if len(row) > 2], ""
        if problem == "not installed" or problem.startswith("no answer"):
            break  # only an old nvidia-smi, which does not know the last column, deserves the second try
    return [], problem or "it lists no GPU"


def pci_vendors() -> Counter[str]:
    """How many display and compute cards each vendor has here."""
    found: Counter[str] = Counter()
    for folder in (base.ROOT / "sys/bus/pci/devices").glob("*"):
        if text_of(folder / "class").startswith(("0x03", "0x12")):
            found[text_of(folder / "vendor").strip()] += 1
    return found


def nvidia() -> Iterator[Finding]:
    rows, problem = nvidia_rows()
    if not rows:
        loaded = any((base.ROOT / path).exists() for path in ("dev/nvidiactl", "proc/driver/nvidia/version"))
        if loaded or shutil.which("nvidia-smi"):
            mend = (
                "start the container with `docker run --gpus all`; after an update of the driver, restart the machine"
            )
            yield Finding("NVIDIA", WARN, f"nvidia-smi: {problem}", mend)
        elif pci_vendors()["0x10de"]:
            yield Finding("NVIDIA", WARN, "a GPU without NVIDIA's driver: it stays unused", "install NVIDIA's driver")
        else:
            yield Finding("NVIDIA", INFO, "no GPU: everything runs on the CPU")
        return
    for (name, memory, driver, *_), number in Counter(tuple(row) for row in rows).items():
        size = f"{int(memory) / 1024:.0f} GiB" if memory.isdigit() else "memory not told"
        yield Finding("NVIDIA", OK, f"{number} x {name}, {size}, driver {driver}")
    header, _ = ask("nvidia-smi")
    supported = re.search(r"CUDA (?:UMD )?Version: *(\d+)([.\d]*)", header)
    wanted = cuda_of("gpu")
    made = [folder for name, folder in layout.ENVIRONMENTS.items() if cuda_of(layout.lock_of(name))]
    state, mend = (FAULT if made else WARN), f"install a driver that supports CUDA {wanted}, or use the CPU"
    if not supported:
        yield Finding("CUDA", WARN, "nvidia-smi does not tell which CUDA the driver supports", mend)
    elif int(supported[1]) < wanted:
        told = f"the driver supports CUDA {supported[1]}{supported[2]}; gpu.lock needs {wanted}"
        yield Finding("CUDA", state, told + (f", and {', '.join(made)} was made for GPUs" if made else ""), mend)
        return
    else:
        yield Finding("CUDA", OK, f"the driver supports {supported[1]}{supported[2]}; gpu.lock needs {wanted}")
    old = sorted({row[3] for row in rows if len(row) > 3 and re.match(r"\d+\.\d+$", row[3]) and float(row[3]) < 8})
    if old and float(old[0]) < 7.5 and wanted >= 13:
        told = f"compute capability {old[0]}: CUDA 13 supports 7.5 (Turing) and newer"
        yield Finding("GPU age", WARN, told, "use another GPU, or the CPU")
    elif old:
        told = f"compute capability {old[0]}: the recipes train in bfloat16, which needs 8.0 (Ampere)"
        yield Finding("GPU age", WARN, told, "use another GPU, or set fp16 in a hardware file of your own")
    for name, folder in layout.ENVIRONMENTS.items():
        lock = layout.lock_of(name)
        if lock and not cuda_of(lock) and cuda_of("gpu" if name == "train" else f"{name}-gpu"):
            told = f"made for the CPU from {lock}.lock: the GPU stays unused"
            yield Finding(folder, WARN, told, f"make env-{'gpu' if name == 'train' else name}")


def other_accelerators() -> Iterator[Finding]:
    vendors = pci_vendors()
    signs = {
        "AMD": (base.ROOT / "dev/kfd").exists() or shutil.which("rocm-smi"),
        "Ascend": (base.ROOT / "dev/davinci_manager").exists() or shutil.which("npu-smi"),
        "Cambricon": (base.ROOT / "dev/cambricon_ctl").exists() or shutil.which("cnmon"),
        "Intel Gaudi": (base.ROOT / "dev/accel").exists() and vendors["0x1da3"],
    }
    for name, there in signs.items():
        if there:
            yield Finding(name, INFO, "there, but not supported: it stays unused, and everything runs on the CPU")
