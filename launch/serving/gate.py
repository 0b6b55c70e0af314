r"""Check that a served model gives the same tokens as Hugging Face `generate`; then sample replies for the scores.

    myllm serve-gate --model runs/poetry-tiny/models/dpo --prompts runs/poetry-tiny/tasks/gate_prompts.json \
        --output runs/poetry-tiny/serve

`--prompts` (default: twenty general ones) is JSON: {"completions": ["春", …], "chats": [[{"role": "user", "content":
"…"}], …]}. Both sides decode greedily in float32. The token ids of prompts and replies are compared (vLLM's
`return_token_ids`). It writes `serve.json`, and with `--sample-prompts` `samples.json`. If a reply differs, the exit
code is 2 and `serve.json` shows both. vLLM only: LMDeploy computes in 16 bits, where the order of summation decides
between close tokens.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import read_json, write_json
from artifacts.guard import Guarded
from artifacts.layout import REPOSITORY, environment, lock_of
from artifacts.processes import free_port
from artifacts.stage import report_gate, report_metrics, track
from launch.serving.client import Address, request
from launch.serving.plan import Plan
from launch.serving.serve import last_error, make_plan, running, wait_until_ready

PROMPTS = Path(__file__).with_name("gate_prompts.json")
MAX_TOKENS = 48
# Two logits of a float32 model closer than this are a tie: the order of summation decides between them.
TIE = 1e-4
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 96}
CONCURRENT = 32


def read_prompts(path: Path) -> dict[str, list[Any]]:
    """Read and check the prompts file: texts, and conversations of messages with role and content."""
    prompts = read_json(path)
    lists = [prompts.get(part) for part in ("completions", "chats")] if isinstance(prompts, dict) else [None]
    if not all(isinstance(part, list) for part in lists) or not any(lists):
        raise UserError(f'{path} must be {{"completions": [text, …], "chats": [[{{"role", "content"}}, …], …]}}')
    if not all(isinstance(text, str) and text for text in prompts["completions"]):
        raise UserError(f"{path}: every entry of `completions` must be a non-empty text")
    if not all(chat and all({"role", "content"} <= set(turn) for turn in chat) for chat in prompts["chats"]):
        raise UserError(f"{path}: every entry of `chats` must be a list of {{role, content}}")
    return {"completions": prompts["completions"], "chats": prompts["chats"]}


def read_sample_prompts(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"id", "messages"} <= set(row) for row in rows):
        raise UserError(f'{path} must be a list of {{"id", "messages", …}}')
    return rows


def ask(address: Address, prompt: Any, max_tokens: int) -> dict[str, Any]:
    """Greedy continuation of a text or a conversation: prompt_ids, ids, text, finish."""
    body = {"model": address.name, "max_tokens": max_tokens, "temperature": 0, "return_token_ids": True}
    if isinstance(prompt, str):
        reply = request(address, "/v1/completions", {**body, "prompt": prompt})
        choice = reply["choices"][0]
        prompt_ids, text = choice["prompt_token_ids"], choice["text"]
    else:
        reply = request(address, "/v1/chat/completions", {**body, "messages": prompt})
        choice = reply["choices"][0]
        prompt_ids, text = reply["prompt_token_ids"], choice["message"]["content"]
    return {"prompt_ids": prompt_ids, "ids": choice["token_ids"], "text": text, "finish": choice["finish_reason"]}


def compare(expected: dict[str, Any], served: dict[str, Any], stops: list[int]) -> dict[str, Any] | None:
    """None if prompt and continuation have the same ids and the same ending; else the difference, with `tie`.

    It is a tie if at the first different token the reference's two largest logits differ by less than `TIE` and the
    server took the second one. Not every server reports the stop token, so only the fact of stopping is compared.
    """
    if expected["prompt_ids"] != served["prompt_ids"]:
        evidence = {"kind": "prompt", "expected": expected["prompt_ids"], "served": served["prompt_ids"]}
        return {"prompt": expected["prompt"], **evidence, "tie": False}

    def words(ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in stops else ids

    ended = bool(expected["ids"]) and expected["ids"][-1] in stops
    left, right = words(expected["ids"]), words(served["ids"])
    if left == right and ended == (served["finish"] == "stop"):
        return None
    # If one stops and the other continues, they differ at the step of the stop.
    steps = enumerate(zip(left, right, strict=False))
    at = next((step for step, pair in steps if pair[0] != pair[1]), min(len(left), len(right)))
    margin = expected["margins"][at] if at < len(expected["margins"]) else None
    second = expected["runner_up"][at] if at < len(expected["runner_up"]) else None
    took = right[at] if at < len(right) else (second if second in stops else None)
    return {
        "prompt": expected["prompt"],
        "kind": "tokens",
        "at": at,
        "expected": expected["ids"],
        "served": served["ids"],
        "finish": served["finish"],
        "margin": margin,
        "tie": margin is not None and margin < TIE and took == second,
    }


def check(plan: Plan, prompts_file: Path, output: Path, sample_prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """Check one model; returns its part of serve.json. The reference is computed while the server starts."""
    folder = plan.folder
    prompts = read_prompts(prompts_file)
    all_prompts = [*prompts["completions"], *prompts["chats"]]
    reference_file, reference_log = output / f"reference-{folder.name}.json", output / f"reference-{folder.name}.log"
    server_log = output / f"{plan.engine}-{folder.name}.log"
    reference_file.unlink(missing_ok=True)
    reference_log.unlink(missing_ok=True)
    reference_command = [
        str(environment("train") / "bin" / "python"),
        *("-m", "launch.serving.reference", "--model", str(folder), "--prompts", str(prompts_file.resolve())),
        *("--output", str(reference_file.resolve()), "--max-tokens", str(MAX_TOKENS)),
    ]
    print(shlex.join(reference_command), flush=True)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (
        running(plan, secrets.token_urlsafe(32), server_log) as (address, server),
        Guarded(reference_command, env=offline, cwd=REPOSITORY, log=reference_log) as reference_process,
    ):
        start_seconds = wait_until_ready(server, address, server_log)
        print(f"the server was ready after {start_seconds:.1f} s", flush=True)
        if reference_process.wait() != 0 or not reference_file.exists():
            raise UserError(f"the reference by Hugging Face failed: read {reference_log}{last_error(reference_log)}")
        reference = read_json(reference_file)
        differences = []
        for prompt, expected in track(
            list(zip(all_prompts, reference["rows"], strict=True)), len(all_prompts), "prompts"
        ):
            try:
                served = ask(address, prompt, expected["max_tokens"])
            except HTTPError as error:
                reason = error.read().decode(errors="replace")[:300]
                found: dict[str, Any] | None = {
                    "prompt": expected["prompt"],
                    "kind": f"refused: {error.code} {reason}",
                    "tie": False,
                }
            else:
                found = compare(expected, served, reference["stops"])
            if found:
                differences.append(found)
        version = request(address, "/version")["version"]
        sampled = sample(address, sample_prompts, output) if sample_prompts else {}
    return {
        "model": str(folder.name),
        "tp": plan.tp,
        "prompts": len(all_prompts),
        "identical": len(all_prompts) - len(differences),
        "version": version,
        "reference": reference["versions"],
        "start_seconds": round(start_seconds, 2),
        "mismatches": [row for row in differences if not row["tie"]],
        "ties": [row for row in differences if row["tie"]],
        **sampled,
    }


def sample(address: Address, rows: list[dict[str, Any]], output: Path) -> dict[str, Any]:
    """Sample one reply for each prompt, in parallel, each with its own seed; writes samples.json.

    Returns the speed: tokens, seconds, tokens per second of all requests together.
    """

    def one(numbered: tuple[int, dict[str, Any]]) -> tuple[dict[str, Any], int]:
        number, row = numbered
        body = {"model": address.name, "messages": row["messages"], "seed": 1000 + number, **SAMPLING}
        reply = request(address, "/v1/chat/completions", body)
        text, tokens = reply["choices"][0]["message"]["content"] or "", reply["usage"]["completion_tokens"]
        prompt = row["messages"][-1]["content"]
        others = {name: value for name, value in row.items() if name not in ("id", "messages")}
        return {"id": row["id"], "prompt": prompt, "text": text, **others}, tokens

    started = time.monotonic()
    with ThreadPoolExecutor(CONCURRENT) as pool:
        try:
            replies = list(track(pool.map(one, enumerate(rows)), len(rows), "samples"))
        except HTTPError as error:
            raise UserError(
                f"the server refused a prompt of --sample-prompts: {error.code} {error.read().decode()[:300]}"
            ) from None
    seconds = time.monotonic() - started
    write_json(output / "samples.json", [row for row, _ in replies])
    tokens = sum(count for _, count in replies)
    return {
        "samples": len(rows),
        "sampled_tokens": tokens,
        "sampling_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, action="append", required=True, help="model folder; repeatable")
    parser.add_argument(
        "--prompts", type=Path, default=PROMPTS,
        help='JSON: {"completions": […], "chats": […]} (default: gate_prompts.json beside this program)',
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder for serve.json, samples.json and the logs")
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel size (default: %(default)s)")
    parser.add_argument(
        "--sample-prompts", type=Path, help="JSON list of {id, messages, …} to sample the last model with"
    )


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    ahead.environment("serve")
    ahead.needs(gpus=float(arguments.tp) if lock_of("serve") == "serve-gpu" else 0.0)
    for path in (*arguments.model, arguments.prompts, *filter(None, [arguments.sample_prompts])):
        ahead.wants(path)
    if arguments.prompts.exists():
        read_prompts(arguments.prompts)
    ahead.makes(arguments.output)


def run(arguments: argparse.Namespace) -> int:
    # SIGTERM is handled like Ctrl-C, so that the server is stopped and waited for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments.output.mkdir(parents=True, exist_ok=True)
    sample_prompts = read_sample_prompts(arguments.sample_prompts) if arguments.sample_prompts else []
    started = time.monotonic()
    parts = []
    for number, folder in enumerate(arguments.model, start=1):
        # float32 on both sides, on every machine
        plan = make_plan(folder, free_port(), tp=arguments.tp, dtype="float32")
        last = number == len(arguments.model)
        parts.append(check(plan, arguments.prompts, arguments.output, sample_prompts if last else []))
    result = {
        "prompts": sum(part["prompts"] for part in parts),
        "identical": sum(part["identical"] for part in parts),
        "ties": [row for part in parts for row in part["ties"]],
        "engine": "vllm",
        "version": parts[-1]["version"],
        "compared": "token ids",
        "seconds": round(time.monotonic() - started, 2),
        "mismatches": [row for part in parts for row in part["mismatches"]],
        "models": parts,
    }
    write_json(arguments.output / "serve.json", result)
    speed = {key: parts[-1][key] for key in ("tokens_per_second",) if key in parts[-1]}
    report_metrics(
        prompts=result["prompts"], identical=result["identical"], ties=len(result["ties"]),
        start_seconds=parts[-1]["start_seconds"], **speed,
    )  # fmt: skip
    if not result["mismatches"]:
        equal = f"{result['identical']} of {result['prompts']} greedy replies equal to Hugging Face's"
        report_gate("served tokens", f"{equal}, {len(result['ties'])} ties")
    if result["mismatches"]:
        first = result["mismatches"][0]
        raise UserError(
            f"{len(result['mismatches'])} of {result['prompts']} served replies differ from Hugging Face's, the first "
            f"for {first['prompt'][:40]!r}: read {arguments.output / 'serve.json'}, and check the model's tokenizer "
            "and config files"
        )
    return 0


if __name__ == "__main__":
    main(__name__)
