"""The system, Python, and the programs that the project starts."""

from __future__ import annotations

import locale
import os
import platform
import re
import sys
from collections.abc import Iterator

from artifacts import layout
from launch.doctor_checks.base import FAULT, INFO, OK, PYTHONS, WARN, Finding, ask

SETTINGS = (
    "MYLLM_CACHE MYLLM_POETRY_TARBALL PYTHON PYTHONPATH PYTHONHOME LD_LIBRARY_PATH LD_PRELOAD CONDA_PREFIX VIRTUAL_ENV "
    "CUDA_VISIBLE_DEVICES OMP_NUM_THREADS HF_HOME HF_ENDPOINT HF_HUB_OFFLINE PIP_INDEX_URL PIP_FIND_LINKS UV_INDEX_URL "
    "UV_DEFAULT_INDEX UV_FIND_LINKS NCCL_SOCKET_IFNAME"
).split()


def system() -> Iterator[Finding]:
    libc, version = platform.libc_ver()
    told = f"{platform.system()} {platform.release()}, {platform.machine()}, {libc} {version}".rstrip(", ")
    container = "docs/cluster.md (Containers)"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Finding("system", FAULT, f"{told}: Apple silicon is not supported", "use a Linux machine or container")
    elif platform.system() != "Linux":
        yield Finding("system", FAULT, f"{told}: not supported", "use Linux, or WSL 2 on Windows")
    elif libc != "glibc" or [int(part) for part in version.split(".")[:2]] < [2, 28]:
        yield Finding("system", FAULT, f"{told}: the packages need glibc 2.28", f"use a container: {container}")
    elif platform.machine() != "x86_64":
        yield Finding("system", WARN, f"{told}: the lock files are made for x86_64", "use a machine with x86_64")
    else:
        yield Finding("system", OK, told)


def revision() -> Iterator[Finding]:
    found, problem = ask("git", "-C", layout.REPOSITORY, "describe", "--always", "--dirty=, changed since")
    if "dubious ownership" in problem or "safe.directory" in problem:
        mend = f"git config --global --add safe.directory {layout.REPOSITORY}"
        yield Finding("revision", WARN, "git refuses: the folder belongs to another user", mend)
    else:
        yield Finding("revision", INFO, found or f"unknown: {problem}")


def interpreters() -> Iterator[Finding]:
    yield Finding("Python here", INFO, f"{platform.python_version()} ({sys.executable})")
    code = (
        "import ensurepip, os, platform, sysconfig, venv; "
        "print(platform.python_version(), os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')))"
    )
    usable, faulty = {}, []
    for name in PYTHONS:
        found, problem = ask(name, "-c", code)
        version, _, headers = found.partition(" ")
        if problem not in ("", "not installed"):
            faulty.append(f"{name}: {problem}")
        elif found and headers != "True":
            faulty.append(f"{name} has no headers (Python.h)")
        elif found:
            usable[name] = version
    told = "; ".join([*usable.values(), *faulty]) or "none of 3.11, 3.12, 3.13"
    install = "apt-get install {0} {0}-venv {0}-dev, or `uv python install {1}`"
    if "python3.11" in usable:
        yield Finding("Python", OK, told)
    elif usable:
        mend = install.format("python3.11", "3.11") + f"; or try `make env-train PYTHON={next(iter(usable))}`"
        yield Finding("Python", WARN, f"{told}; the lock files for a CPU are made for 3.11", mend)
    else:
        yield Finding("Python", FAULT, f"{told}; needed with venv and headers", install.format("python3.11", "3.11"))


def programs() -> Iterator[Finding]:
    wanted = {
        "g++": (FAULT, "it builds megatron-core", "apt-get install g++"),
        "make": (WARN, "it starts the commands of the README", "apt-get install make"),
        "git": (WARN, "it tells the revision of a run", "apt-get install git"),
        "npm": (
            WARN,
            "it downloads the demo's poems",
            "apt-get install npm, or set MYLLM_POETRY_TARBALL (README, Offline use)",
        ),
    }
    for name, (state, use, mend) in wanted.items():
        found, problem = ask(name, "--version")
        if found:
            yield Finding(name, OK, re.sub(r"^(g\+\+|GNU Make|git version) ", "", found.splitlines()[0]))
        elif name == "npm" and os.environ.get("MYLLM_POETRY_TARBALL"):
            yield Finding(name, INFO, "not needed: MYLLM_POETRY_TARBALL is set")
        else:
            mend = mend if problem == "not installed" else f"run `{name} --version` and mend what it says"
            yield Finding(name, state, f"{problem}: {use}", mend)


def settings() -> Iterator[Finding]:
    names = [name for name in SETTINGS if os.environ.get(name)]
    if names:
        yield Finding("settings", INFO, "set: " + ", ".join(names))
    if os.environ.get("PYTHONHOME"):
        yield Finding("PYTHONHOME", WARN, "it is set and misleads the environments' Python", "unset PYTHONHOME")
    encoding = locale.getpreferredencoding(False)
    if re.sub(r"[-_]", "", encoding).lower() == "utf8":
        yield Finding("encoding", OK, encoding)
    else:
        yield Finding("encoding", WARN, f"{encoding}: Chinese text needs UTF-8", "export LC_ALL=C.UTF-8 PYTHONUTF8=1")
