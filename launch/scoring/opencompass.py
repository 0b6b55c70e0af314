"""Start OpenCompass on a suite, show its progress, and find the line in its logs that explains a failure.

Used by `launch.scoring.evaluate`; not a command. OpenCompass writes `tmp/`, `.cache/` and `icl_inference_output/` into
its working folder, so it gets a folder of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.guard import Guarded
from artifacts.layout import REPOSITORY, environment
from artifacts.processes import without_proxy
from launch.scoring.models import LOCAL, Model

START = "Start inferencing ["  # …model/dataset], once per dataset, in OpenCompass's log
BAR = "Calculating PPL for prompts labeled"  # once per label of a ppl dataset
TAIL = 200_000  # bytes of the log that are read for progress
BEGUN = "==== begun "  # marks the start of each run in the log
ERROR = re.compile(r"(Error|Exception)\b|failed with code")


def settings(models: list[Model], extra: dict[str, str]) -> dict[str, str]:
    """The variables of `eval_configs/settings.py` for these models."""

    def listed(way: str) -> str:
        return ";".join(f"{model.abbr}={model.place}" for model in models if model.way == way)

    variables = {"MYLLM_EVAL_BASE": listed("plain"), "MYLLM_EVAL_CHAT": listed("chat"), **extra}
    served = [model for model in models if model.way == "api"]
    if served:
        variables["MYLLM_EVAL_API"] = ";".join(f"{m.abbr}={m.served_name}@{m.place}" for m in served)
        variables["MYLLM_EVAL_POSITIONS"] = str(min(model.positions for model in served))
    return variables


def whole_environment(work: Path, data: Path) -> dict[str, str]:
    """The complete environment of OpenCompass: offline, and all caches of its libraries under `work`."""
    variables = dict(os.environ)
    # Without byte code, every start compiles thousands of files again.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    # With it, OpenCompass would load the sets from another hub.
    variables.pop("DATASET_SOURCE", None)
    return {
        **variables,
        "COMPASS_DATA_CACHE": str(data),
        **without_proxy(*LOCAL),
        "OPENAI_API_KEY": os.environ.get("MYLLM_API_KEY", "none"),
        "HF_HOME": str(work / "cache"),
        "MPLCONFIGDIR": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # glibc keeps a batch's memory of logits for the next; returning it each time cost a quarter of the CPU time.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(2 << 30),
        # Waiting threads sleep: spinning ones doubled the time when another program used a core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }


def earlier(work: Path) -> str | None:
    """The time stamp of the newest run in a working folder, or None; its incomplete files are removed."""
    stamps = sorted(folder.name for folder in (work / "out").glob("*_*") if folder.is_dir())
    if not stamps:
        return None
    for file in (work / "out" / stamps[-1]).glob("[pr]*/*/*.json"):  # predictions/ and results/
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            print(f"{file} is incomplete (the run was killed while writing it): its set is run again", flush=True)
            file.unlink()
    return stamps[-1]


def command(config: Path, work: Path) -> list[str]:
    """The opencompass command. `--debug` runs in one process; one per model and suite would cost 8 to 15 s each."""
    again = earlier(work)
    program = str(environment("eval") / "bin" / "opencompass")
    return [program, str(config), "-w", str(work / "out"), "--debug", *(["-r", again] if again else [])]


def shown(command: list[str], variables: dict[str, str], data: Path) -> str:
    """The command as a shell line, with the variables that the suite reads."""
    given = {**variables, "COMPASS_DATA_CACHE": str(data), "PYTHONPATH": str(REPOSITORY)}
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in given.items() if value), shlex.join(command)])


def texts_of(log: Path) -> str:
    """The last TAIL bytes of a log, as text."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL))
        return stream.read().decode("utf-8", "replace")


def questions_done(work: Path, log: str, pairs: list[dict[str, Any]]) -> int:
    """Number of answered questions: those of finished datasets, and a share of the current dataset.

    OpenCompass shows one progress bar per label of a ppl dataset, and one for a gen dataset.
    """
    done = 0
    for pair in pairs:
        if any((work / "out").glob(f"*/predictions/{pair['model']}/{pair['dataset']}.json")):
            done += pair["n"]
    head, _, rest = log.rpartition(START)
    inside = next((p for p in pairs if rest.startswith(f"{p['model']}/{p['dataset']}]")), None) if head else None
    if inside is None or any((work / "out").glob(f"*/predictions/{inside['model']}/{inside['dataset']}.json")):
        return done
    begun = rest.count(BAR)
    # Bars in iterations are OpenCompass's; bars in examples belong to `datasets`.
    steps = re.findall(r"(\d+)/(\d+) \[[^\]]*(?:it/s|s/it)\]", rest.rpartition(BAR)[2])
    share = int(steps[-1][0]) / max(1, int(steps[-1][1])) if steps else 0.0
    if inside["kind"] == "ppl":
        share = (max(0, begun - 1) + share) / len(inside["labels"])
    return done + int(min(1.0, share) * inside["n"])


def run(arguments: list[str], variables: dict[str, str], work: Path, pairs: list[dict[str, Any]]) -> Path:
    """Run OpenCompass in `work`; returns its log. Raises UserError if its exit code is not 0 (0 proves no success)."""
    log = work / "opencompass.log"
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{BEGUN}{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    total = sum(pair["n"] for pair in pairs)
    printed_at, seen, first, began = 0.0, -1, -1, time.monotonic()
    with Guarded(arguments, env=variables, cwd=work, log=log) as process:
        while (status := process.poll()) is None:
            time.sleep(0.2)
            if time.monotonic() - printed_at > 1:
                printed_at = time.monotonic()
                done = questions_done(work, texts_of(log), pairs)
                if done > seen:
                    first, seen = (done if first < 0 else first), done
                    print(f"progress {done}/{total} questions{left(done - first, total - done, began)}", flush=True)
    if status:
        raise UserError(f"OpenCompass ended with status {status}: {last_line(log)}; read {log}")
    return log


def left(done: int, rest: int, began: float) -> str:
    """The remaining time as `, ETA 3:20`; empty before the first question is done."""
    seconds = int((time.monotonic() - began) * rest / done) if done > 0 else 0
    return f", ETA {seconds // 60}:{seconds % 60:02d}" if seconds else ""


def last_line(log: Path) -> str:
    """The last error line of a log, else its last non-empty line, at most 300 characters.

    If several runs wrote to the log, only the last run counts.
    """
    text = log.read_text(encoding="utf-8", errors="replace").rpartition(BEGUN)[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.search(line)]
    return (errors or lines or ["(an empty log)"])[-1][-300:]


def log_of(work: Path, model: str, dataset: str, log: Path) -> Path:
    """The log of one dataset: that of its own task if tasks have logs, else the log of the run.

    A task of several datasets is named after the first, with a number; then the newest log with an error is used.
    """
    own = [file for kind in ("infer", "eval") for file in (work / "out").glob(f"*/logs/{kind}/{model}/*.out")]
    exact = [file for file in own if file.stem == dataset]
    failed = [file for file in own if ERROR.search(file.read_text(encoding="utf-8", errors="replace"))]
    return (exact or failed or [log])[-1]
