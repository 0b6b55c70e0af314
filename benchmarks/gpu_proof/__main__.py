"""Run the proof: see the package's docstring.

python -m benchmarks.gpu_proof --skip learning --skip posttraining
python -m benchmarks.gpu_proof --hardware cpu --output OUT    # tiny shapes, to try the script
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.gpu_proof import wheels

ALL_IN = 480  # seconds
LIMITS = {"machine": 40, "speed": 110, "levers": 130, "fidelity": 75, "learning": 165, "posttraining": 90}  # on a GPU
LIMIT_ON_CPU = 300  # of each part


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_proof",
        description=f"{sys.modules['benchmarks.gpu_proof'].__doc__}\n{__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hardware", choices=("gpu", "cpu"), default="gpu", help="default gpu")
    parser.add_argument("--skip", action="append", default=[], choices=LIMITS, help="leave a part out; may be repeated")
    parser.add_argument("--extra", type=Path, help="folder of `make proof-gpu-wheels`: wheels to install, and data")
    parser.add_argument("--run", type=Path, help="a run with tokenizer/, dataset/, tasks/ (default runs/poetry-tiny)")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for gpu.md, gpu.json and logs (default: benchmarks/, logs in /tmp; with --hardware cpu, whose "
        "figures mean nothing, runs/gpu-proof-cpu)",
    )
    given = parser.parse_args()
    if given.hardware == "cpu" and given.output is None:
        given.output = wheels.REPOSITORY / "runs" / "gpu-proof-cpu"
    return given


def main() -> int:
    given = options()
    started = time.monotonic()
    site = site_posttraining = None
    if given.extra:
        site, site_posttraining = wheels.install(given.extra, sys.executable)
        sys.path.insert(1, str(site))
    from artifacts.errors import UserError
    from benchmarks.gpu_proof import machine, models, speed
    from benchmarks.gpu_proof.proof import Proof
    from benchmarks.gpu_proof.results import Results

    parts = {
        "machine": machine.machine,
        "speed": speed.speed,
        "levers": speed.levers,
        "fidelity": models.fidelity,
        "learning": models.learning,
        "posttraining": models.posttraining,
    }
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="gpu-proof-", dir=given.output)).resolve()
    on_gpu = given.hardware == "gpu"
    name = gpu_name() if on_gpu else ""
    if on_gpu and not name:
        raise UserError(
            "this machine has no NVIDIA GPU that nvidia-smi lists: --hardware cpu tries every part on a CPU"
        )
    proof = Proof(on_gpu, work, data(given, work), machine.card_of(name), site, site_posttraining)
    results = Results(given.output or wheels.REPOSITORY / "benchmarks", shlex.join(["make", "proof-gpu"]))
    print(f"logs: {work}", flush=True)
    failed = 0
    for part, find in parts.items():
        if part in given.skip:
            continue
        begun = time.monotonic()
        limit = min(LIMITS[part], ALL_IN - (begun - started)) if on_gpu else LIMIT_ON_CPU
        print(f"== {part}: at most {max(limit, 0):.0f} s", flush=True)
        try:
            if limit < 5:
                raise UserError(f"no time was left: {ALL_IN} s in all")
            for row in find(proof, begun + limit):
                results.add(part, row)
                failed += not row["ok"] and part != "levers"  # that a lever does not work is a finding
                print(f"   {time.monotonic() - begun:5.1f} s  {told(row)}", flush=True)
        except Exception as error:  # a GPU is there for minutes: the other parts go on, whatever went wrong
            failed += 1
            if not isinstance(error, UserError):
                traceback.print_exc()
            told_why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            results.add(part, {"ok": False, "failed": told_why})
            print(f"   {time.monotonic() - begun:5.1f} s  not done: {told_why}", flush=True)
        results.seconds[part] = round(time.monotonic() - begun, 1)
        results.write()
    print(f"{results.folder / 'gpu.md'}: {time.monotonic() - started:.0f} s, {failed} rows are not as they should be")
    return 1 if failed else 0


def gpu_name() -> str:
    """The first GPU as its driver calls it, or ""."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return ""
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return asked.stdout.splitlines()[0].strip() if asked.returncode == 0 and asked.stdout.strip() else ""


def data(given: argparse.Namespace, work: Path) -> Path | None:
    """The run whose text is trained on: --run, else what was brought along, else the demo's; None: there is none.

    On a CPU made-up text serves where there is no other.
    """
    packed = given.extra / "data.tar.xz" if given.extra else None
    if given.run is None and packed and packed.exists():
        return wheels.unpack(packed, work / "data")
    run = given.run or wheels.REPOSITORY / "runs" / "poetry-tiny"
    if all((run / name).is_dir() for name in wheels.DATA):
        return run.resolve()
    if given.run or given.hardware == "gpu":
        return None
    from benchmarks import made_up_data

    made = made_up_data.make_run(work / "data")
    made_up_data.write_tasks(made / "tasks")
    return made


def told(row: dict[str, object]) -> str:
    """A row on one line, without curves and profiles."""
    shown = {key: value for key, value in row.items() if not isinstance(value, list | dict) and value is not None}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    from artifacts.errors import run_main

    run_main(main)
