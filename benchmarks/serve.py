"""Load test of the server with 32 clients for a minute, compared with Hugging Face `generate`: `make bench-serve`.

    python -m benchmarks.serve --model runs/poetry-tiny/models/dpo --clients 32 --seconds 60

Each client sends a request, reads the stream to its end, and sends the next one. An answer counts as lost if its stream
does not end with the server's [DONE] and token count. The peer is Hugging Face `generate` on the same prompts, one
after another, in the training environment.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.errors import UserError, run_main
from artifacts.files import read_json, write_text
from artifacts.guard import Guarded
from artifacts.layout import REPOSITORY
from artifacts.processes import free_port
from benchmarks.machine import describe
from launch.serving.client import Address, request, stream_reply
from launch.serving.serve import make_plan, running, wait_until_ready

DEMO = REPOSITORY / "runs" / "poetry-tiny" / "models" / "dpo"
Chats = list[list[dict[str, str]]]
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64}
PEER_SECONDS = 20.0


@dataclass
class Load:
    """Results of the clients: seconds to the first words and to the end of each answer, tokens, errors."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


def one_client(address: Address, chats: Chats, number: int, until: float, load: Load) -> None:
    """Send requests until `until` (time.monotonic()). The last answer is read to its end."""
    turn = number
    while time.monotonic() < until:
        messages = chats[turn % len(chats)]
        usage: dict[str, int] = {}
        began, first = time.monotonic(), 0.0
        try:
            for _piece in stream_reply(address, messages, {**SAMPLING, "seed": turn}, usage):
                first = first or time.monotonic() - began
            if not usage.get("completion_tokens"):
                raise UserError("the stream ended without a token count")
        except UserError as error:
            load.errors.append(str(error))
            continue
        load.whole.append(time.monotonic() - began)
        load.first.append(first or load.whole[-1])
        load.tokens += usage["completion_tokens"]
        turn += 1000


def put_load(address: Address, chats: Chats, clients: int, seconds: float) -> Load:
    load, began = Load(), time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        done = [pool.submit(one_client, address, chats, number, began + seconds, load) for number in range(clients)]
        while not all(future.done() for future in done):
            time.sleep(1)
            passed = time.monotonic() - began
            print(f"progress {min(passed, seconds):.0f}/{seconds:.0f} seconds", file=sys.stderr, flush=True)
        for future in done:
            future.result()
    load.seconds = time.monotonic() - began
    return load


def percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def memory_mb(server: Guarded) -> int:
    """Proportional set size of all processes in the server's group, in MB. Shared pages are counted once."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
            if group == server.process.pid:
                total += int((process / "smaps_rollup").read_text().partition("Pss:")[2].split()[0])
        except (OSError, IndexError, ValueError):
            continue
    return total // 1024


def generate_alone(folder: Path, chats: Chats) -> float:
    """Tokens per second of Hugging Face `generate`, one prompt at a time on one thread, after one warm-up prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, began = 0, 0.0
    for turn in range(10_000):
        if turn == 1:
            tokens, began = 0, time.monotonic()
        if turn > 1 and time.monotonic() - began > PEER_SECONDS:
            break
        text = tokenizer.apply_chat_template(chats[turn % len(chats)], tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        torch.manual_seed(turn)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=64, do_sample=True, temperature=0.7, top_p=0.9, top_k=0)
        tokens += out.shape[1] - inputs["input_ids"].shape[1]
    return tokens / (time.monotonic() - began)


def table(load: Load, clients: int, peer: float, start: float, memory: tuple[int, int], said: str) -> str:
    """Markdown table, followed by `said`: the versions and the load of the machine."""
    rate = load.tokens / load.seconds
    answered = len(load.whole)
    return "\n".join(
        [
            "| measured | |",
            "|---|---|",
            f"| clients at once, seconds | {clients}, {load.seconds:.0f} |",
            f"| whole answers, lost ones | {answered:,}, {len(load.errors)} |",
            f"| whole answer, p50 and p95 | {percentile(load.whole, 50):.2f} s, {percentile(load.whole, 95):.2f} s |",
            f"| first words, p50 and p95 | {percentile(load.first, 50):.2f} s, {percentile(load.first, 95):.2f} s |",
            f"| tokens per second, all clients | {rate:,.0f} |",
            f"| tokens per second of `generate` alone, one thread | {peer:,.0f} |",
            f"| of `generate`'s rate | {rate / peer:.1f} × |",
            f"| start until the first token | {start:.0f} s |",
            f"| memory, before and after the load | {memory[0]:,} MB, {memory[1]:,} MB |",
            "",
            said,
        ]
    )


def measure(folder: Path, chats: Chats, clients: int, seconds: float) -> str:
    """Start a server, run the load test and the peer. Returns the table. Raises UserError if an answer was lost."""
    busy = os.getloadavg()[0]
    plan, log = make_plan(folder, free_port()), Path(tempfile.gettempdir()) / f"bench-serve-{os.getpid()}.log"
    with running(plan, secrets.token_urlsafe(32), log) as (address, server):
        start = wait_until_ready(server, address, log)
        version = request(address, "/version")["version"]
        put_load(address, chats, clients, min(5.0, seconds))  # warm up
        before = memory_mb(server)
        load = put_load(address, chats, clients, seconds)
        memory = (before, memory_mb(server))
    if load.errors or not load.whole:
        raise UserError(
            f"{len(load.errors)} answers were lost, {len(load.whole)} were complete; first error: {load.errors[:1]}. "
            f"The server's log: {log}"
        )
    log.unlink()
    said = (
        f"vLLM {version}, float32, eager, one core for its engine. {describe('torch', 'transformers')}. "
        f"Load average of the machine's other programs when it began: {busy:.1f}."
    )
    return table(load, clients, generate_alone(folder, chats), start, memory, said)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="model folder (default: dpo of the demo)")
    parser.add_argument(
        "--prompts", type=Path, help="JSON file with `chats` (default: tasks/gate_prompts.json of the run)"
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()
    if arguments.clients < 1 or arguments.seconds <= 0:
        raise UserError("--clients must be at least 1 and --seconds above 0")
    prompts = arguments.prompts or arguments.model.parent.parent / "tasks" / "gate_prompts.json"
    found = measure(arguments.model, read_json(prompts)["chats"], arguments.clients, arguments.seconds)
    print(found)
    if arguments.output:
        said = f"python -m benchmarks.serve --clients {arguments.clients} --seconds {arguments.seconds:.0f}"
        title = f"# The server under load\n\nMade by `{said}` with the demo's `{arguments.model.name}` model.\n\n"
        write_text(arguments.output, title + found + "\n")


if __name__ == "__main__":
    run_main(main)
