"""The virtual environments: made, complete, as in their lock files, up to date."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from artifacts import layout
from launch.doctor_checks.base import FAULT, INFO, OK, WARN, Finding, ask, text_of

MISSING = {"train": FAULT, "eval": WARN, "serve": WARN, "ppo": WARN}  # the others are made when they are wanted
OVERLAY = ".venv-ppo"  # packages laid over .venv; it has no Python of its own
MAIN_PACKAGES = ("torch", "megatron-core", "llamafactory", "transformers", "trl", "opencompass", "vllm", "lmdeploy")
SCRIPTS = {"train": "myllm", "eval": "opencompass", "serve": "vllm", "lmdeploy": "lmdeploy", "lmeval": "lm_eval"}


def plain(name: str) -> str:
    """A package's name as all tools agree on it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(lock: str, python: str = "") -> dict[str, str]:
    """The packages of a lock file and their versions; without those that its markers leave out of this Python."""
    text = text_of(layout.REPOSITORY / "environments" / f"{lock}.lock")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)(?:.*python_(?:full_)?version >= ['\"]([\d.]+))?", text, re.M)
    return {
        plain(name): version
        for name, version, least in found
        if not (least and python) or parts(python) >= parts(least)
    }


def parts(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def stamp(lock: str) -> str:
    """The sha256 that `environments/create.sh` writes into an environment made from this lock file today."""
    folder = layout.REPOSITORY / "environments"
    stubs = sorted(path for path in folder.glob("stubs/*/*") if path.is_file() and path.name[0] != ".")
    content = b"".join(path.read_bytes() for path in (folder / f"{lock}.lock", folder / "create.sh", *stubs))
    return hashlib.sha256(content).hexdigest()


def up_to_date(text: str) -> bool:
    """Whether a stamp is today's. It is `LOCK SHA256 …`; the sum may be cut to its first 32 digits."""
    lock, found = (text.split() + ["", ""])[:2]
    return len(found) >= 32 and stamp(lock).startswith(found)


def installed(folder: Path) -> dict[str, str]:
    """The packages in a folder of packages and their versions."""
    found = {}
    for path in folder.glob("*.dist-info"):
        name, _, version = path.name[: -len(".dist-info")].rpartition("-")
        found[plain(name)] = version
    return found


def differences(there: dict[str, str], wanted: dict[str, str], by_us: Iterable[str]) -> list[str]:
    """Packages that are missing or of another version; of those that create.sh adds (`by_us`), any version will do."""
    other = [f"{name} is missing" for name in by_us if name not in there]
    for name, version in wanted.items():
        if name not in there:
            other.append(f"{name} {version} is missing")
        elif there[name] != version and there[name].partition("+")[0] != version:
            other.append(f"{name} is {there[name]}, not {version}")
    return other


def made_elsewhere(folder: Path, script: str) -> bool:
    """Whether the programs of an environment start another folder's Python: it was moved or copied."""
    place = re.search(r"(/[^'\"\n]*)/bin/python[\d.]*", text_of(folder / "bin" / script)[:1000]) if script else None
    return bool(place) and Path(place[1]).resolve() != folder.resolve()  # type: ignore[index]


def environment(name: str, folder: Path) -> Finding:
    """The state of one environment: complete, as in its lock file, and its Python starts."""
    overlay = folder.name == OVERLAY
    lock = "ppo" if overlay else layout.lock_of(name)
    made_for_gpu = name == "train" and lock.startswith("gpu")
    make = f"make env-{lock if made_for_gpu else name}"
    anew = f"rm -rf {folder.name} && {make}"
    worst = FAULT if name == "train" else WARN
    if not folder.is_dir():
        uses = {"train": "every pipeline", "eval": "scoring", "serve": "vLLM", "ppo": "PPO"}
        use = f" (for {uses[name]})" if name in uses else ""
        return Finding(folder.name, MISSING.get(name, INFO), f"not made{use}", make)
    text = text_of(folder / ".stamp")
    if not text.strip() or not (layout.REPOSITORY / "environments" / f"{lock}.lock").is_file():
        return Finding(
            folder.name, worst, "incomplete: its creation was interrupted, or it is not this project's", anew
        )
    told, version = f"{lock}.lock", ""
    if not overlay:
        version, problem = ask(folder / "bin" / "python", "-c", "import platform; print(platform.python_version())")
        if problem:
            return Finding(folder.name, FAULT, f"its Python does not start: {problem}", anew)
        told += f", Python {version}"
    if made_elsewhere(folder, SCRIPTS.get(name, "")):
        return Finding(folder.name, worst, "its programs belong to another folder: it was moved or copied", anew)
    packages = next(iter(folder.glob("lib/python*/site-packages")), folder)
    there = installed(packages)
    other = differences(there, pins_of(lock, version), ("megatron-core", "myllm") if name == "train" else ())
    if other:
        more = f", and {len(other) - 3} more" if len(other) > 3 else ""
        return Finding(folder.name, WARN, f"not as in {lock}.lock: {', '.join(other[:3])}{more}", anew)
    if not up_to_date(text):
        return Finding(folder.name, WARN, f"older than {lock}.lock or create.sh", make)
    versions = ", ".join(f"{package} {there[package]}" for package in MAIN_PACKAGES if package in there)
    return Finding(folder.name, OK, f"{told}; {versions}".rstrip("; "))


def environments() -> Iterator[Finding]:
    folders = {name: layout.REPOSITORY / folder for name, folder in layout.ENVIRONMENTS.items()}
    folders.setdefault("ppo", layout.REPOSITORY / OVERLAY)
    for name, folder in folders.items():
        try:
            yield environment(name, folder)
        except OSError as error:  # the others can still be looked at
            yield Finding(folder.name, WARN, f"could not check: {error}")
    tools = layout.REPOSITORY / ".tools"
    if not tools.is_dir():
        yield Finding("uv", INFO, "not there yet: the first `make env-…` fetches it into .tools")
        return
    found, problem = ask(tools / "bin" / "uv", "--version")
    _, builder_problem = ask(tools / "bin" / "python", "-c", "import pip")
    if problem or builder_problem:
        told = f".tools is not whole: {problem or builder_problem}"
        yield Finding("uv", WARN, told, "rm -rf .tools: the next `make env-…` makes it again")
    else:
        yield Finding("uv", OK, found.replace("uv ", "", 1))
