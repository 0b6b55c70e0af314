"""Serve a model folder as an OpenAI-compatible API with vLLM or LMDeploy, on this machine only and with a key.

    myllm serve runs/poetry-tiny/models/dpo --port 8000
    myllm serve runs/poetry-tiny/models/dpo --engine lmdeploy --tp 2 --set log-level=INFO

The folder and the machine are checked first (`launch.serving.preflight`, `launch.serving.machine`). The server is ready
when its process runs, /health answers and one token was generated. The key is $MYLLM_API_KEY; if it is not set, a new
key is written to a file that only you can read. Ctrl-C or SIGTERM lets running replies finish; a second one stops at
once.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.guard import Guarded
from artifacts.layout import Run, cache_folder, environment
from launch.serving.client import Address, key_file, request
from launch.serving.engines import DRAIN_SECONDS, command, engine_options, full_environment, names, printed
from launch.serving.engines import engine as engine_named
from launch.serving.key import DRAIN_PATH
from launch.serving.machine import available_mb, check_gpus, check_memory, check_parallel, check_port, gpu_free_mb
from launch.serving.plan import Plan, cache_mb, has_gpu
from launch.serving.preflight import check_model, read_weights

START_SECONDS = 600.0
HERE, EVERYWHERE = "127.0.0.1", "0.0.0.0"


def make_plan(
    folder: Path,
    port: int,
    engine: str = "vllm",
    name: str | None = None,
    tp: int = 1,
    length: int | None = None,
    lan: bool = False,
    dtype: str | None = None,
    options: list[str] | None = None,
) -> Plan:
    """Check the options and the model folder, and make the plan of the server.

    Args:
        length: largest number of tokens in prompt and reply; None: the model's max_position_embeddings.
        lan: listen on every interface, not only on 127.0.0.1.
        options: options for the engine, as `NAME` or `NAME=VALUE`.

    Raises:
        UserError: an option or a file is wrong; the message names it and what to do.
    """
    folder, cpu, host = folder.resolve(), not has_gpu(), EVERYWHERE if lan else HERE
    extra = engine_options(engine, options or [])
    config = check_model(folder, cpu, engine)
    check_parallel(folder, config, tp)
    longest = int(config.get("max_position_embeddings", 0))
    length = longest if length is None else length
    if not 1 <= length <= (longest or length):
        raise UserError(
            f"--max-model-len {length} must be between 1 and the model's {longest} positions ({folder}/config.json)"
        )
    check_port(host, port)
    memory = cache_mb(config, length) if cpu else 0
    plan = Plan(engine, folder, name or folder.name, host, port, length, tp, cpu, dtype, memory, extra)
    return plan


def check_machine(plan: Plan) -> None:
    """Check environment and memory or GPUs; not in `make_plan`, because a dry run needs neither."""
    engine = engine_named(plan.engine)
    environment(engine.ENVIRONMENT)
    weights = read_weights(plan.folder)
    if not plan.cpu:
        check_gpus(plan, weights, gpu_free_mb())
    elif not engine.ON_CPU:
        raise UserError(f"{plan.engine} needs a GPU, and this machine shows no NVIDIA GPU: give --engine vllm")
    else:
        check_memory(plan, weights, available_mb())


@contextmanager
def running(plan: Plan, key: str, log: Path) -> Iterator[tuple[Address, Guarded]]:
    """Start a server, which is not yet ready; it and all its processes end with the block."""
    check_machine(plan)
    print(printed(plan), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    address = Address(f"http://{HERE}:{plan.port}", plan.name, key)
    with Guarded(command(plan), env=full_environment(plan, key), log=log) as server:
        yield address, server


def wait_until_ready(server: Guarded, address: Address, log: Path, timeout: float = START_SECONDS) -> float:
    """Wait until the server runs, /health answers and it generates one token; returns the seconds waited.

    Raises:
        UserError: the server ended, refused a chat, or was not ready in time; the message names its log.
    """
    started = printed_at = time.monotonic()
    probe = {"model": address.name, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
    while True:
        waited = time.monotonic() - started
        status = server.poll()
        if status is not None:
            raise UserError(f"the server ended with status {status} after {waited:.0f} s: read {log}{last_error(log)}")
        if waited > timeout:
            raise UserError(f"the server was not ready after {timeout:.0f} s: read {log}{last_error(log)}")
        try:
            request(address, "/health", timeout=5)
            request(address, "/v1/chat/completions", probe)
            return waited
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read().decode(errors="replace").split())[:200]
            raise UserError(
                f"the server started but refuses a chat: {error.code} {reason}: read {log}{last_error(log)}"
            ) from None
        except (OSError, ValueError):
            time.sleep(0.25)
        if time.monotonic() - printed_at > 5:
            printed_at = time.monotonic()
            print(f"waiting for the server, {waited:.0f} s", flush=True)


def last_error(log: Path) -> str:
    """The log's last line with an error, as ` (LINE)`; an empty string if there is none."""
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line for line in reversed(lines) if "Error" in line or "error:" in line), "")
    return f" ({found.strip()[-300:]})" if found else ""


def drain(address: Address) -> bool:
    """Let running replies finish, for at most `DRAIN_SECONDS`; True if all of them did."""
    try:
        request(address, DRAIN_PATH, {}, timeout=DRAIN_SECONDS)
        return True
    except (OSError, ValueError):
        return False


def take_key(port: int) -> tuple[str, Path | None]:
    """The key, and its file (mode 0600) if the key was made here."""
    given = os.environ.get("MYLLM_API_KEY")
    if given:
        if not given.isascii() or any(c.isspace() for c in given):
            raise UserError("MYLLM_API_KEY must be ASCII without spaces, because it is sent in an HTTP header")
        return given, None
    key, file = secrets.token_urlsafe(32), key_file(port)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(key + "\n")
    return key, file


def log_file(plan: Plan) -> Path:
    """The log file: in the logs of the model's run (`runs/<name>/models/<model>`), else in the cache folder."""
    run = Run(plan.folder.parent.parent)
    of_a_run = plan.folder.parent == run.models and (run.folder / "pipeline.json").exists()
    return (run.logs if of_a_run else cache_folder() / "logs") / f"serve-{plan.folder.name}-{plan.port}.log"


def how_to_call(plan: Plan, file: Path | None) -> str:
    """Text with model, address and an example call; it names where the key is and does not show it."""
    key = f"$(cat {file})" if file else "$MYLLM_API_KEY"
    host = HERE if plan.host == HERE else "THIS-MACHINE"
    body = f'{{"model": "{plan.name}", "messages": [{{"role": "user", "content": "你好"}}]}}'
    return (
        f"model {plan.name!r} at http://{host}:{plan.port}/v1, key {'in ' + str(file) if file else '$MYLLM_API_KEY'}\n"
        f'  curl http://{host}:{plan.port}/v1/chat/completions -H "Authorization: Bearer {key}" '
        f"-H 'Content-Type: application/json' -d '{body}'"
    )


def serve(plan: Plan) -> None:
    """Serve until Ctrl-C or SIGTERM, then drain. Raises UserError if the server does not start or ends by itself."""
    key, file = take_key(plan.port)
    log = log_file(plan)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(plan, key, log) as (address, server):
            print(f"log: {log}", flush=True)
            seconds = wait_until_ready(server, address, log)
            print(f"ready after {seconds:.0f} s: {how_to_call(plan, file)}", flush=True)
            if plan.host == EVERYWHERE:
                print("open to the network, unencrypted: put it behind TLS unless you trust the network", flush=True)
            try:
                status = server.wait()
            except KeyboardInterrupt:
                print("stopping after the running replies; press Ctrl-C again to stop at once", flush=True)
                finished = drain(address)
                print("every reply was finished" if finished else "some replies were cut off", flush=True)
                return
            raise UserError(f"the server ended by itself with status {status}: read {log}{last_error(log)}")
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        if file:
            file.unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="Hugging Face folder: weights, tokenizer.json, chat_template.jinja")
    parser.add_argument(
        "--engine",
        choices=names(),
        default="vllm",
        help="inference engine; lmdeploy needs a GPU (default: %(default)s)",
    )
    parser.add_argument("--name", help="name of the model for clients (default: the folder's name)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel size: GPUs, or cores on a CPU (default: 1)")
    parser.add_argument(
        "--max-model-len", type=int, help="most tokens in prompt and reply together (default: the model's)"
    )
    parser.add_argument("--dtype", help="type of the weights (default: float32 on a CPU, bfloat16 on a GPU)")
    parser.add_argument("--lan", action="store_true", help="listen on every interface, not only on 127.0.0.1")
    parser.add_argument("--dry-run", action="store_true", help="check the folder and print the command, start nothing")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="option of the engine itself, without dashes: --set max-num-seqs=8 --set enable-log-requests; repeatable",
    )


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    check_port(EVERYWHERE if arguments.lan else HERE, arguments.port)
    ahead.wants(arguments.model, "an earlier stage must make this model; check the path")
    ahead.environment(engine_named(arguments.engine).ENVIRONMENT)


def run(arguments: argparse.Namespace) -> None:
    plan = make_plan(
        arguments.model,
        arguments.port,
        arguments.engine,
        arguments.name,
        arguments.tp,
        arguments.max_model_len,
        arguments.lan,
        arguments.dtype,
        arguments.set,
    )
    if arguments.dry_run:
        print(printed(plan))
    else:
        serve(plan)


if __name__ == "__main__":
    main(__name__)
