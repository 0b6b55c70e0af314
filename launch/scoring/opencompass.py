"""Start OpenCompass on a suite, watch it, and find the line of its logs that says what went wrong.

Used by `launch.scoring.evaluate`; there is nothing to run here. OpenCompass writes `tmp/`, `.cache/` and
`icl_inference_output/` into its working folder: it gets one of its own, in which nothing else lies.
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

START = "Start inferencing ["  # …model/dataset], one a dataset, in OpenCompass's log
BAR = "Calculating PPL for prompts labeled"  # one a label of a ppl dataset
TAIL = 200_000  # bytes of the log that are read for progress
BEGUN = "==== begun "  # in the log, before what OpenCompass says in this run
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
    """Offline, and all that OpenCompass and its libraries write beside their results goes under `work`."""
    variables = dict(os.environ)
    # Without byte code every start compiles thousands of files again.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    # OpenCompass would take the sets from another hub.
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
        # glibc keeps a batch's logits for the next batch; giving them back each time cost a quarter of all CPU seconds.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(2 << 30),
        # Threads that wait sleep: spinning ones cost twice the seconds when another program has a core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }


def earlier(work: Path) -> str | None:
    """The time stamp of the newest unfinished run in a working folder, its torn files removed."""
    stamps = sorted(folder.name for folder in (work / "out").glob("*_*") if folder.is_dir())
    if not stamps:
        return None
    for file in (work / "out" / stamps[-1]).glob("[pr]*/*/*.json"):  # predictions/ and results/
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            print(f"{file} is torn (the run was killed while it was written): its set is asked again", flush=True)
            file.unlink()
    return stamps[-1]


def command(config: Path, work: Path) -> list[str]:
    """In-process (`--debug`): a process for every model and suite would cost 8 to 15 s each."""
    again = earlier(work)
    program = str(environment("eval") / "bin" / "opencompass")
    return [program, str(config), "-w", str(work / "out"), "--debug", *(["-r", again] if again else [])]


def shown(command: list[str], variables: dict[str, str], data: Path) -> str:
    """The command as one would type it, with the variables that the suite reads."""
    told = {**variables, "COMPASS_DATA_CACHE": str(data), "PYTHONPATH": str(REPOSITORY)}
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in told.items() if value), shlex.join(command)])


def texts_of(log: Path) -> str:
    """The end of a log."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL))
        return stream.read().decode("utf-8", "replace")


def questions_done(work: Path, log: str, pairs: list[dict[str, Any]]) -> int:
    """How many of the pairs' questions are answered: those of whole datasets, and the share of the one in work.

    A ppl dataset shows a bar for every label, a gen dataset one.
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
    # Steps are shown in iterations; the bars of `datasets`, in examples, are not ours.
    steps = re.findall(r"(\d+)/(\d+) \[[^\]]*(?:it/s|s/it)\]", rest.rpartition(BAR)[2])
    share = int(steps[-1][0]) / max(1, int(steps[-1][1])) if steps else 0.0
    if inside["kind"] == "ppl":
        share = (max(0, begun - 1) + share) / len(inside["labels"])
    return done + int(min(1.0, share) * inside["n"])


def run(arguments: list[str], variables: dict[str, str], work: Path, pairs: list[dict[str, Any]]) -> Path:
    """Run OpenCompass in `work`; returns its log. A non-zero exit is a UserError; a zero proves nothing."""
    log = work / "opencompass.log"
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{BEGUN}{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    total = sum(pair["n"] for pair in pairs)
    told, seen, first, began = 0.0, -1, -1, time.monotonic()
    with Guarded(arguments, env=variables, cwd=work, log=log) as process:
        while (status := process.poll()) is None:
            time.sleep(0.2)
            if time.monotonic() - told > 1:
                told = time.monotonic()
                done = questions_done(work, texts_of(log), pairs)
                if done > seen:
                    first, seen = (done if first < 0 else first), done
                    print(f"progress {done}/{total} questions{left(done - first, total - done, began)}", flush=True)
    if status:
        raise UserError(f"OpenCompass ended with status {status}: {last_line(log)}; read {log}")
    return log


def left(done: int, rest: int, began: float) -> str:
    """`, ETA 3:20` once something is done."""
    seconds = int((time.monotonic() - began) * rest / done) if done > 0 else 0
    return f", ETA {seconds // 60}:{seconds % 60:02d}" if seconds else ""


def last_line(log: Path) -> str:
    """The newest line of a log that says something, at most 300 characters: an error's if there is one.

    Of a log that several runs wrote, only what the last one said.
    """
    text = log.read_text(encoding="utf-8", errors="replace").rpartition(BEGUN)[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.search(line)]
    return (errors or lines or ["(an empty log)"])[-1][-300:]


def log_of(work: Path, model: str, dataset: str, log: Path) -> Path:
    """The log that tells of one dataset: that of its own task, where tasks have logs, else the run's.

    Tasks of several datasets are named by the first, with a number: the newest that holds an error is taken.
    """
    own = [file for kind in ("infer", "eval") for file in (work / "out").glob(f"*/logs/{kind}/{model}/*.out")]
    exact = [file for file in own if file.stem == dataset]
    failed = [file for file in own if ERROR.search(file.read_text(encoding="utf-8", errors="replace"))]
    return (exact or failed or [log])[-1]
