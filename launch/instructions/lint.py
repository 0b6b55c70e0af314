"""Check instruction, preference or KTO data before a model is loaded: `myllm lint-data FILE …`

    myllm lint-data alpaca_zh.json --tokenizer runs/mine/models/base --cutoff-len 1024
    myllm lint-data train.json --held-out valid.json --evaluation ceval.jsonl

Trainers drop bad rows or train on them, and exit 0. Every fault is named with file, row and reason; the command exits 2
when there is one. With --tokenizer one example is shown as the model will see it, rendered by the tokenizer's own chat
template, and lengths are counted after it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json
from launch.instructions.read import Example, Fault, Form, form_of, read_row, rows

NGRAM = 13  # characters that an evaluation item and a row must share to count as a leak, as in decontamination
SHOWN = 20  # faults printed of each file
END_OF_TURN = "<|im_end|>"
MEND = "mend or remove it, or leave such rows out with `myllm split-data --drop-faulty`"
KIND_NAMES = {"sft": "instructions", "pairs": "preference pairs", "kto": "labelled answers"}


@dataclass
class Findings:
    """What was found in a file."""

    path: Path
    form: Form
    rows: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)  # (row from 1, what is wrong)
    too_long: list[tuple[int, int]] = field(default_factory=list)  # (row, tokens) beyond the cutoff: they will be cut
    keys: dict[str, int] = field(default_factory=dict)  # hash of an example -> its row
    tokens: int = 0
    longest: int = 0
    example: Example | None = None

    def refuse(self) -> None:
        """Raise UserError, naming the first bad row, when there is one."""
        if self.faults:
            number, fault = self.faults[0]
            more = f" (and {len(self.faults) - 1:,} more bad rows)" if len(self.faults) > 1 else ""
            raise UserError(f"{self.path}: row {number} {fault}{more}: {MEND}")


def bare(text: str) -> str:
    """Letters, figures and Chinese characters only: what n-grams are made of."""
    return "".join(character for character in text if character.isalnum())


def ngrams(text: str) -> set[str]:
    text = bare(text)
    return {text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)}


def evaluation_ngrams(paths: Iterable[Path]) -> set[str]:
    """N-grams of every text in evaluation files: JSON lists, JSON lines, or CSV."""
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

            with path.open(encoding="utf-8-sig", newline="") as stream:
                collect([cell for row in csv.reader(stream) for cell in row])
        else:
            collect([row for _, row in rows(path)])
    return found


class Rendering:
    """A tokenizer folder's own chat template and counts, without transformers, which takes seconds to import."""

    def __init__(self, folder: Path) -> None:
        import jinja2.sandbox
        from tokenizers import Tokenizer

        if not (folder / "tokenizer.json").exists():
            raise UserError(f"{folder} has no tokenizer.json: --tokenizer wants a model's or a tokenizer's folder")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.end = self.tokenizer.token_to_id(END_OF_TURN)
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.exists() else None
        settings = read_json(folder / "tokenizer_config.json")
        template = template or settings.get("chat_template")
        if not template:
            raise UserError(f"{folder} has no chat template: chats cannot be rendered with it")
        # the settings with which transformers renders (utils/chat_template_utils.py)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.template = environment.from_string(template)
        self.names = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token")}

    def render(self, messages: Iterable[tuple[str, str]], ask: bool) -> str:
        """Messages as text; with `ask`, up to where the assistant begins to answer."""
        turns = [{"role": role, "content": text} for role, text in messages]
        return self.template.render(messages=turns, add_generation_prompt=ask, **self.names)

    def text(self, example: Example, answer: str) -> str:
        return self.render((*example.prompt, ("assistant", answer)), ask=False)

    def lengths(self, texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def labels(self, example: Example) -> str:
        """The part of the rendered example that the loss counts; UserError when it does not end the turn."""
        whole, asked = self.text(example, example.answers[0]), self.render(example.prompt, ask=True)
        if not whole.startswith(asked):
            raise UserError("the chat template renders a question differently once it is answered: labels would shift")
        learnt = whole[len(asked) :]
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
        cutoff: longest allowed example in tokens, after the template; needs `rendering`.
        evaluation: n-grams that no row may contain.
        held_out: keys of the validation rows, which no row may repeat.
        questions_only: count tokens as if nothing were answered.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    found = Findings(path, form_of(path))
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
            first = found.keys.setdefault(example.key, number)
            if first != number:
                raise Fault(f"repeats row {first}")
            if held_out and example.key in held_out:
                raise Fault(f"is also held out, row {held_out[example.key]}")
            if evaluation:
                said = " ".join([text for _, text in example.prompt] + list(example.answers))
                if shared := next(iter(sorted(ngrams(said) & evaluation)), None):
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
    """What a person reads of a file's findings."""
    lines = [f"{found.path}: {found.rows:,} rows, {found.form.form} {KIND_NAMES[found.form.kind]}"]
    if rendering and found.example:
        lines.append(f"  {found.tokens:,} tokens after the template, longest {found.longest:,}")
        lines.append(f"  first example: {rendering.text(found.example, found.example.answers[0])!r}")
        lines.append(f"  of which the loss counts: {rendering.labels(found.example)!r}")
    lines += [f"  row {number} {fault}" for number, fault in found.faults[:SHOWN]]
    if len(found.faults) > SHOWN:
        lines.append(f"  and {len(found.faults) - SHOWN:,} more")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON list or JSON lines")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer and chat template: count and show")
    parser.add_argument("--cutoff-len", type=int, help="longest example in tokens; needs --tokenizer")
    parser.add_argument("--held-out", type=Path, help="validation file, none of whose rows may be in the others")
    parser.add_argument("--evaluation", type=Path, action="append", default=[], help="test items that must not leak")
    parser.add_argument("--json", type=Path, help="write the findings there too")


def run(given: argparse.Namespace) -> None:
    """Raises UserError when any file has a fault, after all were reported."""
    if given.cutoff_len and not given.tokenizer:
        raise UserError("--cutoff-len counts tokens: give --tokenizer too")
    rendering = Rendering(given.tokenizer) if given.tokenizer else None
    evaluation = evaluation_ngrams(given.evaluation)
    held_out = lint(given.held_out).keys if given.held_out else None
    everything = []
    for path in given.files:
        found = lint(path, rendering, given.cutoff_len, evaluation, held_out)
        found.faults += [
            (number, f"is longer than cutoff_len {given.cutoff_len} after the template: {length} tokens")
            for number, length in found.too_long
        ]
        found.faults.sort()
        print(report(found, rendering))
        everything.append(found)
    if given.json:
        from artifacts.files import write_json

        write_json(given.json, [
            {"file": str(f.path), "form": f.form.form, "kind": f.form.kind, "rows": f.rows, "tokens": f.tokens,
             "faults": [{"row": number, "fault": fault} for number, fault in f.faults]} for f in everything
        ])  # fmt: skip
    for found in everything:
        found.refuse()


def split(path: Path, folder: Path, share: float, drop_faulty: bool = False) -> tuple[int, int, int]:
    """Divide a file into `<name>_train.json` and `<name>_valid.json` by the hash of each question.

    The same question falls into the same part whatever else the file holds, now and when it grows.

    Args:
        share: of the questions that are held out, 0-1.
        drop_faulty: leave out what the linter would name, repeats too, and write it to `<name>_dropped.json`.

    Returns:
        How many rows each part has, and how many were left out.

    Raises:
        UserError: a row is faulty, naming it; or a part would be empty.
    """
    from artifacts.files import write_json, write_text

    form = form_of(path)
    parts: tuple[list[Any], list[Any]] = ([], [])
    dropped: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for number, row in rows(path):
        try:
            example = read_row(row, form)
            if drop_faulty and first.setdefault(example.key, number) != number:
                raise Fault(f"repeats row {first[example.key]}")
        except Fault as fault:
            if not drop_faulty:
                raise UserError(f"{path}: row {number} {fault}: {MEND}") from None
            dropped.append({"row": number, "fault": str(fault), "content": row})
            continue
        parts[int(example.prompt_key[:8], 16) < share * 2**32].append(row)
    if not parts[0] or not parts[1]:
        raise UserError(f"{path}: {len(parts[0])} rows to train on and {len(parts[1])} held out: change --share")
    for name, part in zip(("train", "valid"), parts, strict=True):
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in part) + "\n]\n"
        write_text(folder / f"{path.stem}_{name}.json", text)
    if dropped:
        write_json(folder / f"{path.stem}_dropped.json", dropped)
    return len(parts[0]), len(parts[1]), len(dropped)
