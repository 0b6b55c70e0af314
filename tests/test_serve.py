"""Serving: what is refused before a server starts, the key, the end of all processes, and the real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen2 import make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY
from launch import serve, serve_gate
from launch.guard import Guarded

CHATS = ["写一句五言诗", "你好", "春天", "明月", "思故乡", "黄河", "花落", "更上一层楼"]
VERSES = ["床前明月光，", "白日依山尽，", "春", "秋风", "明月", "床前明月光，疑是", "欲穷", "更上"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture()
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the model to break."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_whole_folder_passes(tiny: Path) -> None:
    assert serve.check_model(tiny)["model_type"] == "qwen2"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tokenizer.json", "tokenizer.json does not exist, every request would fail"),
        ("chat_template.jinja", "no chat_template.jinja"),
        ("model.safetensors", "no \\*.safetensors"),
        ("config.json", "config.json does not exist"),
        ("generation_config.json", "lacks the list eos_token_id"),
    ],
)
def test_a_missing_file_is_named(broken: Path, name: str, reason: str) -> None:
    (broken / name).unlink()
    with pytest.raises(UserError, match=reason):
        serve.check_model(broken)


def test_what_does_not_fit_is_named(broken: Path) -> None:
    edit(broken / "generation_config.json", eos_token_id=2)
    with pytest.raises(UserError, match="lacks the list eos_token_id"):
        serve.check_model(broken)
    edit(broken / "generation_config.json", eos_token_id=[2, 0])
    edit(broken / "config.json", vocab_size=512)
    with pytest.raises(UserError, match="config.json says 512 and the embedding has"):
        serve.check_model(broken)


def test_a_tokenizer_larger_than_the_embedding(broken: Path) -> None:
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["霜霜"] = 9999
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="tokenizer.json has 10000 tokens"):
        serve.check_model(broken)


def test_a_head_size_without_a_kernel(broken: Path) -> None:
    edit(broken / "config.json", head_dim=16)
    with pytest.raises(UserError, match="attention heads of size 16"):
        serve.check_model(broken)
    serve.check_model(broken, cpu=False)


def test_truncated_weights(broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        serve.check_model(broken)


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
    )


def test_port_in_use(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("launch.serve", str(tiny), "--port", str(port))
    assert done.returncode == 2
    assert re.fullmatch(rf"error: port {port} on 127.0.0.1 is in use: .* --port \d+\n", done.stderr)


def test_dry_run_shows_the_command_and_no_key(tiny: Path) -> None:
    port = str(serve.free_port())
    done = command("launch.serve", str(tiny), "--port", port, "--dry-run", MYLLM_API_KEY="secret-key")
    assert done.returncode == 0, done.stderr
    assert "vllm serve" in done.stdout and "--host 127.0.0.1" in done.stdout
    assert "launch.key_middleware.RequireKey" in done.stdout and "secret-key" not in done.stdout


@pytest.mark.parametrize("module", ["launch.serve", "launch.serve_gate", "launch.serve_reference"])
def test_help_needs_no_heavy_import(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, "--help"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0
    assert not re.search(r"\| +(torch|vllm|transformers)$", done.stderr, re.MULTILINE)


def test_a_made_key_lies_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path))
    monkeypatch.delenv("MYLLM_API_KEY", raising=False)
    key, file = serve.take_key("a/b", 8000)
    assert file is not None and file.read_text().strip() == key and len(key) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("MYLLM_API_KEY", "given")
    assert serve.take_key("x", 1) == ("given", None)


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/health", None, 200),
        ("/v1/models", None, 401),
        ("/invocations", b"Bearer wrong", 401),
        ("/metrics", b"Basic right", 401),
        ("/health/../metrics", None, 401),
        ("/metrics", b"Bearer right", 200),
    ],
)
def test_key_middleware(monkeypatch: pytest.MonkeyPatch, path: str, header: bytes | None, status: int) -> None:
    from launch.key_middleware import RequireKey

    monkeypatch.setenv("VLLM_API_KEY", "right")
    sent: list[dict[str, Any]] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    headers = [(b"authorization", header)] if header else []
    asyncio.run(RequireKey(application)({"type": "http", "path": path, "headers": headers}, receive, send))
    assert sent[0]["status"] == status


def reference(ids: list[int], margins: list[float] | None = None) -> dict[str, Any]:
    margins = margins or [1.0] * len(ids)
    return {"prompt": "p", "prompt_ids": [5], "ids": ids, "margins": margins, "runner_up": [99] * len(ids)}


def test_comparison() -> None:
    served = {"prompt_ids": [5], "ids": [7, 8, 2], "finish": "stop"}
    stops = [2, 0]
    assert serve_gate.compare(reference([7, 8, 2]), served, stops) is None
    assert serve_gate.compare(reference([7, 8, 2]), served | {"ids": [7, 8]}, stops) is None
    # Stopped by length after the same two words is another ending.
    other = serve_gate.compare(reference([7, 8]), served, stops)
    assert other and other["at"] == 2 and not other["tie"]
    other = serve_gate.compare(reference([7, 9, 2]), served, stops)
    assert other and other["at"] == 1 and not other["tie"]
    # Near in the reference is a tie only when the server took the second best.
    near = [1.0, 1e-6, 1.0]
    tie = serve_gate.compare(reference([7, 9, 2], near), served | {"ids": [7, 99, 4]}, stops)
    assert tie and tie["tie"] and tie["margin"] == 1e-6
    other = serve_gate.compare(reference([7, 9, 2], near), served, stops)
    assert other and not other["tie"]
    other = serve_gate.compare(reference([7, 8, 2]), served | {"prompt_ids": [6]}, stops)
    assert other and other["kind"] == "prompt" and not other["tie"]


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"completions": [""], "chats": []}', '{"completions": [], "chats": [[{}]]}']
)
def test_broken_prompts(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(UserError, match="prompts.json"):
        serve_gate.read_prompts(file)


def alive(mark: str) -> list[int]:
    """Processes, not zombies, whose command line or environment holds `mark`."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if mark.encode() in text and state != "Z":
                found.append(int(process.name))
    return found


def all_end(mark: str, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(mark)


NEST = """import subprocess, sys, time
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
time.sleep(60)"""


def test_a_killed_caller_leaves_no_process() -> None:
    mark = f"MYLLM_TEST_MARK={os.getpid()}-{time.monotonic_ns()}"
    caller = (
        f"import sys, time; from launch.guard import Guarded\nGuarded([sys.executable, '-c', {NEST!r}]); time.sleep(60)"
    )
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, "-c", caller], cwd=REPOSITORY, env={**os.environ, name: value}, start_new_session=True
    )
    deadline = time.monotonic() + 20
    while len(alive(mark)) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(alive(mark)) == 4  # caller, guard, program, the program's child
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert all_end(mark)


def test_stop_ends_the_grandchildren_and_keeps_the_status() -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    with Guarded([sys.executable, "-c", NEST, mark], env={**os.environ, "MYLLM_TEST_MARK": mark}):
        time.sleep(1)
        assert len(alive(mark)) >= 3
    assert all_end(mark)
    assert Guarded([sys.executable, "-c", "raise SystemExit(7)"]).wait(20) == 7


@pytest.mark.slow
def test_gate_with_the_real_server(tiny: Path, tmp_path: Path) -> None:
    prompts = {"completions": VERSES, "chats": [[{"role": "user", "content": text}] for text in CHATS]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    asked = [{"id": f"s{n}", "messages": [{"role": "user", "content": CHATS[n]}], "line_length": 5} for n in range(6)]
    (tmp_path / "ask.json").write_text(json.dumps(asked))
    output = tmp_path / "out"
    done = command(
        *("launch.serve_gate", "--model", str(tiny), "--prompts", str(tmp_path / "prompts.json")),
        *("--output", str(output), "--sample-prompts", str(tmp_path / "ask.json")),
        MYLLM_METRICS=str(tmp_path / "metrics.json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((output / "serve.json").read_text())
    assert result["prompts"] == 16 and result["mismatches"] == [] and result["engine"] == "vllm"
    assert result["identical"] + len(result["ties"]) == 16
    samples = json.loads((output / "samples.json").read_text())
    assert [row["id"] for row in samples] == [row["id"] for row in asked]
    assert all(row["line_length"] == 5 and row["prompt"] and isinstance(row["text"], str) for row in samples)
    assert json.loads((tmp_path / "metrics.json").read_text())["identical"] == result["identical"]
    assert "progress 16/16 prompts" in done.stdout
    assert all_end(str(tiny))


@pytest.mark.slow
def test_every_route_asks_for_the_key_and_sigterm_ends_all(tiny: Path, tmp_path: Path) -> None:
    port, key = serve.free_port(), "a-key-for-the-test"
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.serve", str(tiny), "--port", str(port), "--name", "verse"],
            cwd=REPOSITORY,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "MYLLM_API_KEY": key},
        )
    deadline = time.monotonic() + 200
    while "ready after" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    text = log.read_text()
    assert "ready after" in text, text[-2000:]
    assert key not in text

    def status(route: str, method: str, given: str | None) -> int:
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        body = b"{}" if method == "POST" else None
        asked = urllib.request.Request(f"http://127.0.0.1:{port}{route}", body, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=20) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    routes = [(r, m) for r, ms in re.findall(r"Route: (\S+), Methods: (.+)", text) for m in ms.split(", ")]
    assert len(routes) > 10
    for route, method in [*routes, ("/docs", "GET"), ("/openapi.json", "GET"), ("/nothing", "GET")]:
        for given in (None, "wrong"):
            assert status(route, method, given) == (200 if route == "/health" else 401), (route, method, given)
    assert status("/v1/models", "GET", key) == 200
    assert status("/openapi.json", "GET", key) == 404
    process.terminate()
    assert process.wait(30) == 0
    assert all_end(str(tiny)) and serve.port_is_free("127.0.0.1", port)
