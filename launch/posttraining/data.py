"""The data of a post-training: checked row by row, and described in the way the tool wants.

LLaMA-Factory gets a `dataset_info.json` that points at the files, or, for PPO, at a copy without the answers; TRL gets
a `data/` folder of JSON lines with the columns `prompt` (messages) and `answer`, and a README.md that names its splits,
as `datasets` reads local folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, write_json, write_jsonl, write_text
from launch.instructions.lint import KIND_NAMES, MEND, Findings, Rendering, lint
from launch.instructions.read import Example, Fault, columns, form_of, read_row, rows, without_answer
from launch.posttraining.job import TRL, Job

# The kind of data that a stage learns from; PPO and GRPO take the questions and leave the answers.
KINDS = {"sft": "sft", "pt": "sft", "ppo": "sft", "grpo": "sft", "rm": "pairs", "dpo": "pairs", "kto": "kto"}
DEFAULT_CUTOFF = 2048  # LLaMA-Factory's default of cutoff_len


def longest_allowed(job: Job) -> tuple[str, int]:
    """The keys that limit an example's length, by name, and the limit in tokens, prompt and answer together."""
    if job.tool == TRL:
        names = {"max_prompt_length": 512, "max_completion_length": 256}  # with TRL's defaults
        return " + ".join(names), sum(int(job.settings.get(name) or default) for name, default in names.items())
    if job.stage == "ppo":
        total = int(job.settings.get("cutoff_len", DEFAULT_CUTOFF)) + int(job.settings.get("max_new_tokens", 1024))
        return "cutoff_len + max_new_tokens", total
    return "cutoff_len", int(job.settings.get("cutoff_len", DEFAULT_CUTOFF))


def check_data(job: Job) -> dict[str, Findings]:
    """Check every data file of the recipe, in whatever form it is; warns of rows that will be cut or were trained on.

    Raises:
        UserError: naming file, row and fault of the first bad row; LLaMA-Factory would drop it, or train on it.
    """
    assert job.data is not None
    keys, limit = longest_allowed(job)
    positions = read_json(job.model / "config.json").get("max_position_embeddings", limit)
    if limit > positions:
        raise UserError(f"{keys} is {limit}, but {job.model} was made for {positions} positions: lower it")
    rendering = Rendering(job.model)
    wanted = KINDS[job.stage]
    found = {}
    for name in job.datasets():
        path = job.data / f"{name}.json"
        if job.stage == "ppo":
            found[name] = checked = lint_questions(path, rendering, int(job.settings.get("cutoff_len", DEFAULT_CUTOFF)))
        else:
            found[name] = checked = lint(path, rendering, limit)
        if checked.form.kind != wanted:
            raise UserError(
                f"{path} holds {KIND_NAMES[checked.form.kind]}, and {job.recipe} wants {KIND_NAMES[wanted]}"
            )
        checked.refuse()
        if checked.too_long:
            print(f"warning: {path}: {len(checked.too_long)} answers end beyond {keys} {limit} and will be cut")
    for name in job.held_out():
        leaked = sum(len(found[name].keys.keys() & found[n].keys.keys()) for n in found if n not in job.held_out())
        if leaked:
            print(f"warning: {job.data / name}.json: {leaked} rows are in the training data too")
    return found


def examples(path: Path) -> Iterator[tuple[int, Example]]:
    """Row numbers from 1, and what the rows say; UserError naming one that says nothing."""
    form = form_of(path)
    for number, row in rows(path):
        try:
            example = read_row(row, form)
        except Fault as fault:
            raise UserError(f"{path}, row {number}: {fault}. {MEND}") from None
        yield number, example


def lint_questions(path: Path, rendering: Rendering, cutoff: int) -> Findings:
    """Check the data of PPO; UserError naming a question that LLaMA-Factory would cut.

    It cuts at the end (`infer_seqlen` in data/processor/processor_utils.py), which is where the assistant is asked to
    answer: the model would be judged, and trained, on going on with the question.
    """
    found = lint(path, rendering, cutoff, questions_only=True)
    if found.too_long:
        number, length = found.too_long[0]
        raise UserError(f"{path}, row {number}: the question has {length} tokens; its end, where the answer begins, "
                        f"would be cut. Raise cutoff_len, now {cutoff}")  # fmt: skip
    return found


def dataset_info(data: Path, names: list[str]) -> dict[str, Any]:
    """LLaMA-Factory's description of the data files: their names, form and columns."""
    files = {name: data / f"{name}.json" for name in names}
    return {name: {"file_name": str(file), **columns(file)} for name, file in files.items()}


def questions(path: Path) -> list[dict[str, Any]]:
    """What TRL and the reward functions get of a data file: `prompt`, a list of messages, and `answer`, a text."""
    return [
        {"prompt": [{"role": role, "content": text} for role, text in example.prompt], "answer": example.answers[0]}
        for _, example in examples(path)
    ]


def write_data(job: Job) -> None:
    """What the tool needs in the work folder to find and read the data."""
    assert job.data is not None
    if job.tool != TRL:
        folder = job.data
        if job.stage == "ppo":  # the answers' tokens would count against cutoff_len, and cut the questions
            folder = job.work / "data"
            for name in job.datasets():
                path = job.data / f"{name}.json"
                form = form_of(path)
                write_json(folder / f"{name}.json", [without_answer(row, form) for _, row in rows(path)])
        write_json(job.work / "dataset_info.json", dataset_info(folder, job.datasets()))
        return
    splits = ""
    for name in job.datasets():
        write_jsonl(job.work / "data" / f"{name}.jsonl", questions(job.data / f"{name}.json"))
        splits += f"      - split: {name}\n        path: {name}.jsonl\n"
    write_text(
        job.work / "data" / "README.md",
        f"---\nconfigs:\n  - config_name: default\n    data_files:\n{splits}---\n",
    )
