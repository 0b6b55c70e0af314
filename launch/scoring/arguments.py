"""Arguments of `myllm eval`: models, suite, prompt format, and the folders of data sets and results.

`launch.scoring.evaluate` imports this module; it is not a command.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.layout import REPOSITORY, cache_folder
from eval_configs.plan import read_sets
from launch.scoring import opencompass
from launch.scoring.models import Model, batch_of, read_model, read_server, split_name

CONFIGS = REPOSITORY / "eval_configs"
SUITES = ("base_ppl", "base_gen", "chat_gen", "api_gen", "smoke_cpu", "questions")
WAYS = {"base_ppl": "plain", "base_gen": "plain", "chat_gen": "chat", "api_gen": "api"}


class Sets(argparse.Action):
    """`--sets a b` and `--sets a,b` both give "a,b"."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, ",".join(part for value in values for part in value.split(",") if part))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="+", metavar="MODEL", help="a model folder or NAME=FOLDER; api_gen: an address")
    parser.add_argument("--suite", required=True, help=f"{', '.join(SUITES)}, or a file of your own")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions of every set (or subject)")
    parser.add_argument("--subjects", type=int, metavar="N", help="the first N subjects of C-Eval and CMMLU: to try it")
    parser.add_argument(
        "--sets", nargs="+", action=Sets, default="", metavar="SET", help="only these sets of the suite: ceval c3"
    )
    parser.add_argument("--output", type=Path, help="default: eval/ of the run that the model lies in")
    parser.add_argument(
        "--data", type=Path, help="the sets; default $COMPASS_DATA_CACHE, else where `download` puts them"
    )
    parser.add_argument(
        "--questions",
        type=Path,
        help="a file of multiple-choice questions; default: the .jsonl file in tasks/ of the run",
    )
    parser.add_argument("--plain", action="append", default=[], metavar="NAME", help="ask this model in plain text")
    parser.add_argument("--chat", action="append", default=[], metavar="NAME", help="ask it through its chat template")
    parser.add_argument("--tokenizer", type=Path, help="folder of the served model (api_gen)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="texts at a time; default: logits of at most 1 GB, at most 64")
    parser.add_argument("--decontamination", type=Path, action="append", help="reports of `myllm decontaminate`")
    parser.add_argument("--slurm", metavar="SITE", help="submit it as a job of site/SITE.sh instead of running here")
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


def check_sets(names: str, config: Path) -> None:
    """Raise UserError for a set of `--sets` that the suite does not have."""
    known = read_sets(config)
    for name in filter(None, names.split(",")):
        if name not in known:
            raise UserError(f"--sets: there is no set {name!r}{nearest(name, known)}: there are {', '.join(known)}")


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


def sets_folder(arguments: argparse.Namespace) -> Path:
    """Where the sets lie: as told, $COMPASS_DATA_CACHE, or where `myllm download` puts them."""
    return Path(arguments.data or os.environ.get("COMPASS_DATA_CACHE") or cache_folder() / "opencompass").resolve()


def questions_in(home: Path | None) -> Path | None:
    """The questions of a run: the one .jsonl file in its tasks/; raises UserError when there are several."""
    files = sorted((home / "tasks").glob("*.jsonl")) if home else []
    if len(files) > 1:
        raise UserError(f"{home}/tasks holds {', '.join(f.name for f in files)}: choose one with --questions")
    return files[0] if files else None


def variables_of(arguments: argparse.Namespace, models: list[Model], home: Path | None) -> dict[str, str]:
    """The variables of `eval_configs/settings.py`; `home` is the run's folder, where there is one."""
    questions = arguments.questions or questions_in(home)
    if questions is None and Path(arguments.suite).stem == "questions":
        raise UserError(f"{home or 'the model'} has no questions: give them with --questions FILE")
    return opencompass.settings(
        models,
        {
            "MYLLM_EVAL_LIMIT": str(arguments.limit or 0),
            "MYLLM_EVAL_SUBJECTS": str(arguments.subjects or 0),
            "MYLLM_EVAL_SETS": arguments.sets.replace(",", ";"),
            "MYLLM_EVAL_QUESTIONS": str(questions.resolve()) if questions else "",
            "MYLLM_EVAL_DEVICE": arguments.device,
            "MYLLM_EVAL_DTYPE": arguments.dtype,
            "MYLLM_EVAL_BATCH": str(arguments.batch_size or batch_of(models)),
            "MYLLM_EVAL_TOKENIZER": str(arguments.tokenizer.resolve()) if arguments.tokenizer else "",
        },
    )
