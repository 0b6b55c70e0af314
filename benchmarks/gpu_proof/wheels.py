"""Collect the wheels and data that a GPU machine without a network needs: `make proof-gpu-wheels` makes the folder.

    python -m benchmarks.gpu_proof.wheels --output .proof-gpu --run runs/poetry-tiny

`.proof-gpu/wheels/` has the packages that Megatron-LM and this project need in addition to Python 3.12 with torch
(CUDA), transformers and their dependencies. `wheels-posttraining/` comes before it in the path for the post-training
part only, because LLaMA-Factory needs an older transformers. `data.tar.xz` has a run's tokenizer, datasets and tasks.
About 40 MB in total. Versions are those of environments/gpu.lock.

This module may import only the standard library, because it runs before the wheels are installed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LOCK = REPOSITORY / "environments" / "gpu.lock"
MAIN = ("megatron-core", "omegaconf", "zstandard", "orjson")
POSTTRAINING = (
    "llamafactory", "trl", "transformers", "tokenizers", "huggingface-hub", "datasets", "peft", "accelerate", "fire",
    "tyro", "docstring-parser", "shtab", "dill", "multiprocess", "xxhash",
)  # fmt: skip
DATA = ("tokenizer", "dataset", "tasks")
PLATFORMS = ("2_28", "2_27", "2_24", "2_17")  # glibc versions in the names of wheels


def versions(lock: Path = LOCK) -> dict[str, str]:
    """Versions in a lock file, by package."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), flags=re.MULTILINE))


def fetch(output: Path) -> None:
    """Download the wheels for Python 3.12 on Linux x86-64. Raises CalledProcessError if pip fails."""
    known = versions()
    pip = REPOSITORY / ".tools" / "bin" / "python"
    platforms = [part for glibc in PLATFORMS for part in ("--platform", f"manylinux_{glibc}_x86_64")]
    platforms += ["--platform", "manylinux2014_x86_64"]
    for folder, names in (("wheels", MAIN), ("wheels-posttraining", POSTTRAINING)):
        target = output / folder
        shutil.rmtree(target, ignore_errors=True)  # pip cannot install two versions of one package
        command = [str(pip), "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
        subprocess.run([*command, "-d", str(target), *(f"{name}=={known[name]}" for name in names)], check=True)


def pack(run: Path, output: Path) -> None:
    """Pack a run's tokenizer, datasets (without Megatron's cache) and tasks as `data.tar.xz`."""
    missing = [name for name in DATA if not (run / name).is_dir()]
    if missing:
        sys.exit(f"error: {run} has no {', '.join(missing)}: make them with `myllm run poetry-tiny --to tasks`")
    aside = output / "data.partial"
    with tarfile.open(aside, "w:xz", preset=6) as archive:
        for name in DATA:
            archive.add(run / name, arcname=name, filter=lambda entry: None if entry.name == "dataset/cache" else entry)
    aside.rename(output / "data.tar.xz")


def install(extra: Path, python: str) -> tuple[Path, Path]:
    """Install both sets of wheels, unless they are installed already. Returns their folders, for PYTHONPATH.

    They are installed in the folder for temporary files, to keep `extra` small for copying.
    """
    folders = []
    for name in ("wheels", "wheels-posttraining"):
        wheels = sorted((extra / name).glob("*.whl"))
        if not wheels:
            sys.exit(f"error: {extra / name} has no wheels: make the folder with `make proof-gpu-wheels`")
        mark = hashlib.sha256("\n".join([python, *(wheel.name for wheel in wheels)]).encode()).hexdigest()[:12]
        target = Path(tempfile.gettempdir()) / f"gpu-proof-{name}-{mark}"
        whole = target / "installed"
        if not whole.exists():
            shutil.rmtree(target, ignore_errors=True)
            command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
            command += ["--no-compile", "--no-cache-dir", "--target", str(target), *map(str, wheels)]
            subprocess.run(command, check=True)
            whole.touch()
        folders.append(target)
    return folders[0], folders[1]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the archive of `pack` into `folder`. Returns `folder`."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / ".proof-gpu", help="folder (default .proof-gpu)")
    parser.add_argument(
        "--run", type=Path, default=REPOSITORY / "runs" / "poetry-tiny", help="run whose data is packed"
    )
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    fetch(given.output)
    pack(given.run, given.output)
    size = sum(path.stat().st_size for path in given.output.rglob("*") if path.is_file())
    print(f"{given.output}: {size / 1e6:.0f} MB. Next: `make proof-gpu PYTHON=python3 EXTRA={given.output}`")


if __name__ == "__main__":
    main()
