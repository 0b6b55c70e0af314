"""Look at this machine: what is wrong with it for this project, and the command that mends it.

    myllm doctor                       # or, before there is an environment: python3 -m launch.doctor
    myllm doctor --offline             # do not try the network
    myllm doctor --report              # the same as Markdown, without names of people and machines: for a bug report

Every line has a state: `ok`, `-` (told only), `warn` (something will not work, or slowly), `FAULT` (nothing will). The
exit code is 2 if there is a fault. It needs only Python's standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from artifacts.command import main
from artifacts.layout import ENVIRONMENTS, REPOSITORY, cache_folder, lock_of

OK, TOLD, WARN, FAULT = "ok", "-", "warn", "FAULT"
GB = 1e9
PYTHONS = ("python3.11", "python3.12", "python3.13")
NEEDED = {"train": FAULT, "eval": WARN, "serve": WARN}  # a missing one; the others are made when they are wanted
OVERLAY = ".venv-ppo"
WAIT = 5.0  # seconds for an address
# What each environment is for; its version is told.
MAIN_PACKAGES = {
    "train": ("torch", "megatron-core", "transformers", "llamafactory", "trl", "datatrove"),
    "eval": ("opencompass", "transformers"),
    "serve": ("vllm", "transformers"),
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and the command or change that mends it."""

    group: str
    name: str
    state: str
    found: str
    mend: str = ""


def called(*command: str) -> str:
    """A program's output, or "" if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def interpreters() -> Iterator[Finding]:
    there = [name for name in PYTHONS if shutil.which(name) and called(name, "-c", "import venv, ensurepip; print(1)")]
    state = OK if there else FAULT
    mend = "" if there else "apt-get install python3.11 python3.11-venv python3.11-dev, or set PYTHON to another one"
    yield Finding("programs", "Python", state, f"{platform.python_version()}; with venv: {', '.join(there)}", mend)


def programs() -> Iterator[Finding]:
    wanted = {
        "g++": (FAULT, "apt-get install g++", "builds megatron-core"),
        "make": (WARN, "apt-get install make", "starts the commands of the README"),
        "git": (WARN, "apt-get install git", "tells the revision of a run"),
        "npm": (WARN, "apt-get install npm", "downloads the demo's poems"),
    }
    for name, (state, mend, use) in wanted.items():
        if shutil.which(name):
            yield Finding("programs", name, OK, use)
        else:
            yield Finding("programs", name, state, f"missing: it {use}", mend)


def stamp(lock: str) -> str:
    """What `environments/create.sh` writes into `.stamp` of an environment made from this lock today."""
    folder = REPOSITORY / "environments"
    files = [folder / f"{lock}.lock", folder / "create.sh", *sorted(p for p in folder.glob("stubs/*/*") if p.is_file())]
    return f"{lock} {hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()}"


def installed(folder: Path) -> dict[str, str]:
    """Versions of the packages in an environment, by name as in a lock file."""
    found = {}
    for path in folder.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def environments() -> Iterator[Finding]:
    for name, folder_name in ENVIRONMENTS.items():
        folder = REPOSITORY / folder_name
        make = f"make env-{name}"
        if not (folder / "bin" / "python").exists():
            yield Finding("environments", folder_name, NEEDED.get(name, TOLD), "not made", make)
            continue
        lock = lock_of(name)
        if not (REPOSITORY / "environments" / f"{lock}.lock").exists():
            yield Finding("environments", folder_name, WARN, "not made by this project, or interrupted", make)
            continue
        wanted = (REPOSITORY / "environments" / f"{lock}.lock").read_text()
        there = installed(folder)
        pins = re.findall(r"^([\w.-]+)==([^\s;]+)", wanted, re.M)
        other = [
            f"{package} {there.get(re.sub(r'[-_.]+', '-', package).lower(), 'missing')} instead of {version}"
            for package, version in pins
            if there.get(re.sub(r"[-_.]+", "-", package).lower(), "").partition("+")[0] != version.partition("+")[0]
        ]
        told = ", ".join(f"{package} {there[package]}" for package in MAIN_PACKAGES.get(name, ()) if package in there)
        anew = f"rm -rf {folder_name}; {make}"
        if not called(str(folder / "bin" / "python"), "-c", "print(1)"):
            yield Finding("environments", folder_name, FAULT, "its Python does not start", anew)
        elif other:
            yield Finding("environments", folder_name, WARN, f"not as in {lock}.lock: {other[0]}", anew)
        elif (folder / ".stamp").read_text().strip() != f"{stamp(lock)}  -":
            yield Finding("environments", folder_name, WARN, f"made from an older {lock}.lock", make)
        else:
            yield Finding("environments", folder_name, OK, f"{lock}.lock; {told}".rstrip("; "))
    if (REPOSITORY / OVERLAY / "trl").exists():
        yield Finding("environments", OVERLAY, OK, "for PPO")
    else:
        yield Finding("environments", OVERLAY, WARN, "not made: for PPO", "make env-ppo")


def gpus() -> Iterator[Finding]:
    listed = called("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not listed:
        if Path("/dev/nvidiactl").exists():
            yield Finding("GPU", "NVIDIA", WARN, "nvidia-smi fails", "install the driver's tools in this container")
        else:
            yield Finding("GPU", "NVIDIA", TOLD, "none: everything runs on the CPU")
        return
    for line in listed.splitlines():
        yield Finding("GPU", "NVIDIA", OK, line)
    drives = re.search(r"CUDA Version: *([\d.]+)", called("nvidia-smi"))
    wanted = re.search(r"^torch==\S*?\+?cu(\d+)|^nvidia-cuda-runtime(?:-cu(\d+))?==(\d+)", lock_text("gpu"), re.M)
    major = next((part for part in wanted.groups() if part), "")[:2] if wanted else "13"
    if drives and int(drives[1].split(".")[0]) < int(major):
        mend = "install a newer driver"
        yield Finding("GPU", "driver", FAULT, f"for CUDA {drives[1]}; gpu.lock is for CUDA {major}", mend)
    if lock_of("train") == "train":
        yield Finding("GPU", ".venv", WARN, "made for the CPU: the GPU stays unused", "make env-gpu")


def lock_text(name: str) -> str:
    path = REPOSITORY / "environments" / f"{name}.lock"
    return path.read_text() if path.exists() else ""


def disks() -> Iterator[Finding]:
    for name, folder in {"repository": REPOSITORY, "downloads": cache_folder(), "runs": REPOSITORY / "runs"}.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / GB
        state = FAULT if free < 10 else WARN if free < 30 else OK
        mend = "" if state == OK else "free some space, or set MYLLM_CACHE and --run-folder to another disk"
        yield Finding("machine", f"disk of {name}", state, f"{free:,.0f} GB free", mend)


def number_in(path: str) -> int | None:
    try:
        text = Path(path).read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.isdigit() else None


def memory() -> Iterator[Finding]:
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    free = int(found[1]) * 1024 if found else 0
    limit = number_in("/sys/fs/cgroup/memory.max") or number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    if limit and limit < 1 << 60:
        free = min(free, limit)
    if free:
        state = OK if free > 8 * GB else WARN
        mend = "" if state == OK else "the demo needs 2 GB, vLLM and the tests about 6"
        yield Finding("machine", "memory", state, f"{free / GB:.0f} GB available, {os.cpu_count()} cores", mend)
    shared = Path("/dev/shm")
    if shared.exists() and shutil.disk_usage(shared).total < GB:
        mend = "docker run --shm-size=8g (or --ipc=host)"
        yield Finding("machine", "/dev/shm", WARN, f"{shutil.disk_usage(shared).total / 1e6:.0f} MB", mend)


def file_system() -> Iterator[Finding]:
    import fcntl

    try:
        with tempfile.TemporaryDirectory(dir=REPOSITORY) as folder, open(Path(folder) / "a", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(Path(folder) / "a", Path(folder) / "b")
        yield Finding("machine", "file system", OK, "locks and renames")
    except OSError as error:
        mend = "use --run-folder on a disk with flock (on NFS: mount with local_lock=none)"
        yield Finding("machine", "file system", WARN, f"no lock or rename: {error.strerror}", mend)


def addresses() -> dict[str, str]:
    """What downloads come from: the user's own settings, else the tools' defaults."""
    index = os.environ.get("UV_INDEX_URL") or os.environ.get("PIP_INDEX_URL")
    index = index or called(sys.executable, "-m", "pip", "config", "get", "global.index-url")
    listed = (REPOSITORY / "preprocess/sources/sources.yaml").read_text(encoding="utf-8")
    dumps = re.search(r"^zhwiki:.*?mirrors:\s*- (\S+)", listed, re.M | re.S)
    found = {
        "packages": index or "https://pypi.org/simple",
        "models and corpora": os.environ.get("HF_ENDPOINT") or "https://huggingface.co",
        "poems (npm)": called("npm", "config", "get", "registry") or "https://registry.npmjs.org",
        "Wikipedia's dumps": dumps[1] if dumps else "",
    }
    return {name: url for name, url in found.items() if url}


def reached(url: str) -> str:
    """Why an address cannot be reached, or ""."""
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "myllm-doctor"})
        urllib.request.urlopen(request, timeout=WAIT).close()
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""


def network() -> Iterator[Finding]:
    urls = addresses()
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = list(pool.map(reached, urls.values()))
    mends = {
        "packages": "set PIP_INDEX_URL and UV_INDEX_URL to a mirror, or https_proxy",
        "models and corpora": "set HF_ENDPOINT to a mirror, or use `myllm download NAME --from-file`",
        "poems (npm)": "npm config set registry MIRROR, or `myllm download chinese-poetry --from-file`",
        "Wikipedia's dumps": "use `myllm download zhwiki --from-file`",
    }
    for (name, url), why in zip(urls.items(), answers, strict=True):
        host = urlsplit(url).hostname or url
        if why:
            yield Finding("network", name, WARN, f"{host}: {why}", mends[name])
        else:
            yield Finding("network", name, OK, host)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        if value := os.environ.get(name) or os.environ.get(name.upper()):
            yield Finding("network", name, TOLD, urlsplit(value).hostname or "set")


def slurm() -> Iterator[Finding]:
    version = called("sinfo", "--version")
    if not version:
        yield Finding("Slurm", "sinfo", TOLD, "none: `myllm submit` works on a cluster's login node")
        return
    yield Finding("Slurm", "sinfo", OK, version)
    for line in called("sinfo", "-h", "-o", "%P %a %D nodes %G").splitlines():
        yield Finding("Slurm", "partition", TOLD, line)


def revision() -> Iterator[Finding]:
    found = called("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty")
    yield Finding("programs", "revision", TOLD, found or "no git clone")
    yield Finding("programs", "system", TOLD, f"{platform.system()} {platform.release()} {platform.machine()}")
    if platform.system() != "Linux":
        yield Finding("programs", "system", FAULT, f"{platform.system()} is not supported", "use Linux, or a container")
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        yield Finding("programs", "encoding", WARN, sys.getfilesystemencoding(), "export PYTHONUTF8=1")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    revision, interpreters, programs, environments, gpus, disks, memory, file_system, network, slurm,
)  # fmt: skip


def examine(checks: tuple[Callable[[], Iterator[Finding]], ...]) -> list[Finding]:
    """Every finding; a check that fails itself is a finding too."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # nothing about a strange machine may stop the rest
            found.append(Finding(check.__name__, check.__name__, WARN, f"could not be checked: {error!r}"))
    return found


def table(found: list[Finding]) -> str:
    lines, group = [], ""
    for one in found:
        if one.group != group:
            group = one.group
            lines.append(f"{group}:")
        mend = f"\n{'':9}-> {one.mend}" if one.mend else ""
        lines.append(f"  {one.state:<5}  {one.name}: {one.found}{mend}")
    faults, warnings = (sum(one.state == state for one in found) for state in (FAULT, WARN))
    return "\n".join([*lines, f"{faults} faults, {warnings} warnings"])


def without_names(text: str) -> str:
    """The text without the user's home folder, their name, and the machine's."""
    for secret, shown in ((str(Path.home()), "~"), (platform.node(), "HOST")):
        if len(secret) > 2:
            text = text.replace(secret, shown)
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="do not try the network")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", action="store_true", help="print Markdown for a bug report")


def run(arguments: argparse.Namespace) -> int:
    found = examine(tuple(check for check in CHECKS if not (arguments.offline and check is network)))
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
    else:
        text = without_names(table(found))
        print(f"```\n{text}\n```" if arguments.report else text)
    return 2 if any(one.state == FAULT for one in found) else 0


if __name__ == "__main__":
    main(__name__)
