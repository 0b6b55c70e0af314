"""Read multiple-choice questions from a file for OpenCompass: which of four continuations follows the context?

A questions file has JSON lines {"id", "context", "choices": [four], "answer": 0-3}, and for chat models also
"instruction", the user's turn. The four choices have the same length. examples/poetry/tasks.py makes such a file from
held-out text, examples/arithmetic/make.py from sums.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifacts.errors import UserError

LETTERS = "ABCD"


def read_questions(path: Path, limit: int = 0) -> list[dict[str, Any]]:
    """Read and check the questions, at most `limit` (0: all). Raises UserError with file and line."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run the stage that makes the questions first, or pass --questions")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if limit and len(rows) == limit:
            break
        try:
            row = json.loads(line)
            context, choices, answer = row["context"], row["choices"], row["answer"]
            texts = all(isinstance(choice, str) for choice in choices)
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path} line {number} is not a JSON object with context, choices and answer: correct or remove it"
            ) from None
        if not (isinstance(context, str) and texts) or len(set(choices)) != 4 or answer not in range(4):
            raise UserError(f"{path} line {number} needs a context, four different choices and an answer from 0 to 3")
        if len({len(choice) for choice in choices}) != 1:
            raise UserError(
                f"{path} line {number}: the choices differ in length, which can give the answer away. "
                "Make them equally long"
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no questions: run the stage that makes the questions again")
    return rows


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by length, shortest first: OpenCompass fills its batches in this order, so there is little padding.

    The order depends on the questions only. It is the same for every model, so predictions can be paired.
    """
    return sorted(rows, key=lambda row: len(row["context"]) + len(row["choices"][0]))


def prompts(rows: list[dict[str, Any]], chat_of: str | None) -> list[str]:
    """The text before the choices of each question: the context, or a chat whose user turn is the instruction.

    The chat is rendered by the template in the model folder `chat_of`, up to the start of the assistant's turn.
    """
    if chat_of is None:
        return [row["context"] for row in rows]
    lacking = next((row for row in rows if not row.get("instruction")), None)
    if lacking:
        raise UserError(
            f"question {lacking.get('id')!r} has no 'instruction' for the chat model in {chat_of}: add it to the "
            "questions, or pass --plain to score the model in plain text"
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_of)
    if not tokenizer.chat_template:
        raise UserError(f"{chat_of} has no chat template: export the model again, or pass --plain")
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}], add_generation_prompt=True, tokenize=False
        )
        for row in rows
    ]


def load_rows(path: str, limit: int = 0, chat_of: str | None = None) -> list[dict[str, Any]]:
    """Rows {"id", "context", "instruction", "prefix", "A", "B", "C", "D", "answer": a letter}, sorted by `in_order`.

    `prefix` is the text before the choice, see `prompts`.
    """
    rows = in_order(read_questions(Path(path), limit))
    return [
        {
            "id": str(row.get("id")),
            "context": row["context"],
            "instruction": row.get("instruction") or "",
            "prefix": prefix,
            **dict(zip(LETTERS, row["choices"])),
            "answer": LETTERS[row["answer"]],
        }
        for row, prefix in zip(rows, prompts(rows, chat_of))
    ]
