"""Read instruction and preference data in several formats, and find what is wrong with a row.

| format | row |
|---|---|
| alpaca (alpaca-zh, BELLE) | instruction, input, output; optional system and history |
| sharegpt | conversations: [{from, value}, …]; system |
| openai | messages: [{role, content}, …] |
| pairs | one of these, with `chosen` and `rejected` instead of the last answer: texts (alpaca) or messages |
| KTO | one of these, with `label` (or `kto_tag`): true if the last answer is good |

A file is a JSON list or has one JSON object per line, whatever its suffix: BELLE's `train_1M_CN.json` is the latter.
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
    """Format of a file's rows, and what they are for."""

    form: str  # one of FORMS
    kind: str  # one of KINDS
    label: str | None = None  # name of the column with KTO labels


@dataclass(frozen=True)
class Example:
    """A row in the common format: the prompt, and one answer, or the chosen and the rejected one."""

    prompt: tuple[tuple[str, str], ...]  # (role, text); the last message is the user's
    answers: tuple[str, ...]
    label: bool | None = None

    @property
    def key(self) -> str:
        """Hash of prompt and answers; two rows with the same hash are repeats."""
        return hashlib.sha256(json.dumps([self.prompt, self.answers]).encode()).hexdigest()

    @property
    def prompt_key(self) -> str:
        """Hash of the prompt; the split uses it, so that no question is in both parts."""
        return hashlib.sha256(json.dumps(self.prompt).encode()).hexdigest()


class Fault(Exception):
    """What is wrong with a row; the text follows `row N: `."""


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a data file with their numbers from 1. For a line that is not JSON, a `Fault` takes the row's place.

    Raises:
        UserError: the file is missing, empty, not UTF-8, or an invalid JSON list.
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
                            yield number, Fault(f"not valid JSON ({error.msg} at character {error.pos})")
                return
            try:
                found = json.load(stream)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Correct it, or "
                    "write one object per line, so that one invalid row does not hide the others"
                ) from None
            yield from enumerate(found, start=1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start}: convert it, e.g. iconv -f GB18030 -t UTF-8 {path} > NEW"
        ) from None


def form_of(path: Path) -> Form:
    """The format of a file, from its first row that is an object. Raises UserError if it is unknown."""
    for number, row in rows(path):
        if isinstance(row, dict):
            form = next((f for f, key in zip(FORMS, ("instruction", "conversations", "messages")) if key in row), None)
            if form is None:
                raise UserError(
                    f"{path}, row {number}: unknown format with the fields {', '.join(row) or '(none)'}. Known are "
                    "instruction/input/output, conversations, messages, each also with chosen/rejected or label"
                )
            if "chosen" in row or "rejected" in row:
                return Form(form, "pairs")
            label = next((name for name in LABELS if name in row), None)
            return Form(form, "kto" if label else "sft", label)
        if number >= 100:
            break
    raise UserError(f"{path} holds no row that is a JSON object")


def _text(row: dict[str, Any], name: str, may_be_empty: bool = False) -> str:
    if name not in row:
        raise Fault(f"`{name}` is missing")
    if not isinstance(row[name], str):
        raise Fault(f"`{name}` is not text")
    if not may_be_empty and not row[name].strip():
        raise Fault(f"`{name}` is empty")
    return row[name]


def _turn(turn: Any, form: str, where: str) -> tuple[str, str]:
    """(role, text) of a message."""
    role_key, text_key = ("from", "value") if form == "sharegpt" else ("role", "content")
    if not isinstance(turn, dict):
        raise Fault(f"{where} is not an object")
    role = _text(turn, role_key)
    if role not in ROLES:
        raise Fault(f"{where} is from {role!r}; known roles are {', '.join(sorted(ROLES))}")
    return ROLES[role], _text(turn, text_key)


def _answer(row: dict[str, Any], name: str, form: str) -> str:
    """The text of `chosen` or `rejected`, which is a text or a message of the assistant."""
    if form == "alpaca" or isinstance(row.get(name), str):
        return _text(row, name)
    if name not in row:
        raise Fault(f"`{name}` is missing")
    role, text = _turn(row[name], form, f"`{name}`")
    if role != "assistant":
        raise Fault(f"`{name}` is from the {role}, not from the assistant")
    return text


def _alpaca_turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = []
    if row.get("system"):
        turns.append(("system", _text(row, "system")))
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p.strip() for p in pair)):
            raise Fault("`history` is not a list of [question, answer] pairs")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    question = _text(row, "instruction")
    more = _text(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    return [*turns, ("user", f"{question}\n{more}" if more else question)]


def read_row(row: Any, form: Form) -> Example:
    """Convert a row to an example.

    Raises:
        Fault: a field is missing or empty, roles are out of order, the last turn is wrong, or the answers are equal.
    """
    if isinstance(row, Fault):
        raise row
    if not isinstance(row, dict):
        raise Fault("not a JSON object")
    if form.form == "alpaca":
        turns = _alpaca_turns(row)
        if form.kind != "pairs":
            turns.append(("assistant", _text(row, "output")))
    else:
        name = "conversations" if form.form == "sharegpt" else "messages"
        if not isinstance(row.get(name), list) or not row[name]:
            raise Fault(f"`{name}` is not a list of turns, or is empty")
        turns = [_turn(turn, form.form, f"turn {n}") for n, turn in enumerate(row[name], start=1)]
        if row.get("system"):
            turns.insert(0, ("system", _text(row, "system")))
    _check_order(turns, form.kind)
    if form.kind == "pairs":
        answers = (_answer(row, "chosen", form.form), _answer(row, "rejected", form.form))
        if answers[0] == answers[1]:
            raise Fault("`chosen` and `rejected` are equal")
        return Example(tuple(turns), answers)
    label = None
    if form.label:
        label = row.get(form.label)
        if not isinstance(label, bool):
            raise Fault(f"`{form.label}` is neither true nor false")
    return Example(tuple(turns[:-1]), (turns[-1][1],), label)


def without_answer(row: dict[str, Any], form: Form) -> dict[str, Any]:
    """An instruction row with an empty answer."""
    if form.form == "alpaca":
        return {**row, "output": ""}
    name, role, text, assistant = (
        ("conversations", "from", "value", "gpt")
        if form.form == "sharegpt"
        else ("messages", "role", "content", "assistant")
    )
    *before, last = row[name]
    speaker = assistant if last[role] == "function_call" else last[role]  # an empty function call cannot be rendered
    return {**row, name: [*before, {role: speaker, text: ""}]}


def _check_order(turns: list[tuple[str, str]], kind: str) -> None:
    """Check the roles: optional system text, then user and assistant in turn; last the answer (pairs: question)."""
    spoken = turns[1:] if turns[0][0] == "system" else turns
    for number, (role, _) in enumerate(spoken):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            raise Fault(
                f"turn {number + 1 + len(turns) - len(spoken)} is from the {role}, but should be from the {wanted}"
            )
    last = "user" if kind == "pairs" else "assistant"
    if not spoken or spoken[-1][0] != last:
        raise Fault(f"the last turn is not from the {last}")


def columns(path: Path) -> dict[str, Any]:
    """A file's entry in LLaMA-Factory's `dataset_info.json`, without the file name; only columns that the file has."""
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
