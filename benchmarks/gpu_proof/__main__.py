"""Run the GPU proof. See the docstring of the package.

python -m benchmarks.gpu_proof --skip learning --skip posttraining
python -m benchmarks.gpu_proof --hardware cpu --output OUT    # tiny shapes, to test the program
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

ALL_IN = 480  # seconds, for all parts
LIMITS = {"machine": 40, "speed": 110, "levers": 130, "fidelity": 75, "learning": 165, "posttraining": 90}  # on a GPU
LIMIT_ON_CPU = 300  # seconds, for each part


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_proof",
        description=f"{sys.modules['benchmarks.gpu_proof'].__doc__}\n{__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hardware", choices=("gpu", "cpu"), default="gpu", help="default gpu")
    parser.add_argument("--skip", action="append", default=[], choices=LIMITS, help="leave out a part; may be repeated")
    parser.add_argument("--extra", type=Path, help="folder of `make proof-gpu-wheels`, with wheels to install and data")
    parser.add_argument("--run", type=Path, help="run with tokenizer/, dataset/, tasks/ (default runs/poetry-tiny)")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for gpu.md, gpu.json and logs (default: benchmarks/, with logs in /tmp; with --hardware cpu "
        "runs/gpu-proof-cpu, because its figures mean nothing)",
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
        raise UserError("nvidia-smi lists no GPU on this machine. To test every part on a CPU, add --hardware cpu")
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
                raise UserError(f"the limit of {ALL_IN} s for all parts is used up: leave out other parts with --skip")
            for row in find(proof, begun + limit):
                results.add(part, row)
                failed += not row["ok"] and part != "levers"  # a lever that fails is a result, not a failure
                print(f"   {time.monotonic() - begun:5.1f} s  {told(row)}", flush=True)
        except Exception as error:  # GPU time is scarce: run the other parts whatever failed
            failed += 1
            if not isinstance(error, UserError):
                traceback.print_exc()
            told_why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            results.add(part, {"ok": False, "failed": told_why})
            print(f"   {time.monotonic() - begun:5.1f} s  failed: {told_why}", flush=True)
        results.seconds[part] = round(time.monotonic() - begun, 1)
        results.write()
    print(f"{results.folder / 'gpu.md'}: {time.monotonic() - started:.0f} s, {failed} failures")
    return 1 if failed else 0


def gpu_name() -> str:
    """The driver's name of the first GPU, or an empty string."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return ""
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return asked.stdout.splitlines()[0].strip() if asked.returncode == 0 and asked.stdout.strip() else ""


def data(given: argparse.Namespace, work: Path) -> Path | None:
    """The run with the training text: --run, else the data in --extra, else the demo's run; None if there is none.

    On a CPU without any of them, made-up text is used.
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
    """A row as one line of text, without curves and profiles."""
    shown = {key: value for key, value in row.items() if not isinstance(value, list | dict) and value is not None}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    from artifacts.errors import run_main

    run_main(main)
