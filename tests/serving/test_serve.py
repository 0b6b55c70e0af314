"""Serving: the key, the end of all processes, how the gate compares, and the gate with the real server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen2 import make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.guard import Guarded
from artifacts.layout import REPOSITORY
from launch.serving import client as serve_client
from launch.serving import gate as serve_gate
from launch.serving import serve
from launch.serving.client import Address
from launch.serving.key import RequireKey

CHATS = ["写一句五言诗", "你好", "春天", "明月", "思故乡", "黄河", "花落", "更上一层楼", "啼鸟", "千里"]
VERSES = ["床前明月光，", "白日依山尽，", "春", "秋风", "明月", "床前明月光，疑是", "欲穷", "更上", "举头", "黄河"]


def answer(middleware: RequireKey, path: str, **headers: bytes) -> int:
    """The status that a guarded application answers; the application itself always says 200."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    given = [(name.encode(), value) for name, value in headers.items()]
    asyncio.run(middleware({"type": "http", "path": path, "headers": given}, receive, send))
    return int(sent[0]["status"])


async def says_yes(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/health", b"", 200),
        ("/v1/models", b"", 401),
        ("/invocations", b"Bearer wrong", 401),
        ("/metrics", b"Basic right", 401),
        ("/metrics", b"Basic " + base64.b64encode(b"me:right"), 401),
        ("/health/../metrics", b"", 401),
        ("/drain", b"", 401),
        ("/metrics", b"Bearer right", 200),
        ("/metrics", b"bearer right", 200),
    ],
)
def test_key_middleware(path: str, header: bytes, status: int) -> None:
    assert answer(RequireKey(says_yes, "right"), path, authorization=header) == status


def test_key_middleware_for_a_browser() -> None:
    page = RequireKey(says_yes, "right", browser=True)
    right = b"Basic " + base64.b64encode(b"any one:right")
    assert answer(page, "/", authorization=b"Basic " + base64.b64encode(b"right:wrong")) == 401
    assert answer(page, "/", authorization=b"Basic =") == 401
    assert answer(page, "/", authorization=right) == 200
    assert answer(page, "/", authorization=right, host=b"here:1", origin=b"http://here:1") == 200
    assert answer(page, "/", authorization=right, host=b"here:1", origin=b"http://elsewhere") == 403


def test_an_empty_key_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY is empty"):
        RequireKey(says_yes)


def test_drain_waits_for_what_runs_and_refuses_what_comes() -> None:
    order: list[Any] = []

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        order.append("reply")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(middleware: RequireKey, path: str) -> None:
        async def send(message: dict[str, Any]) -> None:
            if "status" in message:
                order.append((path, message["status"]))

        headers = [(b"authorization", b"Bearer right")]
        await middleware({"type": "http", "path": path, "headers": headers}, None, send)  # type: ignore[arg-type]

    async def play() -> None:
        middleware = RequireKey(slow, "right")
        first = asyncio.create_task(ask(middleware, "/v1/completions"))
        await asyncio.sleep(0.05)
        drain = asyncio.create_task(ask(middleware, "/drain"))
        await asyncio.sleep(0.05)
        await ask(middleware, "/v1/models")
        await asyncio.gather(first, drain)

    asyncio.run(play())
    assert order == [("/v1/models", 503), "reply", ("/v1/completions", 200), ("/drain", 204)]


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


def how_many_start(mark: str, count: int) -> int:
    """How many processes with the mark are alive, waited for until there are `count`."""
    deadline = time.monotonic() + 20
    while len(alive(mark)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(alive(mark))


NEST = """import subprocess, sys, time
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
time.sleep(60)"""


def test_a_killed_caller_leaves_no_process() -> None:
    mark = f"MYLLM_TEST_MARK={os.getpid()}-{time.monotonic_ns()}"
    caller = (
        "import sys, time; from artifacts.guard import Guarded\n"
        f"Guarded([sys.executable, '-c', {NEST!r}]); time.sleep(60)"
    )
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, "-c", caller], cwd=REPOSITORY, env={**os.environ, name: value}, start_new_session=True
    )
    assert how_many_start(mark, 4) == 4  # caller, guard, program, the program's child
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert all_end(mark)


def test_stop_ends_the_grandchildren_and_keeps_the_status() -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    with Guarded([sys.executable, "-c", NEST, mark], env={**os.environ, "MYLLM_TEST_MARK": mark}):
        assert how_many_start(mark, 3) >= 3
    assert all_end(mark)
    assert Guarded([sys.executable, "-c", "raise SystemExit(7)"]).wait(20) == 7


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.mark.slow
def test_gate_with_the_real_server(tiny: Path, tmp_path: Path) -> None:
    prompts = {"completions": VERSES, "chats": [[{"role": "user", "content": text}] for text in CHATS]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    asked = [{"id": f"s{n}", "messages": [{"role": "user", "content": CHATS[n]}], "line_length": 5} for n in range(6)]
    (tmp_path / "ask.json").write_text(json.dumps(asked))
    output = tmp_path / "out"
    done = command(
        *("launch.serving.gate", "--model", str(tiny), "--prompts", str(tmp_path / "prompts.json")),
        *("--output", str(output), "--sample-prompts", str(tmp_path / "ask.json")),
        MYLLM_METRICS=str(tmp_path / "metrics.json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((output / "serve.json").read_text())
    assert result["prompts"] == 20 and result["mismatches"] == [] and result["engine"] == "vllm"
    assert result["identical"] + len(result["ties"]) == 20
    samples = json.loads((output / "samples.json").read_text())
    assert [row["id"] for row in samples] == [row["id"] for row in asked]
    assert all(row["line_length"] == 5 and row["prompt"] and isinstance(row["text"], str) for row in samples)
    assert json.loads((tmp_path / "metrics.json").read_text())["identical"] == result["identical"]
    assert "progress 20/20 prompts" in done.stdout
    assert all_end(str(tiny))


@pytest.mark.slow
def test_gate_with_tensor_parallel_on_two_cores(tiny: Path, tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    prompts = {"completions": VERSES, "chats": [[{"role": "user", "content": text}] for text in CHATS]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    options = ("--model", str(tiny), "--prompts", str(tmp_path / "prompts.json"), "--output", str(tmp_path / "out"))
    done = command("launch.serving.gate", *options, "--tp", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out" / "serve.json").read_text())
    assert result["models"][0]["tp"] == 2 and result["mismatches"] == []
    assert result["identical"] + len(result["ties"]) == 20
    assert all_end(str(tiny))


def test_a_server_that_dies_tells_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    address = Address("http://127.0.0.1:1", "m", "k")
    said = "print('usage: vllm'); print('vllm: error: unrecognized arguments: --nonsense'); raise SystemExit(2)"
    with Guarded([sys.executable, "-c", said], log=log) as server:
        with pytest.raises(UserError, match=r"ended with status 2 after \d+ s: read .*error: unrecognized arguments"):
            serve.wait_until_ready(server, address, log)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with Guarded([sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log") as server:
        with pytest.raises(UserError, match="was not ready after 1 s"):
            serve.wait_until_ready(server, Address("http://127.0.0.1:1", "m", "k"), tmp_path / "log", timeout=1)


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path))
    monkeypatch.delenv("MYLLM_API_KEY", raising=False)
    key, file = serve.take_key(8123)
    assert serve_client.find_key("http://127.0.0.1:8123") == key
    assert serve_client.find_key("http://elsewhere:8123") == ""  # a key of this machine goes to no other
    monkeypatch.setenv("MYLLM_API_KEY", "given")
    assert serve_client.find_key("http://elsewhere:8123") == "given"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("127.0.0.1", "write an address with its port"),
        ("http://127.0.0.1:99999", "write an address with its port"),
        ("http://127.0.0.1:1", "no server answers at http://127.0.0.1:1 .*: start one with `myllm serve MODEL`"),
    ],
)
def test_servers_that_are_none(url: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        serve_client.connect(url)


def test_something_else_that_answers(tmp_path: Path) -> None:
    """A web server that is no model server, and one that hangs up in the middle of a reply."""
    stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    stream += b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    for reply, action, reason in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "connect", "is not an OpenAI-compatible server"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "connect", "is not an OpenAI-compatible server"),
        (stream, "stream", "stopped in the middle of a reply"),
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"

            def answer(listener: socket.socket = listener, reply: bytes = reply) -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(reply)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(UserError, match=reason):
                if action == "connect":
                    serve_client.connect(url)
                else:
                    list(serve_client.stream_reply(Address(url, "m", "k"), [], {}))
            thread.join(10)
