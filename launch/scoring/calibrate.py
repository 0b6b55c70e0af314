"""Score the same questions with a second harness (lm-evaluation-harness): do the two agree?

    make env-lmeval
    myllm calibrate runs/poetry-tiny/models/base --suite smoke_cpu

Run after `myllm eval` of the same model and suite. The texts are those that OpenCompass scored, taken from its own
predictions; the second harness, `lm_eval` in an environment of its own, tokenizes and scores them anew. Only sets with
the same protocol in both are compared: files of questions, scored by summed loss, and C-Eval and CMMLU, where the
choices are single letters. Exits with 2 when the second accuracy lies outside the first one's 95 % interval. Writes
`calibration.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import read_json, write_json, write_jsonl, write_text
from artifacts.guard import Guarded
from artifacts.layout import environment
from artifacts.statistics import wilson
from launch.scoring.models import batch_of, read_model, split_name
from launch.scoring.opencompass import last_line

LETTER_SETS = ("ceval", "cmmlu")
# Of lm-evaluation-harness's task files: `acc` takes the choice with the largest summed log-likelihood.
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder or NAME=FOLDER, scored by `myllm eval` before")
    parser.add_argument("--suite", required=True, help="the suite it was scored by")
    parser.add_argument("--output", type=Path, help="default: eval/ of the run that the model lies in")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the command, score nothing")


def questions_of(file: Path, output: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows for the second harness, predictions of the first), in one order, from a predictions file of `myllm eval`.

    A row's context is what its texts have in common, its choices are the rest: what is common decides nothing.
    """
    content = read_json(file)
    texts: list[dict[str, str]] = []
    for name in content["files"]:
        for row in read_json(output / name).values():
            texts.append({k.removeprefix("label: "): v["prompt"] for k, v in row.items() if k.startswith("label: ")})
    predictions = content["predictions"]
    if len(texts) != len(predictions):
        raise UserError(f"{file} and OpenCompass's files beside it differ: run `myllm eval` again")
    rows = []
    for number, (labelled, prediction) in enumerate(zip(texts, predictions, strict=True)):
        common = os.path.commonprefix(list(labelled.values()))
        labels = list(labelled)
        rows.append(
            {
                "number": number,
                "context": common,
                "choices": [text[len(common) :] for text in labelled.values()],
                "answer": labels.index(prediction["answer"]),
                "labels": labels,
            }
        )
    return rows, predictions


def scored_files(output: Path, model: str, identity: str, suite: str) -> dict[str, Path]:
    """{set: predictions file} of what can be compared; raises UserError when there is nothing, or of other weights."""
    found = {}
    for file in sorted((output / "predictions").glob(f"{model}-{suite}-*.json")):
        content = read_json(file)
        scored = content["score"]
        same = scored["suite"] in LETTER_SETS or "summed loss" in scored["protocol"]
        if scored["model"] == model and scored["protocol"].startswith("ppl") and same:
            if content["key"]["model"] != identity:
                raise UserError(f"{file} is of other weights: run `myllm eval` of this model again")
            found[str(scored["suite"])] = file
    if not found:
        raise UserError(
            f"{output} holds no scores of {model} by {suite} that lm_eval can repeat (a file of questions, "
            f"{' or '.join(LETTER_SETS)}, by ppl): run `myllm eval` first"
        )
    return found


def command(folder: str, tasks: Path, names: list[str], batch: int, device: str) -> list[str]:
    program = str(environment("lmeval") / "bin" / "lm_eval")
    return [
        program, "run", "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32", "--device", device,
        "--tasks", ",".join(names), "--include_path", str(tasks), "--batch_size", str(batch),
        "--output_path", str(tasks / "out"), "--log_samples",
    ]  # fmt: skip


def second_answers(tasks: Path, name: str, rows: list[dict[str, Any]]) -> list[str]:
    """The label that lm-evaluation-harness chose for each question; raises UserError when any is missing."""
    files = sorted((tasks / "out").glob(f"**/samples_{name}_*.jsonl"))
    if not files:
        raise UserError(f"lm_eval wrote no samples of {name}: read {tasks / 'lm_eval.log'}")
    chosen: dict[int, str] = {}
    for line in files[-1].read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        logs = [float(pair[0]) for pair in sample["filtered_resps"]]
        chosen[int(sample["doc"]["number"])] = sample["doc"]["labels"][logs.index(max(logs))]
    if len(chosen) != len(rows):
        raise UserError(f"lm_eval answered {len(chosen)} of {len(rows)} questions of {name}: {tasks / 'lm_eval.log'}")
    return [chosen[row["number"]] for row in rows]


def run(arguments: argparse.Namespace) -> int:
    name, place = split_name(arguments.model)
    model = read_model(name, Path(place), "plain")
    home = Path(model.place).parent
    if arguments.output is None and home.name != "models":
        raise UserError("give --output FOLDER, that of `myllm eval`")
    output = (arguments.output or home.parent / "eval").resolve()
    suite = Path(arguments.suite).stem
    files = scored_files(output, name, model.identity, suite)
    tasks = output / "lm_eval" / f"{name}-{suite}"
    asked = {f"myllm_{part}": questions_of(file, output) for part, file in files.items()}
    for task, (rows, _) in asked.items():
        write_jsonl(tasks / f"{task}.jsonl", rows)
        write_text(tasks / f"{task}.yaml", TASK.format(name=task, file=json.dumps(str(tasks / f"{task}.jsonl"))))
    words = command(model.place, tasks, list(asked), batch_of([model]), arguments.device)
    print(shlex.join(words), flush=True)
    if arguments.dry_run:
        return 0
    around = {**os.environ, "HF_HOME": str(tasks / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
              "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}  # fmt: skip
    log = tasks / "lm_eval.log"
    log.unlink(missing_ok=True)
    with Guarded(words, env=around, cwd=tasks, log=log) as process:
        status = process.wait()
    if status:
        raise UserError(f"lm_eval ended with status {status}: {last_line(log)}; read {log}")
    report, apart = [], []
    print(
        f"{'set':10} {'n':>6} {'OpenCompass':>11} {'95 % interval':>15} {'lm_eval':>8} {'difference':>10} same answer"
    )
    for task, (rows, predictions) in asked.items():
        answers = second_answers(tasks, task, rows)
        n = len(rows)
        first = 100 * sum(row["right"] for row in predictions) / n
        second = 100 * sum(a == row["answer"] for a, row in zip(answers, predictions, strict=True)) / n
        low, high = wilson(sum(row["right"] for row in predictions), n)
        same = sum(a == row["prediction"] for a, row in zip(answers, predictions, strict=True))
        part = task.removeprefix("myllm_")
        report.append({"set": part, "n": n, "opencompass": round(first, 2), "low": low, "high": high,
                       "lm_eval": round(second, 2), "difference": round(second - first, 2), "same": same})  # fmt: skip
        interval = f"{low:.1f} - {high:.1f}"
        print(f"{part:10} {n:6} {first:11.2f} {interval:>15} {second:8.2f} {second - first:+10.2f} {same:5} of {n}")
        if not low <= second <= high:
            apart.append(part)
    write_json(output / "calibration.json", {"model": name, "identity": model.identity, "suite": suite, "sets": report})
    if apart:
        raise UserError(f"the two harnesses disagree on {', '.join(apart)}: see {output / 'calibration.json'}")
    return 0


if __name__ == "__main__":
    main(__name__)
