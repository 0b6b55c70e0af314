"""Score models with OpenCompass, and prove that every expected score is there.

    myllm eval runs/poetry-tiny/models/base --suite next_line
    myllm eval runs/mine/models/base --suite base_ppl --limit 20
    myllm eval base=runs/a/models/base sft=runs/a/models/sft --suite smoke_cpu
    myllm eval http://127.0.0.1:8000 --suite api_gen --tokenizer runs/a/models/dpo

A suite is a file of eval_configs/, which you may edit or add to; `--dry-run` prints the `opencompass` command. Writes
`scores.json` (one row a model and set) and `predictions/<model>-<suite>-<set>.json`. What was scored before with the
same weights, questions and configuration is kept; killed in the middle, the same command goes on. Exits with 2 when
any score is missing, telling the line of the log that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest, run_main
from artifacts.files import read_json, read_yaml, sha256, write_json, write_text
from artifacts.layout import REPOSITORY, cache_folder, environment
from artifacts.stage import report_metrics
from eval_configs.smoke_data import MARK, write_smoke
from launch import opencompass
from launch.eval_models import Model, batch_of, read_model, read_server, split_name
from launch.eval_results import Score, collect, cut_texts, print_table, score_set, short

CONFIGS = REPOSITORY / "eval_configs"
SUITES = ("base_ppl", "base_gen", "chat_gen", "api_gen", "smoke_cpu", "next_line")
WAYS = {"base_ppl": "plain", "base_gen": "plain", "chat_gen": "chat", "api_gen": "api"}
OWN = "next_line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="+", metavar="MODEL", help="a model folder or NAME=FOLDER; api_gen: an address")
    parser.add_argument("--suite", required=True, help=f"{', '.join(SUITES)}, or a file of your own")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions of every set (or subject)")
    parser.add_argument("--sets", default="", metavar="A,B", help="only these sets of the suite, e.g. ceval,c3")
    parser.add_argument("--output", type=Path, help="default: eval/ of the run that the model lies in")
    parser.add_argument(
        "--data", type=Path, help="the sets; default $COMPASS_DATA_CACHE, else where `download` puts them"
    )
    parser.add_argument("--questions", type=Path, help="next-line questions; default tasks/next_line.jsonl of the run")
    parser.add_argument("--plain", action="append", default=[], metavar="NAME", help="ask this model in plain text")
    parser.add_argument("--chat", action="append", default=[], metavar="NAME", help="ask it through its chat template")
    parser.add_argument("--tokenizer", type=Path, help="folder of the served model (api_gen)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="texts at a time; default: logits of at most 1 GB, at most 64")
    parser.add_argument("--decontamination", type=Path, action="append", help="reports of preprocess.decontaminate")
    parser.add_argument("--slurm", metavar="SITE", help="write the job for a cluster instead of running here")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the command, score nothing")


def suite_file(name: str) -> Path:
    """The file of a suite: a name of eval_configs/ or a path; raises UserError with the nearest name."""
    for file in (CONFIGS / f"{name}.py", Path(name)):
        if file.is_file():
            return file.resolve()
    raise UserError(f"there is no suite {name!r}{nearest(name, SUITES)}: there are {', '.join(SUITES)}")


def way_of(name: str, suite: str, arguments: argparse.Namespace) -> str:
    """How a model is asked: as the suite says, else as told, else a model named `base` plainly and others as a chat."""
    if suite in WAYS:
        return WAYS[suite]
    if name in arguments.plain:
        return "plain"
    return "chat" if name in arguments.chat or not name.startswith("base") else "plain"


def read_models(arguments: argparse.Namespace, suite: str) -> list[Model]:
    named = [split_name(text) for text in arguments.model]
    names = [name for name, _ in named]
    if len(set(names)) != len(names):
        raise UserError("two models have one name: give every MODEL a name of its own, as NAME=FOLDER")
    for given in {*arguments.plain, *arguments.chat} - {*names}:
        raise UserError(f"no MODEL is named {given!r}: there are {', '.join(names)}")
    ways = [way_of(name, suite, arguments) for name in names]
    return [
        read_server(name, place, arguments.tokenizer) if way == "api" else read_model(name, Path(place), way)
        for (name, place), way in zip(named, ways)
    ]


def run_of(models: list[Model]) -> Path | None:
    """The run's folder, where the first model lies in runs/<name>/models/."""
    folder = Path(models[0].place)
    return folder.parent.parent if models[0].way != "api" and folder.parent.name == "models" else None


def make_plan(config: Path, variables: dict[str, str], work: Path) -> dict[str, Any]:
    """What `eval_configs.plan` says of a suite, in OpenCompass's environment; its UserError becomes ours."""
    file = work / "plan.json"
    command = [str(environment("eval") / "bin" / "python"), "-m", "eval_configs.plan", str(config)]
    result = subprocess.run(
        [*command, "--output", str(file)], env=variables, cwd=work, text=True, capture_output=True, errors="replace"
    )
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()] or ["no message"]
        told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
        raise UserError(told.removeprefix("error: "))
    return dict(read_json(file))


def check_counts(pairs: list[dict[str, Any]], sets: dict[str, Any], limited: bool, smoke: bool) -> None:
    """Raise UserError when a set has another number of questions than was published."""
    for name in {pair["set"] for pair in pairs}:
        published = sets[name].get("questions")
        model = next(pair["model"] for pair in pairs if pair["set"] == name)
        found = sum(pair["n"] for pair in pairs if pair["set"] == name and pair["model"] == model)
        if published and found != published and not limited and not smoke:
            raise UserError(
                f"the set {name} has {found:,} questions, published are {published:,}: `myllm download {name}` anew"
            )


def decontamination(name: str, entry: dict[str, Any], reports: list[Path]) -> str:
    """What the check of the training corpora against a set found, from reports of `preprocess.decontaminate`."""
    removed, seen = 0, False
    for report in reports:
        for row in read_json(report)["sets"]:
            path = Path(row["evaluation"])
            if name in (*path.parts, path.stem) or entry.get("data", "no data") in row["evaluation"]:
                removed, seen = removed + row["removed"], True
    return f"checked, {removed:,} documents removed" if seen else "not checked"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a working folder; raises UserError when another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder} is in use by another evaluation: wait for it, or give another --output"
            ) from None
        yield


def write_job(arguments: argparse.Namespace, output: Path) -> None:
    """The one command of a cluster job, as a file that `launch.slurm` or `sbatch --wrap` can take."""
    words = [word for word in sys.argv[1:] if word != "eval"]
    at = next(i for i, word in enumerate(words) if word.startswith("--slurm"))
    del words[at : at + (1 if "=" in words[at] else 2)]
    line = shlex.join([str(REPOSITORY / ".venv" / "bin" / "python"), "-m", "launch.evaluate", *words])
    job = output / "jobs" / f"eval-{Path(arguments.suite).stem}.sh"
    write_text(job, f"#!/bin/bash\n# site: {arguments.slurm}; one node, one GPU unless --device cpu\nset -e\n"
               f"cd {shlex.quote(str(Path.cwd()))}\n{line}\n")  # fmt: skip
    print(f"{job}: one job; submit it with sbatch and the options of {arguments.slurm}")


def keep_or_ask(output: Path, models: list[Model], pairs: list[dict[str, Any]], suite: str) -> dict[Any, Any]:
    """{(model's name, set): (file, key, score or None)}; a score is kept when its key is the same."""
    state: dict[Any, Any] = {}
    code = short([sha256(file) for file in sorted(CONFIGS.glob("*.py"))])
    for model in models:
        mine = [pair for pair in pairs if pair["model"] == model.abbr]
        for name in dict.fromkeys(pair["set"] for pair in mine):
            asked = [pair for pair in mine if pair["set"] == name]
            key = {
                "model": model.identity,
                "config": short([pair["config"] for pair in asked]),
                "data": short([pair["data"] for pair in asked]),
                "code": code,
            }
            file = output / "predictions" / f"{model.name}-{suite}-{name}.json"
            known = read_json(file) if file.exists() else {}
            score = Score(**known["score"]) if known.get("key") == key else None
            if score:
                print(f"{model.name} {name}: scored before with the same weights and questions, kept", flush=True)
            state[model.name, name] = (file, key, score)
    return state


def take_scores(
    work: Path, log: Path, models: list[Model], plan: dict[str, Any], state: dict[Any, Any], sets: dict[str, Any],
    more: dict[str, Any], reports: list[Path], smoke: bool,
) -> list[UserError]:  # fmt: skip
    """Collect what was asked into `state` and its files; returns what is missing."""
    problems: list[UserError] = []
    cut = cut_texts(log)
    for model in models:
        for (owner, name), (file, key, score) in list(state.items()):
            if owner != model.name or score is not None:
                continue
            asked = [pair for pair in plan["pairs"] if pair["model"] == model.abbr and pair["set"] == name]
            try:
                predictions = [collect(work, pair, model.name, log) for pair in asked]
            except UserError as error:
                problems.append(error)
                continue
            score = score_set(
                name, sets[name], asked, predictions, model=model.name, way=model.way,
                smoke=smoke and "data" in sets[name], opencompass=plan["opencompass"],
                cut=sum(cut.get(f"{pair['model']}/{pair['dataset']}", 0) for pair in asked),
                decontamination=decontamination(name, sets[name], reports), **more,
            )  # fmt: skip
            rows = [row for part in predictions for row in part]
            write_json(file, {"key": key, "score": asdict(score), "predictions": rows})
            state[owner, name] = (file, key, score)
    return problems


def write_scores(output: Path, suite: str, state: dict[Any, Any]) -> list[Score]:
    """Put what was asked into scores.json in the place of older rows of it; what has no score now has no row."""
    file = output / "scores.json"
    rows = [score for _, _, score in state.values() if score]
    known = read_json(file) if file.exists() else []
    kept = [row for row in known if row.get("config") != suite or (row["model"], row["suite"]) not in state]
    write_json(file, [*kept, *(asdict(row) for row in rows)])
    return rows


def run(arguments: argparse.Namespace) -> int:
    # SIGTERM unwinds as Ctrl-C does, so that OpenCompass is ended and waited for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError("--limit must be at least 1")
    config = suite_file(arguments.suite)
    suite, sets = config.stem, read_yaml(CONFIGS / "sets.yaml")
    for name in filter(None, arguments.sets.split(",")):
        if name not in sets:
            raise UserError(f"--sets: there is no set {name!r}{nearest(name, sets)}: there are {', '.join(sets)}")
    models = read_models(arguments, suite)
    home = run_of(models)
    if arguments.output is None and home is None:
        raise UserError("give --output FOLDER: the model lies in no run's models/, so there is no eval/ beside it")
    output = (arguments.output or home / "eval").resolve()  # type: ignore[operator]  # one of them is there
    if arguments.slurm:
        write_job(arguments, output)
        return 0
    environment("eval")
    data = Path(arguments.data or __import__("os").environ.get("COMPASS_DATA_CACHE", cache_folder() / "opencompass"))
    if suite == "smoke_cpu" and arguments.data is None:
        data = output / "opencompass" / "smoke"
        write_smoke(data)
    questions = arguments.questions or (home / "tasks" / "next_line.jsonl" if home else None)
    variables = opencompass.settings(
        models,
        {
            "MYLLM_EVAL_LIMIT": str(arguments.limit or 0),
            "MYLLM_EVAL_SETS": arguments.sets.replace(",", ";"),
            "MYLLM_EVAL_QUESTIONS": str(questions.resolve()) if questions else "no --questions were given",
            "MYLLM_EVAL_DEVICE": arguments.device,
            "MYLLM_EVAL_DTYPE": arguments.dtype,
            "MYLLM_EVAL_BATCH": str(arguments.batch_size or batch_of(models)),
            "MYLLM_EVAL_TOKENIZER": str(arguments.tokenizer.resolve()) if arguments.tokenizer else "",
        },
    )
    started = time.monotonic()
    planning = output / "opencompass"
    with alone_in(planning):
        plan = make_plan(config, {**opencompass.whole_environment(planning, data.resolve()), **variables}, planning)
        smoke = (data / MARK).exists()
        check_counts(plan["pairs"], sets, bool(arguments.limit), smoke)
        state = keep_or_ask(output, models, plan["pairs"], suite)
        todo = [
            pair for pair in plan["pairs"] for model in models
            if pair["model"] == model.abbr and state[model.name, pair["set"]][2] is None
        ]  # fmt: skip
        # The folder is of one configuration and one set of questions: what lies in it may be gone on with.
        parts = sorted(f"{p['dataset']} {p['config']} {p['data']}" for p in plan["pairs"])
        code = [sha256(file) for file in sorted(CONFIGS.glob("*.py"))]
        work = planning / f"{suite}-{short([*parts, *code, plan['opencompass']])}"
        work.mkdir(parents=True, exist_ok=True)
        asked = [model for model in models if any(pair["model"] == model.abbr for pair in todo)]
        variables |= opencompass.settings(asked, {})
        command = opencompass.command(config, work)
        print(opencompass.shown(command, variables, data.resolve()), flush=True)
        if arguments.dry_run:
            return 0
        if todo:
            around = {**opencompass.whole_environment(work, data.resolve()), **variables}
            log = opencompass.run(command, around, work, todo)
            reports = arguments.decontamination or (sorted(home.glob("corpus/**/*.contaminated.json")) if home else [])
            problems = take_scores(work, log, models, plan, state, sets, {"config": suite}, reports, smoke)
            if problems:
                write_scores(output, suite, state)
                raise UserError(f"{problems[0]}" + (f" ({len(problems) - 1} more)" if len(problems) > 1 else ""))
    rows = write_scores(output, suite, state)
    print_table(rows)
    metrics = {f"{row.model}_{row.suite}": row.value for row in rows}
    report_metrics(**metrics, questions=sum(row.n for row in rows), seconds=round(time.monotonic() - started, 1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    run_main(main)
