"""Score models with OpenCompass, and prove that every expected score is there.

    myllm eval runs/mine/models/base --suite questions --questions questions.jsonl
    myllm eval runs/mine/models/base --suite base_ppl --limit 20
    myllm eval base=runs/a/models/base sft=runs/a/models/sft --suite smoke_cpu
    myllm eval http://127.0.0.1:8000 --suite api_gen --tokenizer runs/a/models/dpo
    myllm eval runs/mine/models/base --suite base_ppl --device cuda --slurm mine     # as a job of site/mine.sh

A suite is a file of eval_configs/, which you may edit or add to; `--dry-run` prints the `opencompass` command. Writes
`scores.json` (one row a model and set) and `predictions/<model>-<suite>-<set>.json`. What was scored before with the
same weights, questions and configuration is kept; killed in the middle, the same command goes on. Exits with 2 when
any score is missing, telling the line of the log that says why.
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

from artifacts.errors import UserError, run_main
from artifacts.files import hold_lock, read_json, sha256, write_json
from artifacts.layout import REPOSITORY, environment
from artifacts.stage import report_metrics
from eval_configs.plan import read_sets
from eval_configs.smoke_data import MARK, write_smoke
from launch.scoring import opencompass
from launch.scoring.arguments import (
    CONFIGS,
    add_arguments,
    check_sets,
    read_models,
    run_of,
    sets_folder,
    suite_file,
    variables_of,
)
from launch.scoring.models import Model
from launch.scoring.results import Score, collect, cut_texts, prediction_file, print_table, score_set, short
from launch.slurm import scheduler
from launch.slurm.site import read_site


@dataclass
class Wanted:
    """A score to have: a model in a set, by the (model, dataset) pairs of the plan; `key` is all that decides it."""

    model: Model
    name: str
    pairs: list[dict[str, Any]]
    file: Path
    key: dict[str, str]
    score: Score | None = None


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
        first = next(pair for pair in pairs if pair["set"] == name)
        published, model = sets[first["entry"]].get("questions"), first["model"]
        found = sum(pair["n"] for pair in pairs if pair["set"] == name and pair["model"] == model)
        if published and found != published and not limited and not smoke:
            raise UserError(
                f"the set {name} has {found:,} questions, published are {published:,}: `myllm download {name}` anew"
            )


def decontamination(name: str, entry: dict[str, Any], reports: list[Path]) -> str:
    """What the check of the training corpora against a set found, from reports of `myllm decontaminate`."""
    removed, seen = 0, False
    for report in reports:
        for row in read_json(report)["sets"]:
            path = Path(row["evaluation"])
            if name in (*path.parts, path.stem) or entry.get("data", "no data") in row["evaluation"]:
                removed, seen = removed + row["removed"], True
    return f"checked, {removed:,} documents removed" if seen else "not checked"


def without_slurm(words: list[str]) -> list[str]:
    """The words of this command but `--slurm SITE`, which argparse takes cut short and with `=` too."""
    at = next(i for i, word in enumerate(words) if word.startswith("--sl"))
    return words[:at] + words[at + (1 if "=" in words[at] else 2) :]


def submit_job(arguments: argparse.Namespace, output: Path) -> None:
    """Submit this very command to a site's Slurm, as one job; with --dry-run, print what would be submitted.

    Raises:
        UserError: there is no such site, or Slurm refuses the job.
    """
    site = read_site(arguments.slurm)
    name = f"eval-{Path(arguments.suite).stem}"
    options = [f"--job-name={name}", f"--chdir={REPOSITORY}", f"--output={output}/jobs/{name}-%j.out", "--nodes=1"]
    options += ["--gpus-per-node=1"] if arguments.device.startswith("cuda") else []
    options += site.options_of("score")
    words = without_slurm(sys.argv[2:] if sys.argv[1] == "eval" else sys.argv[1:])
    # paths among the words are those of this folder; the job runs in the repository's
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


def wanted_scores(output: Path, models: list[Model], pairs: list[dict[str, Any]], suite: str) -> list[Wanted]:
    """Every (model, set), with the score of an earlier time where all that decides it is the same."""
    found = []
    code = short([sha256(file) for file in sorted(CONFIGS.glob("*.py"))])
    for model in models:
        mine = [pair for pair in pairs if pair["model"] == model.abbr]
        for name in dict.fromkeys(pair["set"] for pair in mine):
            asked = [pair for pair in mine if pair["set"] == name]
            config, data = (short([pair[part] for pair in asked]) for part in ("config", "data"))
            key = {"model": model.identity, "config": config, "data": data, "code": code}
            one = Wanted(model, name, asked, output / "predictions" / f"{model.name}-{suite}-{name}.json", key)
            known = read_json(one.file) if one.file.exists() else {}
            if known.get("key") == key:
                one.score = Score(**known["score"])
                print(f"{model.name} {name}: scored before with the same weights and questions, kept", flush=True)
            found.append(one)
    return found


def take_scores(
    work: Path, output: Path, log: Path, wanted: list[Wanted], entries: dict[str, Any], **more: Any
) -> None:
    """Collect what was asked into `wanted` and its files; raises UserError, at the end, for what is missing."""
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


def write_scores(output: Path, suite: str, wanted: list[Wanted]) -> None:
    """Put what was asked into scores.json in the place of older rows of it; what has no score now has no row."""
    file = output / "scores.json"
    asked = {(one.model.name, one.name) for one in wanted}
    known = read_json(file) if file.exists() else []
    known = [row for row in known if "config" in row]  # a row without one is of an older version's making
    kept = [row for row in known if row["config"] != suite or (row["model"], row["suite"]) not in asked]
    rows = [*kept, *(asdict(one.score) for one in wanted if one.score)]
    if rows or known:
        write_json(file, rows)


def work_folder(planning: Path, suite: str, plan: dict[str, Any]) -> Path:
    """The folder of one configuration and one set of questions: what lies in it may be gone on with."""
    parts = sorted(f"{pair['dataset']} {pair['config']} {pair['data']}" for pair in plan["pairs"])
    code = [sha256(file) for file in sorted(CONFIGS.glob("*.py"))]
    folder = planning / f"{suite}-{short([*parts, *code, plan['opencompass']])}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def score(
    arguments: argparse.Namespace, config: Path, models: list[Model], output: Path, home: Path | None
) -> list[Wanted]:
    """Plan, run what is not scored yet, collect; raises UserError when any score is missing at the end."""
    suite, entries = config.stem, read_sets(config)
    planning, data = output / "opencompass", sets_folder(arguments)
    if suite == "smoke_cpu" and arguments.data is None:
        data = planning / "smoke"
        write_smoke(data)
    smoke = (data / MARK).exists()
    variables = variables_of(arguments, models, home)
    taken = f"{planning} is in use by another evaluation: wait for it, or give another --output"
    with hold_lock(planning / "lock", taken):
        plan = make_plan(config, {**opencompass.whole_environment(planning, data), **variables}, planning)
        check_counts(plan["pairs"], entries, bool(arguments.limit), smoke)
        wanted = wanted_scores(output, models, plan["pairs"], suite)
        todo = [one for one in wanted if one.score is None]
        work = work_folder(planning, suite, plan)
        asked = [model for model in models if any(one.model == model for one in todo)]
        variables |= opencompass.settings(asked or models, {})
        command = opencompass.command(config, work)
        print(opencompass.shown(command, variables, data), flush=True)
        if todo and not arguments.dry_run:
            around = {**opencompass.whole_environment(work, data), **variables}
            try:
                log = opencompass.run(command, around, work, [pair for one in todo for pair in one.pairs])
                reports = arguments.decontamination or (
                    sorted(home.glob("corpus/**/*.contaminated.json")) if home else []
                )
                told = {"smoke": smoke, "reports": reports, "version": plan["opencompass"], "suite": suite}
                take_scores(work, output, log, wanted, entries, **told)
            finally:
                write_scores(output, suite, wanted)
        return wanted


def run(arguments: argparse.Namespace) -> int:
    # SIGTERM unwinds as Ctrl-C does, so that OpenCompass is ended and waited for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError("--limit must be at least 1")
    config = suite_file(arguments.suite)
    check_sets(arguments.sets, config)
    models = read_models(arguments, config.stem)
    home = run_of(models)
    output = arguments.output or (home / "eval" if home else None)
    if output is None:
        raise UserError("give --output FOLDER: the model lies in no run's models/, so there is no eval/ beside it")
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
    metrics = {f"{row.model}_{row.suite}": row.value for row in rows}
    report_metrics(**metrics, questions=sum(row.n for row in rows), seconds=round(time.monotonic() - started, 1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    run_main(main)
