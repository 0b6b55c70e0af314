"""Serve a model folder as an OpenAI-compatible API with vLLM, on this machine alone and with a key.

    python -m launch.serve runs/poetry-tiny/models/dpo --port 8000

The folder is checked first: vLLM starts happily without a tokenizer and then refuses every request. The key comes from
$MYLLM_API_KEY; without it one is made and kept in a file that only you can read. Ctrl-C ends the server.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import signal
import socket
import struct
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_json
from artifacts.layout import REPOSITORY, cache_folder, environment
from launch.guard import Guarded

START_SECONDS = 300.0
EMBEDDING_NAMES = ("model.embed_tokens.weight", "transformer.wte.weight")
# vllm/v1/attention/backends/cpu_attn.py, CPUAttentionBackend.get_supported_head_sizes (0.32.0). Another size starts,
# says that it is healthy, and dies with the first token.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)

# Eager and with a small cache: compiling takes a CPU 80 s more, and a tiny model wins nothing by it. `uni` with
# VLLM_ENABLE_V1_MULTIPROCESSING=0 keeps the worker inside the engine's process: one import of vLLM less, 10 s of work
# and 0.7 GB on two cores.
CPU_OPTIONS = ["--enforce-eager", "--kv-cache-memory-bytes", "256M", "--distributed-executor-backend", "uni"]
CPU_VARIABLES = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@dataclass(frozen=True)
class Address:
    """Where a server listens, what it calls its model, and its key."""

    host: str
    port: int
    name: str
    key: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name to shape of every tensor, from the headers of a folder's safetensors files: no weight is read.

    The format: 8 bytes, little-endian, the header's length; then the header, JSON.
    """
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = stream.read(8)
            try:
                header = json.loads(stream.read(struct.unpack("<Q", size)[0]))
            except (struct.error, ValueError, OverflowError, MemoryError):
                raise UserError(f"{file} is not a whole safetensors file: export the model again") from None
        shapes.update({name: entry["shape"] for name, entry in header.items() if name != "__metadata__"})
    return shapes


def check_model(folder: Path, cpu: bool = True) -> dict[str, Any]:
    """Check all that a server needs and return config.json; raises UserError naming the file and the mend."""
    again = "export the model again"
    if not folder.is_dir():
        raise UserError(f"the model folder {folder} does not exist: run the stage that makes it first")
    config: dict[str, Any] = read_json(folder / "config.json")
    shapes = tensor_shapes(folder)
    if not shapes:
        raise UserError(f"{folder} holds no *.safetensors weights: {again}")
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder / 'tokenizer.json'} does not exist, every request would fail: {again}")
    settings = folder / "tokenizer_config.json"
    if not (folder / "chat_template.jinja").exists() and not (
        settings.exists() and read_json(settings).get("chat_template")
    ):
        raise UserError(f"{folder} holds no chat_template.jinja, every chat would fail: {again}")
    rows = next((shapes[name][0] for name in EMBEDDING_NAMES if name in shapes), None)
    if rows is None:
        raise UserError(f"the weights in {folder} hold no embedding ({' or '.join(EMBEDDING_NAMES)}): {again}")
    tokenizer = read_json(folder / "tokenizer.json")
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer.get("added_tokens", []))]
    if max(ids) >= rows or config.get("vocab_size") != rows:
        raise UserError(
            f"{folder}: tokenizer.json has {max(ids) + 1} tokens, config.json says {config.get('vocab_size')} and the "
            f"embedding has {rows} rows: the files are not of one model, {again}"
        )
    generation = folder / "generation_config.json"
    stops = read_json(generation).get("eos_token_id") if generation.exists() else None
    if not isinstance(stops, list) or not stops:
        raise UserError(
            f"{generation} lacks the list eos_token_id, so a reply would not stop where training stopped: {again}"
        )
    heads = config.get("num_attention_heads") or 1
    size = config.get("head_dim") or config.get("hidden_size", 0) // heads
    if cpu and size not in CPU_HEAD_SIZES:
        raise UserError(
            f"{folder / 'config.json'}: vLLM has no CPU kernel for attention heads of size {size}: "
            f"choose one of {', '.join(map(str, CPU_HEAD_SIZES))} in the model recipe"
        )
    return config


def port_is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    if not port_is_free(host, port):
        raise UserError(f"port {port} on {host} is in use: end what listens there, or pass --port {free_port(host)}")


def server_command(folder: Path, address: Address, max_length: int, cpu: bool = True) -> list[str]:
    """The `vllm serve` command line; the key is not on it, it goes by the environment."""
    return [
        str(environment("serve") / "bin" / "vllm"),
        "serve",
        str(folder),
        *("--served-model-name", address.name),
        *("--host", address.host),
        *("--port", str(address.port)),
        *("--dtype", "float32" if cpu else "auto"),
        *("--max-model-len", str(max_length)),
        *(CPU_OPTIONS if cpu else []),
        *("--middleware", "launch.key_middleware.RequireKey"),
        *("--shutdown-timeout", "5"),
        "--disable-fastapi-docs",
    ]


def server_environment(key: str, cpu: bool = True) -> dict[str, str]:
    """The server's environment: offline, silent about its use, with the key and the middleware's place."""
    variables = dict(os.environ)
    # Without byte code every one of vLLM's processes compiles 5,000 files again: 60 s of a start instead of 25.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **variables,
        **(CPU_VARIABLES if cpu else {}),
        "VLLM_API_KEY": key,
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }


def request(address: Address, route: str, body: dict[str, Any] | None = None, timeout: float = 120.0) -> Any:
    """POST `body` (GET without one) with the key and parse the JSON reply; raises urllib's errors."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {address.key}", "Content-Type": "application/json"}
    # Straight to the server: a proxy of the machine's environment is not for 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(address.url + route, data, headers), timeout=timeout) as reply:
        text = reply.read()
    return json.loads(text) if text else None


def wait_until_ready(server: Guarded, address: Address, log: Path | None, timeout: float = START_SECONDS) -> float:
    """Wait for a living process, /health, and one real token; returns seconds waited, raises UserError otherwise."""
    started = told = time.monotonic()
    where = f": read {log}" if log else ""
    probe = {"model": address.name, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
    while True:
        waited = time.monotonic() - started
        status = server.poll()
        if status is not None:
            raise UserError(f"the server ended with status {status} after {waited:.0f} s{where}{last_error(log)}")
        if waited > timeout:
            raise UserError(f"the server was not ready after {timeout:.0f} s{where}")
        try:
            request(address, "/health", timeout=5)
            request(address, "/v1/chat/completions", probe)
            return waited
        except urllib.error.HTTPError as error:
            raise UserError(
                f"the server started and refuses a chat: {error.code} {error.read().decode(errors='replace')[:200]}"
                f"{where}{last_error(log)}"
            ) from None
        except (OSError, ValueError):
            time.sleep(0.25)
        if time.monotonic() - told > 2:
            told = time.monotonic()
            print(f"waiting for the server, {waited:.0f} s", flush=True)


def last_error(log: Path | None) -> str:
    """` (the last line of the log with an error)`, or an empty string."""
    if not log or not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line for line in reversed(lines) if "Error" in line), "")
    return f" ({found.strip()[-300:]})" if found else ""


def take_key(name: str, port: int) -> tuple[str, Path | None]:
    """The key, and the file that holds it when it was made here (mode 0600)."""
    given = os.environ.get("MYLLM_API_KEY")
    if given:
        return given, None
    key = secrets.token_urlsafe(32)
    folder = cache_folder() / "keys"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}-{port}.key"
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(key + "\n")
    return key, file


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.serve",
        description="Serve a model folder as an OpenAI-compatible API with vLLM, on this machine, with a key.",
        epilog="example: python -m launch.serve runs/poetry-tiny/models/dpo --port 8000",
    )
    parser.add_argument("model", type=Path, help="Hugging Face folder: weights, tokenizer.json, chat_template.jinja")
    parser.add_argument("--name", help="what clients call the model (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--max-model-len", type=int, help="prompt and reply together, in tokens (default: the model's)")
    parser.add_argument("--dry-run", action="store_true", help="check the folder and print the command, start nothing")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    folder = arguments.model.resolve()
    cpu = not has_gpu()
    config = check_model(folder, cpu)
    check_port(arguments.host, arguments.port)
    longest = int(config.get("max_position_embeddings", 0))
    length = arguments.max_model_len or longest
    if longest and length > longest:
        raise UserError(f"--max-model-len {length} is more than the model's {longest} positions ({folder}/config.json)")
    name = arguments.name or folder.name
    if arguments.dry_run:
        command = server_command(folder, Address(arguments.host, arguments.port, name, ""), length, cpu)
        print(shlex.join(command))
        return 0

    key, key_file = take_key(name, arguments.port)
    address = Address(arguments.host, arguments.port, name, key)
    command = server_command(folder, address, length, cpu)
    print(shlex.join(command), flush=True)

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        with Guarded(command, env=server_environment(key, cpu)) as server:
            seconds = wait_until_ready(server, address, None)
            where = f"in {key_file}" if key_file else "the one in $MYLLM_API_KEY"
            print(f"ready after {seconds:.0f} s: {address.url}/v1 serves {name!r}; the key is {where}", flush=True)
            status = server.wait()
            raise UserError(f"the server ended by itself with status {status}: read its output above")
    except KeyboardInterrupt:
        print("the server has ended", flush=True)
        return 0
    finally:
        if key_file:
            key_file.unlink(missing_ok=True)


if __name__ == "__main__":
    run_main(main)
