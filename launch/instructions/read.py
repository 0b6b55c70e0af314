"""Instruction and preference data in the forms people have them: one reader, one idea of what is wrong with a row.

| form | row |
|---|---|
| alpaca (alpaca-zh, BELLE) | instruction, input, output; system and history if there are any |
| sharegpt | conversations: [{from, value}, …]; system |
| openai | messages: [{role, content}, …] |
| pairs | the same with `chosen` and `rejected` instead of the last answer: texts (alpaca) or messages |
| KTO | the same with a last answer and `label` (or `kto_tag`): true where it is good |

A file is a JSON list or one object a line, whatever its name ends in: BELLE's `train_1M_CN.json` is the latter.
Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError

FORMS = ("alpaca", "sharegpt", "openai")
KINDS = ("sft", "pairs", "kto")
LABELS = ("label", "kto_tag")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system",
         "observation": "user", "tool": "user", "function_call": "assistant"}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a file's rows are written, and what they teach."""

    form: str  # of FORMS
    kind: str  # of KINDS
    label: str | None = None  # the column of KTO's labels


@dataclass(frozen=True)
class Example:
    """A row, read: what is asked, and one answer, or the chosen and the rejected one."""

    prompt: tuple[tuple[str, str], ...]  # (role, text); the last one is the user's
    answers: tuple[str, ...]
    label: bool | None = None

    @property
    def key(self) -> str:
        """A hash of everything in it: two rows with the same one are repeats."""
        return hashlib.sha256(json.dumps([self.prompt, self.answers]).encode()).hexdigest()

    @property
    def prompt_key(self) -> str:
        """A hash of the question alone: what the split goes by, so that no question is in both parts."""
        return hashlib.sha256(json.dumps(self.prompt).encode()).hexdigest()


class Fault(Exception):
    """What is wrong with a row, in a few words that follow `row N`."""


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a data file with their number from 1; a line that is no JSON comes as a `Fault` in its row's place.

    Raises:
        UserError: the file is missing, empty, no text, or a broken JSON list (nothing after the break is known).
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            first = stream.read(1)
            while first and first.isspace():
                first = stream.read(1)
            if not first:
                raise UserError(f"{path} is empty")
            stream.seek(0)
            if first != "[":
                number = 0
                for line in stream:
                    if line.strip():
                        number += 1
                        try:
                            yield number, json.loads(line)
                        except json.JSONDecodeError as error:
                            yield number, Fault(f"is not JSON ({error.msg} at character {error.pos})")
                return
            try:
                found = json.load(stream)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path} line {error.lineno} column {error.colno}: not JSON ({error.msg}): mend it there, or write "
                    "one object a line, so that one broken row does not hide the others"
                ) from None
            yield from enumerate(found, start=1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start}: convert it, e.g. iconv -f GB18030 -t UTF-8"
        ) from None


def form_of(path: Path) -> Form:
    """The form of a file by its first row that is an object; UserError when it is none of the known ones."""
    for number, row in rows(path):
        if isinstance(row, dict):
            form = next((f for f, key in zip(FORMS, ("instruction", "conversations", "messages")) if key in row), None)
            if form is None:
                raise UserError(
                    f"{path} row {number} has {', '.join(row) or 'no fields'}; known are instruction/input/output, "
                    "conversations, messages, each also with chosen/rejected or label"
                )
            if "chosen" in row or "rejected" in row:
                return Form(form, "pairs")
            label = next((name for name in LABELS if name in row), None)
            return Form(form, "kto" if label else "sft", label)
        if number >= 100:
            break
    raise UserError(f"{path} holds no row that is an object")


def _text(row: dict[str, Any], name: str, may_be_empty: bool = False) -> str:
    if name not in row:
        raise Fault(f"lacks the field {name!r}")
    if not isinstance(row[name], str):
        raise Fault(f"has {name!r} that is not text")
    if not may_be_empty and not row[name].strip():
        raise Fault(f"has an empty {name!r}")
    return row[name]


def _turn(turn: Any, form: str, where: str) -> tuple[str, str]:
    """(role, text) of a message."""
    role_key, text_key = ("from", "value") if form == "sharegpt" else ("role", "content")
    if not isinstance(turn, dict):
        raise Fault(f"has {where} that is not an object")
    role = _text(turn, role_key)
    if role not in ROLES:
        raise Fault(f"has {where} from {role!r}; known are {', '.join(sorted(ROLES))}")
    return ROLES[role], _text(turn, text_key)


def _answer(row: dict[str, Any], name: str, form: str) -> str:
    """`chosen` or `rejected`: a text, or a message of the assistant."""
    if form == "alpaca" or isinstance(row.get(name), str):
        return _text(row, name)
    if name not in row:
        raise Fault(f"lacks the field {name!r}")
    role, text = _turn(row[name], form, repr(name))
    if role != "assistant":
        raise Fault(f"has {name!r} that is the {role}'s, not the assistant's")
    return text


def _alpaca_turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = []
    if row.get("system"):
        turns.append(("system", _text(row, "system")))
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p.strip() for p in pair)):
            raise Fault("has a 'history' that is no list of [question, answer]")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    question = _text(row, "instruction")
    more = _text(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    return [*turns, ("user", f"{question}\n{more}" if more else question)]


def read_row(row: Any, form: Form) -> Example:
    """A row as an example.

    Raises:
        Fault: what is wrong with it: a missing or empty field, roles out of order, no assistant's turn, equal answers.
    """
    if isinstance(row, Fault):
        raise row
    if not isinstance(row, dict):
        raise Fault("is not an object")
    if form.form == "alpaca":
        turns = _alpaca_turns(row)
        if form.kind != "pairs":
            turns.append(("assistant", _text(row, "output")))
    else:
        name = "conversations" if form.form == "sharegpt" else "messages"
        if not isinstance(row.get(name), list) or not row[name]:
            raise Fault(f"has {name!r} that is no list of turns")
        turns = [_turn(turn, form.form, f"turn {n}") for n, turn in enumerate(row[name], start=1)]
        if row.get("system"):
            turns.insert(0, ("system", _text(row, "system")))
    _check_order(turns, form.kind)
    if form.kind == "pairs":
        answers = (_answer(row, "chosen", form.form), _answer(row, "rejected", form.form))
        if answers[0] == answers[1]:
            raise Fault("has the same answer as 'chosen' and 'rejected'")
        return Example(tuple(turns), answers)
    label = None
    if form.label:
        label = row.get(form.label)
        if not isinstance(label, bool):
            raise Fault(f"has {form.label!r} that is neither true nor false")
    return Example(tuple(turns[:-1]), (turns[-1][1],), label)


def without_answer(row: dict[str, Any], form: Form) -> dict[str, Any]:
    """An instruction row with nothing said where its answer stands."""
    if form.form == "alpaca":
        return {**row, "output": ""}
    name, role, text, assistant = (
        ("conversations", "from", "value", "gpt")
        if form.form == "sharegpt"
        else ("messages", "role", "content", "assistant")
    )
    *before, last = row[name]
    speaker = assistant if last[role] == "function_call" else last[role]  # a call of nothing cannot be rendered
    return {**row, name: [*before, {role: speaker, text: ""}]}


def _check_order(turns: list[tuple[str, str]], kind: str) -> None:
    """A system text first or none, then user and assistant in turn; the answer last, or the question before a pair."""
    spoken = turns[1:] if turns[0][0] == "system" else turns
    for number, (role, _) in enumerate(spoken):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            raise Fault(f"has turn {number + 1 + len(turns) - len(spoken)} from the {role} where the {wanted} speaks")
    last = "user" if kind == "pairs" else "assistant"
    if not spoken or spoken[-1][0] != last:
        raise Fault("has no assistant's turn at its end" if kind != "pairs" else "ends before a question is asked")


def columns(path: Path) -> dict[str, Any]:
    """The entry of LLaMA-Factory's `dataset_info.json` for a file, but for its name: only columns that it has."""
    form = form_of(path)
    present = {name for _, row in rows(path) if isinstance(row, dict) for name in row}
    described: dict[str, Any] = {"formatting": "alpaca" if form.form == "alpaca" else "sharegpt"}
    if form.form == "alpaca":
        found = {"prompt": "instruction", "query": "input", "system": "system", "history": "history"}
        if form.kind != "pairs":
            found["response"] = "output"
    else:
        found = {"messages": "conversations" if form.form == "sharegpt" else "messages", "system": "system"}
    if form.form == "openai":
        described["tags"] = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                             "assistant_tag": "assistant", "system_tag": "system"}  # fmt: skip
    if form.kind == "pairs":
        described["ranking"] = True
        found |= {"chosen": "chosen", "rejected": "rejected"}
    if form.label:
        found["kto_tag"] = form.label
    return {**described, "columns": {key: name for key, name in found.items() if name in present}}
