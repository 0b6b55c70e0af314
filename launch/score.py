r"""Score models with OpenCompass: which line comes next (four choices, chance 25 %), and a C-Eval smoke test.

    python -m launch.score --model base=runs/poetry-tiny/models/base --model dpo=runs/poetry-tiny/models/dpo \
        --questions next_line.jsonl --output runs/poetry-tiny/eval

Questions are JSON lines {"id", "context", "choices": [four of equal length], "answer": 0-3}, and for chat models
"instruction", the user's turn. One OpenCompass process scores all models. Writes `scores.json` and, for every model and
suite, `predictions/<model>-<suite>.json`. What was scored before with the same weights and questions is not run again.
OpenCompass says success when everything failed; here every expected result is looked for and counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_json, sha256, write_json, write_text
from artifacts.layout import REPOSITORY, environment
from artifacts.stage import report_metrics
from artifacts.statistics import wilson
from eval_configs.smoke_data import SUBJECTS, write_ceval_smoke
from launch.guard import Guarded

LETTERS = "ABCD"
CHANCE = 25.0
PLAIN = "plain verse"
BATCH = 64  # texts; 32 to 128 differ little for a few million parameters on two cores
NEXT_LINE, SMOKE = "next_line", "ceval_smoke"
PROTOCOLS = {
    NEXT_LINE: "0-shot, lowest summed loss of prompt and choice; as {way}",
    SMOKE: "stock ceval_ppl on the project's own questions, at most 5-shot (as many examples as fit)",
}


@dataclass(frozen=True)
class Model:
    """A model to score. `identity` is a hash of weights, tokenizer and chat template: it names the results."""

    name: str
    folder: Path
    identity: str
    positions: int

    @property
    def abbr(self) -> str:
        return f"{self.name}-{self.identity}"


@dataclass(frozen=True)
class Score:
    """One row of scores.json; value, low, high and chance are percentages 0-100, low and high a 95 % interval."""

    model: str
    suite: str
    metric: str
    value: float
    n: int
    low: float
    high: float
    chance: float
    protocol: str
    smoke: bool


def read_questions(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The questions, checked; raises UserError naming file and line."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run the stage that makes the questions first")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if limit is not None and len(rows) == limit:
            break
        try:
            row = json.loads(line)
            context, choices, answer = row["context"], row["choices"], row["answer"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} line {number} lacks context, choices or answer: mend or remove it") from None
        if not isinstance(context, str) or len(set(choices)) != 4 or answer not in range(4):
            raise UserError(f"{path} line {number} needs a context, four different choices and an answer of 0 to 3")
        if len({len(choice) for choice in choices}) != 1:
            raise UserError(f"{path} line {number}: the choices differ in length, so length would give the answer away")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no question: make it again")
    return rows


def read_model(name: str, folder: Path) -> Model:
    """Check that a folder can be scored, and hash what decides its answers."""
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise UserError(f"--model {name}: a model's name may hold letters, digits, '_' and '.' only")
    if not folder.is_dir():
        raise UserError(f"the model folder {folder} does not exist: run the stage that makes it first")
    config = read_json(folder / "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder} holds no *.safetensors weights: export the model again")
    files = [*weights, folder / "config.json", folder / "tokenizer.json", folder / "tokenizer_config.json"]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} does not exist: export the model again")
    files += [file for file in (folder / "chat_template.jinja",) if file.exists()]
    digest = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()
    return Model(name, folder.resolve(), digest[:12], int(config["max_position_embeddings"]))


def prefixes(model: Model, rows: list[dict[str, Any]], plain: bool) -> tuple[list[str], str]:
    """What stands before each choice, and how to name that: plain verse, or the chat template with the user's turn.

    The template is the model's own, rendered up to the place where the assistant's words begin.
    """
    if plain:
        return [row["context"] for row in rows], PLAIN
    lacking = next((row for row in rows if not row.get("instruction")), None)
    if lacking:
        raise UserError(
            f"question {lacking.get('id')!r} has no 'instruction' for the chat model {model.name}: add it to the "
            f"questions, or pass --plain {model.name} to score the model on plain verse"
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    if not tokenizer.chat_template:
        raise UserError(f"{model.folder} holds no chat_template.jinja: export the model again")
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}], add_generation_prompt=True, tokenize=False
        )
        for row in rows
    ]
    return texts, "a chat, the model's own template"


def write_model_questions(path: Path, rows: list[dict[str, Any]], before: list[str]) -> None:
    """The file that the config reads: {"id", "prefix", "A", "B", "C", "D", "answer"}, the shortest text first.

    OpenCompass fills its batches in the order of the file: sorted, hardly any of a batch is padding.
    """
    lines = (
        {"id": row.get("id"), "prefix": text, **dict(zip(LETTERS, row["choices"], strict=True)),
         "answer": LETTERS[row["answer"]]}
        for row, text in sorted(zip(rows, before, strict=True), key=lambda pair: len(pair[1] + pair[0]["choices"][0]))
    )  # fmt: skip
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def opencompass_config(work: Path, tasks: dict[Model, list[str]], device: str) -> str:
    """The run's OpenCompass config: the repository's dataset configs, and these models with their files."""
    pairs = []
    for model, suites in tasks.items():
        settings = {
            "abbr": model.abbr,
            "path": str(model.folder),
            # Always said: the fall-back of OpenCompass is float16.
            "model_kwargs": {"device_map": device, "torch_dtype": "float32"},
            "max_seq_len": model.positions,
            "batch_size": BATCH,
            "run_cfg": {"num_gpus": 0 if device == "cpu" else 1},
        }
        questions = str(work / "questions" / f"{model.name}.jsonl")
        datasets = []
        if NEXT_LINE in suites:
            datasets.append(f"dict(next_line_datasets[0], path={questions!r})")
        if SMOKE in suites:
            datasets.append("*ceval_smoke_datasets")
        pairs.append(
            f"    dict(models=[dict(type=ChoiceLikelihood, **{settings!r})],\n"
            f"         datasets=[{', '.join(datasets)}]),\n"
        )
    return (
        '"""Written by launch.score for one run: which models, which questions."""\n\n'
        "from mmengine.config import read_base\n"
        "from opencompass.partitioners import NaivePartitioner\n"
        "from opencompass.runners import LocalRunner\n"
        "from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask\n\n"
        "from eval_configs.models import ChoiceLikelihood\n\n"
        "with read_base():\n"
        "    from eval_configs.ceval_smoke import ceval_smoke_datasets\n"
        "    from eval_configs.next_line_ppl import next_line_datasets\n\n"
        f"model_dataset_combinations = [\n{''.join(pairs)}]\n"
        "models = [model for pair in model_dataset_combinations for model in pair['models']]\n"
        "datasets = [dataset for pair in model_dataset_combinations for dataset in pair['datasets']]\n"
        "# All datasets of a model in one task; with --debug all tasks run in one process.\n"
        "infer = dict(partitioner=dict(type=NaivePartitioner, n=1000),\n"
        "             runner=dict(type=LocalRunner, task=dict(type=OpenICLInferTask)))\n"
        "eval = dict(partitioner=dict(type=NaivePartitioner, n=1000),\n"
        "            runner=dict(type=LocalRunner, task=dict(type=OpenICLEvalTask)))\n"
    )


def opencompass_command(work: Path) -> list[str]:
    """In-process (`--debug`): a process for every model and suite would cost 8 to 15 s each."""
    program = str(environment("eval") / "bin" / "opencompass")
    return [program, str(work / "config.py"), "-w", str(work / "out"), "--debug"]


def opencompass_environment(work: Path) -> dict[str, str]:
    """Offline, and all that OpenCompass and its libraries write beside their results goes under `work`."""
    variables = dict(os.environ)
    # Without byte code every start compiles thousands of files again.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **variables,
        "COMPASS_DATA_CACHE": str(work / "data"),
        "HF_HOME": str(work / "cache"),
        "MPLCONFIGDIR": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # Threads that wait sleep: spinning ones cost twice the seconds when another program has a core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }


def texts_done(log: str, sizes: Iterable[int]) -> int:
    """How many of the run's texts are scored, from OpenCompass's log.

    Every suite shows four bars, one a letter, of ceil(n / batch) steps; finished ones count whole. `sizes` are the
    numbers of questions of the suites in the order of the run.
    """
    bars = [n for n in sizes for _ in LETTERS]
    begun = log.count("Calculating PPL for prompts labeled")
    if not begun:
        return 0
    done = sum(bars[: begun - 1])
    # Steps are shown in iterations; the bars of `datasets`, in examples, are not ours.
    steps = re.findall(r"(\d+)/\d+ \[[^\]]*(?:it/s|s/it)\]", log.rpartition("Calculating PPL for prompts labeled")[2])
    return done + (min(bars[begun - 1], int(steps[-1]) * BATCH) if steps and begun <= len(bars) else 0)


def run_opencompass(work: Path, sizes: list[int]) -> Path:
    """Run OpenCompass on `work/config.py`; returns its log. A non-zero exit is a UserError; a zero proves nothing."""
    log = work / "opencompass.log"
    command = opencompass_command(work)
    print(shlex.join(command), flush=True)
    total = len(LETTERS) * sum(sizes)
    shown, told = -1, 0.0
    with Guarded(command, env=opencompass_environment(work), cwd=work, log=log) as process:
        while (status := process.poll()) is None:
            time.sleep(0.2)
            if time.monotonic() - told > 1:
                told = time.monotonic()
                done = texts_done(log.read_text(encoding="utf-8", errors="replace"), sizes)
                if done > shown:
                    shown = done
                    print(f"progress {done}/{total} texts", flush=True)
    if status:
        raise UserError(f"OpenCompass ended with status {status}: {last_line(log)}; read {log}")
    print(f"progress {total}/{total} texts", flush=True)
    return log


def last_line(log: Path) -> str:
    """The newest line of a log that says something, at most 300 characters: an error's if there is one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"Error\b|failed with code", line)]
    return (errors or lines or ["(an empty log)"])[-1][-300:]


def collect(work: Path, model: Model, suite: str, expected: int, log: Path) -> tuple[int, list[dict[str, Any]]]:
    """Right answers and predictions of a model in a suite; raises UserError when any part is missing or short.

    Counted from the per-question predictions, and compared with the accuracy that OpenCompass wrote.
    """
    names = ["next_line"] if suite == NEXT_LINE else [f"ceval-{subject}" for subject in SUBJECTS]
    predictions: list[dict[str, Any]] = []
    ids: list[Any] = []
    if suite == NEXT_LINE:
        questions = (work / "questions" / f"{model.name}.jsonl").read_text(encoding="utf-8")
        ids = [json.loads(line)["id"] for line in questions.splitlines()]
    failed = f"OpenCompass ended with 0 and {model.name} has no score in {suite}"
    for name in names:
        result = next(iter(sorted((work / "out").glob(f"*/results/{model.abbr}/{name}.json"))), None)
        if result is None:
            raise UserError(f"{failed}, results/{model.abbr}/{name}.json is missing: {last_line(log)}; read {log}")
        accuracy = read_json(result).get("accuracy")
        if not isinstance(accuracy, (int, float)) or math.isnan(accuracy):
            raise UserError(f"{failed}, {result} holds no accuracy: {last_line(log)}; read {log}")
        file = result.parents[2] / "predictions" / model.abbr / result.name
        rows = list(read_json(file).values())
        right = sum(row["prediction"] == row["gold"] for row in rows)
        if not rows or abs(100 * right / len(rows) - accuracy) > 1e-6:
            raise UserError(f"{failed}: {result} says {accuracy}, {file} counts {right} of {len(rows)}; read {log}")
        for number, row in enumerate(rows):
            losses = {letter: row[f"label: {letter}"]["PPL"] for letter in LETTERS}
            if any(not math.isfinite(loss) for loss in losses.values()):
                raise UserError(f"{failed}: question {number} of {file} has a loss that is not a number; read {log}")
            question = ids[number] if number < len(ids) else f"{name} {number}"
            predictions.append({"id": question, "prediction": row["prediction"], "answer": row["gold"], "loss": losses})
    if len(predictions) != expected:
        raise UserError(f"{failed}: {len(predictions)} of {expected} questions were answered; read {log}")
    return sum(row["prediction"] == row["answer"] for row in predictions), predictions


def make_score(model: Model, suite: str, right: int, n: int, way: str) -> Score:
    low, high = wilson(right, n)
    return Score(
        model=model.name,
        suite=suite,
        metric="accuracy",
        value=round(100 * right / n, 2),
        n=n,
        low=round(low, 2),
        high=round(high, 2),
        chance=CHANCE,
        protocol=PROTOCOLS[suite].format(way=way),
        smoke=suite == SMOKE,
    )


def print_table(scores: list[Score]) -> None:
    print(f"{'model':8} {'suite':12} {'accuracy':>8} {'95 % interval':>15} {'n':>6} {'chance':>6}")
    for row in scores:
        interval = f"{row.low:.1f} - {row.high:.1f}"
        mark = "  smoke" if row.smoke else ""
        print(f"{row.model:8} {row.suite:12} {row.value:8.2f} {interval:>15} {row.n:6} {row.chance:6.1f}{mark}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.score",
        description="Score models with OpenCompass: next line (four choices, chance 25 %%) and a C-Eval smoke test.",
        epilog="example: python -m launch.score --model base=runs/poetry-tiny/models/base "
        "--model dpo=runs/poetry-tiny/models/dpo --questions next_line.jsonl --output runs/poetry-tiny/eval",
    )
    parser.add_argument("--model", action="append", required=True, metavar="NAME=DIR", help="repeat for more models")
    parser.add_argument("--questions", type=Path, required=True, help="next-line questions, JSON lines")
    parser.add_argument("--output", type=Path, required=True, help="folder for scores.json and OpenCompass's files")
    parser.add_argument(
        "--plain",
        action="append",
        metavar="NAME",
        help="a model to score on plain verse, not as a chat (default: base)",
    )
    parser.add_argument("--smoke-model", metavar="NAME", help="who takes the smoke test (default: the first model)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the command, score nothing")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    # SIGTERM unwinds as Ctrl-C does, so that OpenCompass is ended and waited for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError("--limit must be at least 1")
    named = [text.partition("=") for text in arguments.model]
    wrong = next((text for text in arguments.model if "=" not in text), None)
    if wrong:
        raise UserError(f"--model {wrong} must be NAME=DIR, for example base=runs/poetry-tiny/models/base")
    if len({name for name, _, _ in named}) != len(named):
        raise UserError("two models have one name: every --model NAME=DIR needs a name of its own")
    rows = read_questions(arguments.questions, arguments.limit)
    models = [read_model(name, Path(folder)) for name, _, folder in named]
    plain = arguments.plain if arguments.plain is not None else ["base"]
    smoke_model = arguments.smoke_model or models[0].name
    for given in {*(arguments.plain or []), smoke_model} - {model.name for model in models}:
        raise UserError(f"no --model is named {given!r}: there are {', '.join(model.name for model in models)}")

    output = arguments.output.resolve()
    work = output / "opencompass" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if arguments.dry_run:
        print(shlex.join(opencompass_command(work)))
        return 0
    environment("eval")
    output.mkdir(parents=True, exist_ok=True)
    smoke_size = write_ceval_smoke(work / "data")

    keys: dict[tuple[Model, str], dict[str, Any]] = {}
    ways: dict[Model, str] = {}
    for model in models:
        before, ways[model] = prefixes(model, rows, model.name in plain)
        write_model_questions(work / "questions" / f"{model.name}.jsonl", rows, before)
        questions = sha256(work / "questions" / f"{model.name}.jsonl")
        keys[model, NEXT_LINE] = {"model": model.identity, "questions": questions, "n": len(rows)}
        if model.name == smoke_model:
            keys[model, SMOKE] = {"model": model.identity, "questions": sha256(work / "data"), "n": smoke_size}
    # How a text is scored is part of a result's identity: a changed config must not meet an old result.
    configs = hashlib.sha256(
        "".join(sha256(file) for file in sorted((REPOSITORY / "eval_configs").glob("*.py"))).encode()
    ).hexdigest()

    scores: dict[tuple[Model, str], Score] = {}
    for (model, suite), key in keys.items():
        key["configs"] = configs
        file = output / "predictions" / f"{model.name}-{suite}.json"
        known = read_json(file) if file.exists() else {}
        if known.get("key") == key:
            scores[model, suite] = Score(**known["score"])
            print(f"{model.name} {suite}: scored before with the same weights and questions, kept", flush=True)
    todo = {model: [s for (m, s) in keys if m == model and (m, s) not in scores] for model in models}
    todo = {model: suites for model, suites in todo.items() if suites}
    started = time.monotonic()
    if todo:
        write_text(work / "config.py", opencompass_config(work, todo, arguments.device))
        sizes = [n for suites in todo.values() for s in suites for n in suite_sizes(s, len(rows), smoke_size)]
        log = run_opencompass(work, sizes)
        problems = []
        for model, suites in todo.items():
            for suite in suites:
                n = keys[model, suite]["n"]
                try:
                    right, predictions = collect(work, model, suite, n, log)
                except UserError as error:
                    problems.append(error)
                    continue
                score = make_score(model, suite, right, n, ways[model])
                scores[model, suite] = score
                write_json(
                    output / "predictions" / f"{model.name}-{suite}.json",
                    {"key": keys[model, suite], "score": asdict(score), "predictions": predictions},
                )
        if problems:
            raise problems[0]
    ordered = [scores[pair] for pair in keys]
    write_json(output / "scores.json", [asdict(score) for score in ordered])
    print_table(ordered)
    metrics = {f"{score.model}_{score.suite}": score.value for score in ordered}
    report_metrics(**metrics, questions=len(rows), opencompass_seconds=round(time.monotonic() - started, 1))
    return 0


def suite_sizes(suite: str, questions: int, smoke: int) -> list[int]:
    """Questions of each dataset of a suite."""
    return [questions] if suite == NEXT_LINE else [smoke // len(SUBJECTS)] * len(SUBJECTS)


if __name__ == "__main__":
    run_main(main)
