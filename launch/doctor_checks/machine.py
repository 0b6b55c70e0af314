"""Disk, memory, cores, and what the file system and the limits allow."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from artifacts import layout
from launch.doctor_checks import base
from launch.doctor_checks.base import FAULT, GB, INFO, OK, WARN, Finding, text_of


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def disks() -> Iterator[Finding]:
    places = {"runs/": layout.REPOSITORY / "runs", "environments": layout.REPOSITORY}
    try:
        places["cache"] = layout.cache_folder()
    except RuntimeError:  # a container started with the number of a user it does not know
        yield Finding("home", WARN, "this user has no home folder: downloads have no place", "export HOME=FOLDER")
    disk: dict[int, list[str]] = {}
    for name, path in places.items():
        disk.setdefault(existing(path).stat().st_dev, []).append(name)
    for names in disk.values():
        place = existing(places[names[0]])
        free = shutil.disk_usage(place).free / GB
        state = FAULT if free < 10 else WARN if free < 30 else OK
        hints = {
            "runs/": "make runs/ a link to a larger disk",
            "cache": "set MYLLM_CACHE to a folder on a larger disk",
            "environments": "clone the repository on a larger disk",
        }
        told = f"{free:,.0f} GB free for {', '.join(names)}"
        yield Finding("disk", state, told, "" if state == OK else f"free some space, or {hints[names[0]]}")
        usage = os.statvfs(place)
        if usage.f_files and usage.f_favail < 200_000:
            told = f"only {usage.f_favail:,} more files fit (inodes) for {', '.join(names)}"
            yield Finding("files", WARN, told, "remove folders with many small files, e.g. caches of pip and conda")


def limits(controller: str, file_1: str, file_2: str) -> Iterator[tuple[Path, str]]:
    """A limit of this process's control group and of those above it: version 1's file or version 2's, and its text."""
    root = base.ROOT / "sys/fs/cgroup"
    for line in text_of(base.ROOT / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, file = (root / controller, file_1) if controllers else (root, file_2)
        folder = top / own.lstrip("/")
        for place in (folder, *folder.parents):
            text = text_of(place / file).strip()
            if text:
                yield place, text
            if place == top:
                break


def memory() -> Iterator[Finding]:
    available = re.search(r"MemAvailable: +(\d+) kB", text_of(base.ROOT / "proc/meminfo"))
    free = float(available[1]) * 1024 if available else float("inf")
    told = ""
    for _, text in limits("memory", "memory.limit_in_bytes", "memory.max"):
        if text.isdigit() and int(text) < free:
            free, told = float(text), " (limit of the container or job)"
    if free == float("inf"):
        yield Finding("memory", INFO, "unknown")
    elif free < 8 * GB:
        mend = "end other programs, or ask for more: the demo needs 2 GB, vLLM and the tests about 6"
        yield Finding("memory", WARN, f"{free / GB:.1f} GB available{told}", mend)
    else:
        yield Finding("memory", OK, f"{free / GB:.0f} GB available{told}")


def cores() -> Iterator[Finding]:
    usable = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for place, text in limits("cpu", "cpu.cfs_quota_us", "cpu.max"):
        quota, _, period = text.partition(" ")
        period = period or text_of(place / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            usable = min(usable, int(quota) / int(period))
    total = os.cpu_count() or 1
    told = f"{usable:g}" + (f" of the machine's {total}" if usable < total else "")
    if usable < 2:
        yield Finding("cores", WARN, f"{told}: the demo trains with two processes", "ask for two cores or more")
    else:
        yield Finding("cores", OK, told)


def shared_memory() -> Iterator[Finding]:
    place = base.ROOT / "dev/shm"
    size = shutil.disk_usage(place).total if place.is_dir() else 0
    if size < GB:
        mend = "docker run --shm-size=8g (or --ipc=host), or mount -o remount,size=8G /dev/shm"
        yield Finding("/dev/shm", WARN, f"{size / 1e6:.0f} MB: vLLM and data loaders need 1 GB or more", mend)
    else:
        yield Finding("/dev/shm", OK, f"{size / GB:.0f} GB")


def open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    told = "unlimited" if soft == endless else f"{soft:,}"
    if soft != endless and soft < 1024:
        more = 65536 if hard == endless else min(hard, 65536)
        mend = f"ulimit -n {more}" if more >= 1024 else "raise nofile in /etc/security/limits.conf"
        yield Finding("open files", WARN, f"at most {told}", mend)
    else:
        yield Finding("open files", OK, f"at most {told}")


def kind_of(place: Path) -> str:
    """The type of the file system that a folder lies on: ext4, nfs4, overlay …"""
    best, kind = "", "unknown"
    for line in text_of(base.ROOT / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4].replace("\\040", " ")
        if len(mount) >= len(best) and (f"{place}/".startswith(f"{mount.rstrip('/')}/")):
            best, kind = mount, right.split()[0]
    return kind


def file_system() -> Iterator[Finding]:
    place = existing(layout.REPOSITORY / "runs").resolve()
    kind = kind_of(place)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
            first, second = Path(folder) / "a", Path(folder) / "b"
            with first.open("w") as lock, first.open("w") as other:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    problem = "locks (flock) have no effect"
                except BlockingIOError:
                    problem = ""
            second.touch()
            os.replace(first, second)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            mend = "clone the repository where you may write, or make runs/ a link to such a folder"
            yield Finding("runs/", WARN, f"cannot be written: {reason}", mend)
            return
        problem = f"no locks (flock) or renames: {reason}"
    if problem:
        mend = "make runs/ a link to a local disk; NFS: mount with local_lock=flock, Lustre: with -o flock"
        yield Finding("runs/", WARN, f"{kind}: {problem}", mend)
    else:
        yield Finding("runs/", OK, f"{kind}: locks and renames work")
