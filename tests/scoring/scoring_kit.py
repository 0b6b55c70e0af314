"""What the tests of scoring share: questions, and a server that answers them."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen2 import VERSES

from artifacts.command import run_command
from launch.scoring import evaluate

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def questions(count: int = 6) -> list[dict[str, Any]]:
    """Four lines of five characters after a line of the same poem; the contexts differ in length on purpose."""
    lines = [line for verse in VERSES[:3] for line in verse.replace("，", "。").strip("。").split("。")]
    rows = []
    for number in range(count):
        choices = [lines[(number + 1 + step * 3) % 12] + "。" for step in range(4)]
        context = "，".join(lines[: 3 - number % 3]) + "，"
        instruction = f"“{lines[number % 12]}”的下一句是什么？"
        row = {"id": f"q{number}", "context": context, "choices": choices, "answer": number % 4}
        rows.append(row | {"instruction": instruction})
    return rows


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    return run_command(evaluate)


class Chat(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that answers every question with `answer`, or with HTTP `status`."""

    status, answer = 200, "答案是：A"
    asked: list[dict[str, Any]] = []

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 2048}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.answer}}
        self.reply(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [message]},
            200 if asked["max_tokens"] == 16 else self.status,  # alive when looked at, failing afterwards
        )

    def log_message(self, *arguments: Any) -> None:
        pass
