"""A reward model behind an address, as LLaMA-Factory's PPO asks one with `reward_model_type: api`.

    python -m launch.posttraining.reward_server --model runs/r/models/reward --port 8123

`myllm posttrain ppo` starts it for the time of the training; whoever calls `llamafactory-cli` by hand starts it first.
Why an address: LLaMA-Factory trains a reward model to be read at the end of the chat template, which for ChatML is the
line feed after `<|im_end|>`, but its PPO reads a reward adapter at the last token that the chat model wrote, which is
`<|im_end|>`: a place where nothing was trained. Here every text is closed as the template closes it, and then read.

    POST / {"messages": [TEXT, ...]}  ->  {"scores": [NUMBER, ...]}

It listens on 127.0.0.1 only and asks for no key, because LLaMA-Factory sends none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.processes import die_with_parent

HOST = "127.0.0.1"
BATCH = 128  # texts judged at a time
READY = "judging at"
WAIT = 600.0  # seconds for the model to load


class RewardModel:
    """A merged reward model (`chat_model.fill_reward_model`) and its tokenizer: texts in, one number for each out."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32)
        self.model = model.eval().to(self.device)
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        self.end = self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition("!")[2]  # <|im_end|> and \n

    def close(self, text: str) -> str:
        """The text as the template ends a turn, also when its end is missing in part or, of a cut answer, in whole."""
        return text.removesuffix(self.end).removesuffix(self.end.rstrip()) + self.end

    def __call__(self, texts: list[str]) -> list[float]:
        """What it thinks of each rendered conversation, read at its last token."""
        import torch

        found: list[float] = []
        for start in range(0, len(texts), BATCH):
            closed = [self.close(text) for text in texts[start : start + BATCH]]
            inputs = self.tokenizer(
                closed, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            )
            with torch.inference_mode():
                found += self.model(**inputs.to(self.device)).logits[:, 0].tolist()
        return found


def handler(judge: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
                if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                self.reply(400, {"error": 'send {"messages": ["text", ...]}'})
            else:
                self.reply(200, {"scores": judge(texts)})

        def reply(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """A line a request would bury the training's own."""

    return Handler


def address(port: int) -> str:
    return f"http://{HOST}:{port}/"


def command(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "launch.posttraining.reward_server", "--model", str(folder), "--port", str(port)]


@contextmanager
def serving(folder: Path, port: int, log: Path) -> Iterator[None]:
    """Run the server in a process of its own, from the time it can answer on; UserError with `log` when it cannot."""
    with log.open("wb") as kept:
        process = subprocess.Popen(
            command(folder, port), stdout=kept, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )
    try:
        deadline = time.monotonic() + WAIT
        while READY not in (said := log.read_text(encoding="utf-8", errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                last = (said.strip().splitlines() or ["it said nothing"])[-1]
                raise UserError(f"the reward model {folder} cannot be asked: {last}; its log is {log}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="recipe `reward`, merged")
    parser.add_argument("--port", type=int, required=True, help="of 127.0.0.1; ppo.yaml's `reward_model` names it")
    options = parser.parse_args(argv)

    from launch.posttraining.chat_model import check_reward_model

    check_reward_model(options.model, as_adapter=False)
    judge = RewardModel(options.model)
    try:
        server = HTTPServer((HOST, options.port), handler(judge))
    except OSError as error:
        raise UserError(f"port {options.port} of {HOST}: {error.strerror}; take another with --port") from None
    print(f"{READY} {address(options.port)}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    run_main(main)
