"""Score models with OpenCompass, and check that every expected score exists.

    myllm eval runs/mine/models/base --suite questions --questions questions.jsonl
    myllm eval runs/mine/models/base --suite base_ppl --limit 20
    myllm eval base=runs/a/models/base sft=runs/a/models/sft --suite smoke_cpu
    myllm eval http://127.0.0.1:8000 --suite api_gen --tokenizer runs/a/models/dpo
    myllm eval runs/mine/models/base --suite base_ppl --device cuda --slurm mine     # as a job of site/mine.sh

A suite is a file in eval_configs/; you can edit these files or add your own. `--dry-run` prints the `opencompass`
command. Writes `scores.json` (one row per model and set) and `predictions/<model>-<suite>-<set>.json`. Scores with the
same weights, questions and configuration are kept; after a kill, the same command resumes. If a score is missing, the
exit code is 2 and the error shows the line of the log with the reason.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import hold_lock, read_json, sha256, write_json
from artifacts.layout import REPOSITORY, environment
from artifacts.stage import report_gate, report_metrics
from eval_configs.plan import read_sets
from eval_configs.smoke_data import MARK, write_smoke
from launch.scoring import opencompass
from launch.scoring.arguments import (  # noqa: F401  # add_arguments is the command's
    CONFIGS,
    add_arguments,
    check_sets,
    read_models,
    run_of,
    sets_folder,
    suite_file,
    variables_of,
)
from launch.scoring.models import Model, split_name
from launch.scoring.results import Score, collect, cut_texts, prediction_file, print_table, score_set, short
from launch.slurm import scheduler
from launch.slurm.site import read_site


@dataclass
class ScoreTask:
    """An expected score: a model, a set, its (model, dataset) pairs of the plan. `key` is everything it depends on."""

    model: Model
    name: str
    pairs: list[dict[str, Any]]
    file: Path
    key: dict[str, str]
    score: Score | None = None


def make_plan(config: Path, variables: dict[str, str], work: Path) -> dict[str, Any]:
    """Run `eval_configs.plan` on a suite in OpenCompass's environment. Raises UserError with its error message."""
    file = work / "plan.json"
    command = [str(environment("eval") / "bin" / "python"), "-m", "eval_configs.plan", str(config)]
    result = subprocess.run(
        [*command, "--output", str(file)], env=variables, cwd=work, text=True, capture_output=True, errors="replace"
    )
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()] or ["no message"]
        error = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
        raise UserError(error.removeprefix("error: "))
    return dict(read_json(file))


def check_counts(pairs: list[dict[str, Any]], sets: dict[str, Any], limited: bool, smoke: bool) -> None:
    """Raise UserError if a set has another number of questions than published."""
    for name in {pair["set"] for pair in pairs}:
        first = next(pair for pair in pairs if pair["set"] == name)
        published, model = sets[first["entry"]].get("questions"), first["model"]
        found = sum(pair["n"] for pair in pairs if pair["set"] == name and pair["model"] == model)
        if published and found != published and not limited and not smoke:
            raise UserError(
                f"the set {name} has {found:,} questions, but {published:,} are published: run `myllm download {name}` "
                "again"
            )


def decontamination(name: str, entry: dict[str, Any], reports: list[Path]) -> str:
    """The result of checking the training corpora against a set, from reports of `myllm decontaminate`."""
    removed, seen = 0, False
    for report in reports:
        for row in read_json(report)["sets"]:
            path = Path(row["evaluation"])
            if name in (*path.parts, path.stem) or entry.get("data", "no data") in row["evaluation"]:
                removed, seen = removed + row["removed"], True
    return f"checked, {removed:,} documents removed" if seen else "not checked"


def without_slurm(words: list[str]) -> list[str]:
    """The arguments of this command without `--slurm SITE`, which argparse also accepts abbreviated or with `=`."""
    at = next(i for i, word in enumerate(words) if word.startswith("--sl"))
    return words[:at] + words[at + (1 if "=" in words[at] else 2) :]


def submit_job(arguments: argparse.Namespace, output: Path) -> None:
    """Submit this command to Slurm as one job; with --dry-run, print the sbatch command.

    Raises:
        UserError: the site is unknown, or Slurm refuses the job.
    """
    site = read_site(arguments.slurm)
    name = f"eval-{Path(arguments.suite).stem}"
    options = [f"--job-name={name}", f"--chdir={REPOSITORY}", f"--output={output}/jobs/{name}-%j.out", "--nodes=1"]
    options += ["--gpus-per-node=1"] if arguments.device.startswith("cuda") else []
    options += site.options_of("score")
    words = without_slurm(sys.argv[2:] if sys.argv[1] == "eval" else sys.argv[1:])
    # paths in the arguments are relative to this folder, but the job runs in the repository's folder
    command = [
        "env",
        f"--chdir={Path.cwd()}",
        str(REPOSITORY / ".venv/bin/python"),
        "-m",
        "launch.scoring.evaluate",
        *words,
    ]
    script = [str(REPOSITORY / "launch/slurm/job.sbatch"), *command]
    environment = {**os.environ, **site.environment}
    print(shlex.join(["sbatch", *options, *script]), flush=True)
    if arguments.dry_run:
        return
    scheduler.test_only(options, script, environment)
    (output / "jobs").mkdir(parents=True, exist_ok=True)
    number = scheduler.submit(options, script, environment)
    print(f"job {number}: {output}/jobs/{name}-{number}.out")


def wanted_scores(output: Path, models: list[Model], pairs: list[dict[str, Any]], suite: str) -> list[ScoreTask]:
    """One task for each model and set, with the earlier score if everything that it depends on is the same."""
    found = []
    code = short([sha256(file) for file in sorted(CONFIGS.glob("*.py"))])
    for model in models:
        mine = [pair for pair in pairs if pair["model"] == model.abbr]
        for name in dict.fromkeys(pair["set"] for pair in mine):
            of_set = [pair for pair in mine if pair["set"] == name]
            config, data = (short([pair[part] for pair in of_set]) for part in ("config", "data"))
            key = {"model": model.identity, "config": config, "data": data, "code": code}
            one = ScoreTask(model, name, of_set, output / "predictions" / f"{model.name}-{suite}-{name}.json", key)
            known = read_json(one.file) if one.file.exists() else {}
            if known.get("key") == key:
                one.score = Score(**known["score"])
                print(f"{model.name} {name}: scored before with the same weights and questions, kept", flush=True)
            found.append(one)
    return found


def take_scores(
    work: Path, output: Path, log: Path, wanted: list[ScoreTask], entries: dict[str, Any], **more: Any
) -> None:
    """Collect the missing scores of `wanted` and write their files. Raises UserError at the end if one is missing."""
    problems = []
    cut = cut_texts(log)
    for one in (one for one in wanted if one.score is None):
        try:
            predictions = [collect(work, pair, one.model.name, log) for pair in one.pairs]
        except UserError as error:
            problems.append(error)
            continue
        entry = entries[one.pairs[0]["entry"]]
        one.score = score_set(
            one.name,
            entry,
            one.pairs,
            predictions,
            model=one.model.name,
            way=one.model.way,
            cut=sum(cut.get(f"{pair['model']}/{pair['dataset']}", 0) for pair in one.pairs),
            smoke=more["smoke"] and "data" in entry,
            decontamination=decontamination(one.name, entry, more["reports"]),
            opencompass=more["version"],
            config=more["suite"],
        )
        content = {
            "key": one.key,
            "score": asdict(one.score),
            "files": [str(prediction_file(work, pair).relative_to(output)) for pair in one.pairs],
            "predictions": [row for part in predictions for row in part],
        }
        write_json(one.file, content)
    if problems:
        raise UserError(f"{problems[0]}" + (f" ({len(problems) - 1} more)" if len(problems) > 1 else ""))


def write_scores(output: Path, suite: str, wanted: list[ScoreTask]) -> None:
    """Replace the rows of these tasks in scores.json; a task without a score gets no row."""
    file = output / "scores.json"
    replaced = {(one.model.name, one.name) for one in wanted}
    known = read_json(file) if file.exists() else []
    known = [row for row in known if "config" in row]  # an older version wrote rows without it
    kept = [row for row in known if row["config"] != suite or (row["model"], row["suite"]) not in replaced]
    rows = [*kept, *(asdict(one.score) for one in wanted if one.score)]
    if rows or known:
        write_json(file, rows)


def work_folder(planning: Path, suite: str, plan: dict[str, Any]) -> Path:
    """The folder for one configuration and one set of questions; a run can resume from its contents."""
    parts = sorted(f"{pair['dataset']} {pair['config']} {pair['data']}" for pair in plan["pairs"])
    code = [sha256(file) for file in sorted(CONFIGS.glob("*.py"))]
    folder = planning / f"{suite}-{short([*parts, *code, plan['opencompass']])}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def score(
    arguments: argparse.Namespace, config: Path, models: list[Model], output: Path, home: Path | None
) -> list[ScoreTask]:
    """Make the plan, run what is not scored yet, collect the scores. Raises UserError if one is missing at the end."""
    suite, entries = config.stem, read_sets(config)
    planning, data = output / "opencompass", sets_folder(arguments)
    if suite == "smoke_cpu" and arguments.data is None:
        data = planning / "smoke"
        write_smoke(data)
    smoke = (data / MARK).exists()
    variables = variables_of(arguments, models, home)
    in_use = f"{planning} is in use by another evaluation: wait until it ends, or give another --output"
    with hold_lock(planning / "lock", in_use):
        plan = make_plan(config, {**opencompass.whole_environment(planning, data), **variables}, planning)
        check_counts(plan["pairs"], entries, bool(arguments.limit or arguments.subjects), smoke)
        wanted = wanted_scores(output, models, plan["pairs"], suite)
        todo = [one for one in wanted if one.score is None]
        work = work_folder(planning, suite, plan)
        unscored = [model for model in models if any(one.model == model for one in todo)]
        variables |= opencompass.settings(unscored or models, {})
        command = opencompass.command(config, work)
        print(opencompass.shown(command, variables, data), flush=True)
        if todo and not arguments.dry_run:
            around = {**opencompass.whole_environment(work, data), **variables}
            try:
                log = opencompass.run(command, around, work, [pair for one in todo for pair in one.pairs])
                reports = arguments.decontamination or (
                    sorted(home.glob("corpus/**/*.contaminated.json")) if home else []
                )
                more = {"smoke": smoke, "reports": reports, "version": plan["opencompass"], "suite": suite}
                take_scores(work, output, log, wanted, entries, **more)
            finally:
                write_scores(output, suite, wanted)
        return wanted


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    config = suite_file(arguments.suite)
    check_sets(arguments.sets, config)
    ahead.environment("eval", gpu=arguments.device.startswith("cuda"))
    ahead.needs(gpus=float(arguments.device.startswith("cuda")))
    for text in arguments.model:
        if not text.startswith("http"):
            ahead.wants(split_name(text)[1], "an earlier stage must make this model; check the path")
    if arguments.questions:
        ahead.wants(arguments.questions)
    entries, chosen = read_sets(config), list(filter(None, arguments.sets.split(",")))
    if config.stem not in ("smoke_cpu", "questions"):
        for name in chosen or entries:
            if "data" in entries[name]:
                ahead.wants(
                    sets_folder(arguments) / entries[name]["data"],
                    f"run `myllm download {name}`, or choose other sets with --sets",
                )


def run(arguments: argparse.Namespace) -> int:
    # SIGTERM is handled like Ctrl-C, so that OpenCompass is stopped and waited for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in ("limit", "subjects"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise UserError(f"--{name} {number}: it must be at least 1")
    config = suite_file(arguments.suite)
    check_sets(arguments.sets, config)
    models = read_models(arguments, config.stem)
    home = run_of(models)
    output = arguments.output or (home / "eval" if home else None)
    if output is None:
        raise UserError("give --output FOLDER: the model is not in the models/ folder of a run")
    output = output.resolve()
    if arguments.slurm:
        submit_job(arguments, output)
        return 0
    environment("eval")
    started = time.monotonic()
    wanted = score(arguments, config, models, output, home)
    if arguments.dry_run:
        return 0
    write_scores(output, config.stem, wanted)
    rows = [one.score for one in wanted if one.score]
    print_table(rows)
    sets = ", ".join(dict.fromkeys(row.suite for row in rows))
    report_gate(f"scores of {config.stem}", f"{len(rows)} of {len(wanted)} are there ({sets})")
    metrics = {f"{row.model}_{row.suite}": row.value for row in rows}
    report_metrics(**metrics, questions=sum(row.n for row in rows), seconds=round(time.monotonic() - started, 1))
    return 0


if __name__ == "__main__":
    main(__name__)
