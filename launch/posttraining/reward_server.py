"""Serve a reward model over HTTP for LLaMA-Factory's PPO (`reward_model_type: api`).

    python -m launch.posttraining.reward_server --model runs/r/models/reward --port 8123

`myllm posttrain ppo` starts and stops it. If you call `llamafactory-cli` by hand, start it first.
Why a server: LLaMA-Factory trains the reward at the last token of the chat template, which for ChatML is the line feed
after `<|im_end|>`. Its PPO, however, reads a reward adapter at the last token that the chat model wrote, `<|im_end|>`,
where no reward was trained. The server ends every text as the template does and reads the reward there.

    POST / {"messages": [TEXT, ...]}  ->  {"scores": [NUMBER, ...]}

It listens on 127.0.0.1 only and requires no key, because LLaMA-Factory sends none.
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
BATCH = 128  # texts per batch
READY = "judging at"
WAIT = 600.0  # seconds that the model may take to load


class RewardModel:
    """A merged reward model (`chat_model.fill_reward_model`) with its tokenizer; gives one reward for each text."""

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
        """End the text as the template ends a turn, also if this end is missing in part or (cut answers) in whole."""
        return text.removesuffix(self.end).removesuffix(self.end.rstrip()) + self.end

    def __call__(self, texts: list[str]) -> list[float]:
        """The reward of each rendered conversation, read at its last token."""
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
            """Log no requests: they would hide the lines of the training."""

    return Handler


def address(port: int) -> str:
    return f"http://{HOST}:{port}/"


def command(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "launch.posttraining.reward_server", "--model", str(folder), "--port", str(port)]


@contextmanager
def serving(folder: Path, port: int, log: Path) -> Iterator[None]:
    """Run the server in its own process and wait until it answers. Raises UserError, naming `log`, if it fails."""
    with log.open("wb") as kept:
        process = subprocess.Popen(
            command(folder, port), stdout=kept, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )
    try:
        deadline = time.monotonic() + WAIT
        while READY not in (output := log.read_text(encoding="utf-8", errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                last = (output.strip().splitlines() or ["no output"])[-1]
                raise UserError(f"the server of the reward model {folder} did not start: {last} (log: {log})")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="merged output of recipe `reward`")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1, as in `reward_model` of ppo.yaml")
    options = parser.parse_args(argv)

    from launch.posttraining.chat_model import check_reward_model

    check_reward_model(options.model, as_adapter=False)
    judge = RewardModel(options.model)
    try:
        server = HTTPServer((HOST, options.port), handler(judge))
    except OSError as error:
        raise UserError(f"port {options.port} of {HOST}: {error.strerror}; give another one with --port") from None
    print(f"{READY} {address(options.port)}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    run_main(main)
