"""Check post-training data row by row, and write the description that the tool needs.

Both tools get a `data/` folder of JSON lines with exactly the examples that the linter read, whatever format the files
have; a row that repeats another is left out. For LLaMA-Factory, the rows have `messages` and, for pairs, `chosen` and
`rejected`, or a `label`, and a `dataset_info.json` describes them; for PPO the answers are empty. For TRL, they have
`prompt` (messages) and `answer`, and a README.md names the splits, from which `datasets` loads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, write_json, write_jsonl, write_text
from launch.instructions.fault import Fault
from launch.instructions.lint import KIND_NAMES, MEND, Findings, Rendering, lint
from launch.instructions.read import Example, Repeats, form_of, read_row, rows
from launch.posttraining.job import TRL, Job

# The kind of data that a stage trains on; PPO and GRPO use only the questions.
KINDS = {"sft": "sft", "pt": "sft", "ppo": "sft", "grpo": "sft", "rm": "pairs", "dpo": "pairs", "kto": "kto"}
DEFAULT_CUTOFF = 2048  # LLaMA-Factory's default for cutoff_len


def longest_allowed(job: Job) -> tuple[str, int]:
    """Names of the keys that limit an example's length, and the limit in tokens for prompt and answer together."""
    if job.tool == TRL:
        names = {"max_prompt_length": 512, "max_completion_length": 256}  # with TRL's defaults
        return " + ".join(names), sum(int(job.settings.get(name) or default) for name, default in names.items())
    if job.stage == "ppo":
        total = int(job.settings.get("cutoff_len", DEFAULT_CUTOFF)) + int(job.settings.get("max_new_tokens", 1024))
        return "cutoff_len + max_new_tokens", total
    return "cutoff_len", int(job.settings.get("cutoff_len", DEFAULT_CUTOFF))


def check_data(job: Job) -> dict[str, Findings]:
    """Check every data file of the recipe; warn of rows that will be cut, and of held-out rows in the training data.

    Raises:
        UserError: a row is faulty (LLaMA-Factory would drop it or train on it), a file holds another kind of data, or
            the model's own chat template does not end an answer, so that a chat with it would never stop.
    """
    assert job.data is not None
    keys, limit = longest_allowed(job)
    positions = read_json(job.model / "config.json").get("max_position_embeddings", limit)
    if limit > positions:
        raise UserError(f"{keys} is {limit}, but {job.model} has max_position_embeddings {positions}: lower it")
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
                f"{path} holds {KIND_NAMES[checked.form.kind]}, but {job.recipe} needs {KIND_NAMES[wanted]}"
            )
        checked.refuse()
        if checked.repeats:
            print(f"warning: {path}: {checked.told_repeats()}")
        if checked.example:
            rendering.labels(checked.example)  # the tool trains with its own template; a server uses the model's
        if checked.too_long:
            print(f"warning: {path}: {len(checked.too_long)} answers are longer than {keys} {limit} and will be cut")
    for name in job.held_out():
        leaked = sum(len(found[name].keys.keys() & found[n].keys.keys()) for n in found if n not in job.held_out())
        if leaked:
            print(f"warning: {job.data / name}.json: {leaked} held-out rows are in the training data too")
    return found


def examples(path: Path) -> Iterator[tuple[int, Example]]:
    """Row numbers from 1, and the rows as examples, each once. Raises UserError for a faulty row."""
    form, seen = form_of(path), Repeats()
    for number, row in rows(path):
        try:
            example = read_row(row, form)
        except Fault as fault:
            raise UserError(f"{path}, row {number}: {fault}. {MEND}") from None
        if seen.of(number, example) is None:
            yield number, example


def lint_questions(path: Path, rendering: Rendering, cutoff: int) -> Findings:
    """Check the data of PPO. Raises UserError for a question that LLaMA-Factory would cut.

    It cuts the end (`infer_seqlen` in data/processor/processor_utils.py), where the assistant's turn begins: the model
    would be trained on continuing the question.
    """
    found = lint(path, rendering, cutoff, questions_only=True)
    if found.too_long:
        number, length = found.too_long[0]
        raise UserError(f"{path}, row {number}: the question has {length} tokens; its end, where the answer begins, "
                        f"would be cut. Raise cutoff_len, now {cutoff}")  # fmt: skip
    return found


def described(kind: str) -> dict[str, Any]:
    """The columns of `trainer_row` in LLaMA-Factory's `dataset_info.json`."""
    columns = {"messages": "messages"}
    if kind == "pairs":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    if kind == "kto":
        columns["kto_tag"] = "label"
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "system_tag": "system"}  # fmt: skip
    return {
        "formatting": "sharegpt",
        "tags": tags,
        "columns": columns,
        **({"ranking": True} if kind == "pairs" else {}),
    }


def trainer_row(example: Example, silent: bool = False) -> dict[str, Any]:
    """An example as LLaMA-Factory reads it; with `silent`, its answer is empty."""
    prompt = [{"role": role, "content": text} for role, text in example.prompt]
    answers = [{"role": "assistant", "content": "" if silent else text} for text in example.answers]
    if len(answers) == 2:
        return {"messages": prompt, "chosen": answers[0], "rejected": answers[1]}
    return {"messages": prompt + answers} | ({} if example.label is None else {"label": example.label})


def questions(path: Path) -> list[dict[str, Any]]:
    """A data file's rows for TRL and the reward functions: `prompt`, a list of messages, and `answer`, a text."""
    return [
        {"prompt": [{"role": role, "content": text} for role, text in example.prompt], "answer": example.answers[0]}
        for _, example in examples(path)
    ]


def write_data(job: Job) -> None:
    """Write the files in the work folder from which the tool reads the data."""
    assert job.data is not None
    if job.tool != TRL:
        silent = job.stage == "ppo"  # with answers, their tokens would count against cutoff_len and questions be cut
        info = {}
        for name in job.datasets():
            path = job.data / f"{name}.json"
            write_jsonl(job.work / "data" / f"{name}.jsonl", (trainer_row(e, silent) for _, e in examples(path)))
            info[name] = {"file_name": f"data/{name}.jsonl", **described(form_of(path).kind)}
        write_json(job.work / "dataset_info.json", info)
        return
    splits = ""
    for name in job.datasets():
        write_jsonl(job.work / "data" / f"{name}.jsonl", questions(job.data / f"{name}.json"))
        splits += f"      - split: {name}\n        path: {name}.jsonl\n"
    write_text(
        job.work / "data" / "README.md",
        f"---\nconfigs:\n  - config_name: default\n    data_files:\n{splits}---\n",
    )
