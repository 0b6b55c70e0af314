"""Check instruction, preference or KTO data before a model is loaded: `myllm lint-data FILE …`

    myllm lint-data alpaca_zh.json --tokenizer runs/mine/models/base --cutoff-len 1024
    myllm lint-data train.json --held-out valid.json --evaluation ceval.jsonl

Trainers silently drop bad rows or train on them. This command prints every fault with file, row and reason, and exits
with 2 if there is one. A row that repeats another is only a warning: post-training leaves it out. With --tokenizer it
also shows one example rendered by the tokenizer's own chat template, as the model will see it, and counts lengths in
tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json
from launch.instructions.fault import Fault
from launch.instructions.read import Example, Form, Repeats, data_files, form_of, not_utf8, read_row, rows

NGRAM = 13  # a row leaks if it shares this many characters with an evaluation item, as in decontamination
SHOWN = 20  # faults printed per file
END_OF_TURN = "<|im_end|>"
MEND = "Correct or remove the row, or run `myllm split-data FILE --output-folder FOLDER --drop-faulty`"
KIND_NAMES = {"sft": "instructions", "pairs": "preference pairs", "kto": "labelled answers"}


@dataclass
class Findings:
    """The results for one file."""

    path: Path
    form: Form
    rows: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)  # (row from 1, what is wrong)
    repeats: list[tuple[int, int]] = field(default_factory=list)  # (row, the earlier row that it repeats)
    too_long: list[tuple[int, int]] = field(default_factory=list)  # (row, tokens) of rows that the trainer will cut
    keys: dict[str, int] = field(default_factory=dict)  # hash of an example -> its row
    tokens: int = 0
    longest: int = 0
    example: Example | None = None

    @property
    def examples(self) -> int:
        """Rows without those that repeat others: what is trained on if there is no fault."""
        return self.rows - len(self.repeats)

    def refuse(self) -> None:
        """Raise UserError if there is a bad row; the message names the first one."""
        if self.faults:
            number, fault = self.faults[0]
            others = len(self.faults) - 1
            more = f" (and {others:,} more bad row{'s' * (others > 1)})" if others else ""
            raise UserError(f"{self.path}, row {number}: {fault}{more}. {MEND}")

    def told_repeats(self) -> str:
        """A warning of the rows that repeat others; "" if there are none."""
        if not self.repeats:
            return ""
        number, first = self.repeats[0]
        count = len(self.repeats)
        what = "1 row repeats an earlier one" if count == 1 else f"{count:,} rows repeat earlier ones"
        return f"{what} and will be left out (first: row {number} repeats row {first})"


def bare(text: str) -> str:
    """The letters, digits and Chinese characters of a text; n-grams are made of them."""
    return "".join(character for character in text if character.isalnum())


def ngrams(text: str) -> set[str]:
    text = bare(text)
    return {text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)}


def evaluation_ngrams(paths: Iterable[Path]) -> set[str]:
    """N-grams of every text in the evaluation files: JSON lists, JSON lines, or CSV."""
    found: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, str):
            found.update(ngrams(value))
        elif isinstance(value, dict):
            collect(list(value.values()))
        elif isinstance(value, list):
            for item in value:
                collect(item)

    for path in paths:
        if path.suffix == ".csv":
            import csv

            try:
                with path.open(encoding="utf-8-sig", newline="") as stream:
                    collect([cell for row in csv.reader(stream) for cell in row])
            except FileNotFoundError:
                raise UserError(f"{path} does not exist") from None
            except UnicodeDecodeError:
                raise UserError(not_utf8(path)) from None
        else:
            for number, row in rows(path):
                if isinstance(row, Fault):
                    raise UserError(f"{path}, row {number}: {row}. Correct the row, or a leak of it would go unseen")
                collect(row)
    return found


class Rendering:
    """Chat template and tokenizer of a folder, without transformers, which takes seconds to import."""

    def __init__(self, folder: Path) -> None:
        import jinja2.sandbox
        from tokenizers import Tokenizer

        if not (folder / "tokenizer.json").exists():
            raise UserError(f"{folder} has no tokenizer.json: give the folder of a model or a tokenizer")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.end = self.tokenizer.token_to_id(END_OF_TURN)
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.exists() else None
        settings = read_json(folder / "tokenizer_config.json")
        template = template or settings.get("chat_template")
        if not template:
            raise UserError(f"{folder} has no chat template: add chat_template.jinja")
        # the settings that transformers uses (utils/chat_template_utils.py)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.template = environment.from_string(template)
        self.names = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token")}

    def render(self, messages: Iterable[tuple[str, str]], ask: bool) -> str:
        """Render messages as text; with `ask`, add the start of an assistant's turn at the end."""
        turns = [{"role": role, "content": text} for role, text in messages]
        return self.template.render(messages=turns, add_generation_prompt=ask, **self.names)

    def text(self, example: Example, answer: str) -> str:
        return self.render((*example.prompt, ("assistant", answer)), ask=False)

    def lengths(self, texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def labels(self, example: Example) -> str:
        """The part of the rendered example that the loss is computed on.

        Raises:
            UserError: the template does not end the answer, or renders the question differently once it is answered.
        """
        whole, question = self.text(example, example.answers[0]), self.render(example.prompt, ask=True)
        if not whole.startswith(question):
            raise UserError("the chat template renders a question differently once it is answered: labels would shift")
        learnt = whole[len(question) :]
        if self.end is None or self.end not in self.tokenizer.encode(learnt, add_special_tokens=False).ids:
            raise UserError(f"the chat template does not end an answer with {END_OF_TURN}: the model would never stop")
        return learnt


def lint(
    path: Path,
    rendering: Rendering | None = None,
    cutoff: int | None = None,
    evaluation: set[str] | None = None,
    held_out: dict[str, int] | None = None,
    questions_only: bool = False,
) -> Findings:
    """Check every row of a file.

    Args:
        cutoff: longest allowed example in tokens, after the chat template; needs `rendering`.
        evaluation: n-grams that no row may contain.
        held_out: keys of the validation rows, which no row may repeat.
        questions_only: count tokens with empty answers.

    Raises:
        UserError: the file cannot be read at all.
    """
    found = Findings(path, form_of(path))
    seen = Repeats()
    found.keys = seen.first
    waiting: list[tuple[int, Example]] = []

    def count() -> None:
        if rendering is None or not waiting:
            return
        for place in range(len(waiting[0][1].answers)):
            texts = [
                rendering.text(example, "" if questions_only else example.answers[place]) for _, example in waiting
            ]
            for (number, _), length in zip(waiting, rendering.lengths(texts), strict=True):
                found.tokens += length
                found.longest = max(found.longest, length)
                if cutoff and length > cutoff:
                    found.too_long.append((number, length))
        waiting.clear()

    for number, row in rows(path):
        found.rows += 1
        try:
            example = read_row(row, found.form)
            if (first := seen.of(number, example)) is not None:
                found.repeats.append((number, first))
                continue
            if held_out and example.key in held_out:
                raise Fault(f"also in the held-out file, row {held_out[example.key]}")
            if evaluation:
                text_of_row = " ".join([text for _, text in example.prompt] + list(example.answers))
                if shared := next(iter(sorted(ngrams(text_of_row) & evaluation)), None):
                    raise Fault(f"shares {shared!r} with an evaluation item")
        except Fault as fault:
            found.faults.append((number, str(fault)))
            continue
        found.example = found.example or example
        waiting.append((number, example))
        if len(waiting) == 1000:
            count()
    count()
    found.faults.sort()
    return found


def report(found: Findings, rendering: Rendering | None) -> str:
    """A file's findings as text."""
    lines = [f"{found.path}: {found.rows:,} rows, {found.form.form} {KIND_NAMES[found.form.kind]}"]
    if rendering and found.example:
        lines.append(f"  {found.tokens:,} tokens after the chat template, longest row {found.longest:,}")
        lines.append(f"  first example: {rendering.text(found.example, found.example.answers[0])!r}")
        lines.append(f"  its loss is computed on: {rendering.labels(found.example)!r}")
    if found.repeats:
        lines.append(f"  warning: {found.told_repeats()}")
    lines += [f"  row {number}: {fault}" for number, fault in found.faults[:SHOWN]]
    if len(found.faults) > SHOWN:
        lines.append(f"  and {len(found.faults) - SHOWN:,} more")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="data file: a JSON list, JSON lines, Parquet, or a folder of such files",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with tokenizer and chat template; counts tokens and shows an example"
    )
    parser.add_argument("--cutoff-len", type=int, help="longest allowed example in tokens; needs --tokenizer")
    parser.add_argument("--held-out", type=Path, help="validation file; none of its rows may be in the data files")
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        help="evaluation set whose items must not be in the data; repeatable",
    )
    parser.add_argument("--json", type=Path, help="also write the findings to this file")


def run(given: argparse.Namespace) -> None:
    """Check all files and print the findings. Raises UserError afterwards if any file has a fault."""
    if given.cutoff_len and not given.tokenizer:
        raise UserError("--cutoff-len counts tokens: give --tokenizer FOLDER too")
    rendering = Rendering(given.tokenizer) if given.tokenizer else None
    evaluation = evaluation_ngrams(given.evaluation)
    held_out = None
    if given.held_out:
        held = lint(given.held_out)
        held.refuse()  # a faulty row has no key, and would go unseen in the training data
        held_out = held.keys
    everything = []
    for path in data_files(given.files):
        found = lint(path, rendering, given.cutoff_len, evaluation, held_out)
        found.faults += [
            (number, f"longer than cutoff_len {given.cutoff_len} after the chat template: {length} tokens")
            for number, length in found.too_long
        ]
        found.faults.sort()
        print(report(found, rendering))
        everything.append(found)
    if given.json:
        from artifacts.files import write_json

        write_json(given.json, [
            {"file": str(f.path), "form": f.form.form, "kind": f.form.kind, "rows": f.rows, "tokens": f.tokens,
             "repeats": [{"row": number, "repeats": first} for number, first in f.repeats],
             "faults": [{"row": number, "fault": fault} for number, fault in f.faults]} for f in everything
        ])  # fmt: skip
    for found in everything:
        found.refuse()
