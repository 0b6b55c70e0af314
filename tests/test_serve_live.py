"""One real server, started once as a user starts it: its routes, its key, misuse, and its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_serve import all_end
from tiny_qwen2 import make_tiny_qwen2

from artifacts.layout import REPOSITORY
from launch.serve_client import Address, request, stream_fitting, stream_reply
from launch.serve_machine import free_port, port_is_free

pytestmark = pytest.mark.slow
KEY = "a-key-for-the-test"


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    address: Address
    log: Path
    said: Path
    model: Path

    @property
    def port(self) -> int:
        return int(self.address.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`myllm serve` of a tiny model in a run's folder."""
    folder = tmp_path_factory.mktemp("live") / "run"
    model = make_tiny_qwen2(folder / "models" / "tiny")
    (folder / "pipeline.json").write_text("{}")
    port, said = free_port(), folder / "said.txt"
    with said.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "serve", str(model), "--port", str(port), "--name", "verse"],
            cwd=REPOSITORY,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "MYLLM_API_KEY": KEY},
        )
    deadline = time.monotonic() + 240
    while "ready after" not in said.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    try:
        assert "ready after" in said.read_text(), said.read_text()[-3000:]
        log = folder / "logs" / f"serve-tiny-{port}.log"
        yield Server(process, Address(f"http://127.0.0.1:{port}", "verse", KEY), log, said, model)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def status(
    server: Server, route: str, body: bytes | None = None, key: str | None = KEY, method: str | None = None
) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    asked = urllib.request.Request(server.address.url + route, body, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return int(reply.status), reply.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def chat(**values: Any) -> bytes:
    body = {"model": "verse", "messages": [{"role": "user", "content": "春"}], "max_tokens": 4, **values}
    return json.dumps(body).encode()


def lives(server: Server) -> bool:
    return status(server, "/v1/chat/completions", chat())[0] == 200


def test_what_it_says(server: Server) -> None:
    said = server.said.read_text()
    assert f"model 'verse' at {server.address.url}/v1, key $MYLLM_API_KEY" in said
    assert "vllm serve" in said and KEY not in said and KEY not in server.log.read_text()
    command = f"curl {server.address.url}"
    assert command in said
    processes = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not any(KEY.encode() in line for line in processes)


def test_every_route_asks_for_the_key(server: Server) -> None:
    text = server.log.read_text()
    routes = [(r, m) for r, ms in re.findall(r"Route: (\S+), Methods: (.+)", text) for m in ms.split(", ")]
    assert len(routes) > 20
    more = [("/docs", "GET"), ("/openapi.json", "GET"), ("/metrics", "GET"), ("/nothing", "GET"), ("/drain", "POST")]
    for route, method in [*routes, *more]:
        for given in (None, "wrong"):
            found = status(server, route, b"{}" if method == "POST" else None, given, method)[0]
            assert found == (200 if route == "/health" else 401), (route, method, given)
    assert status(server, "/v1/models")[0] == 200
    assert status(server, "/openapi.json")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    connection.request("GET", "/v1/realtime", headers={**upgrade, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert connection.getresponse().status in (401, 403)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chat(messages=[{"role": "user", "content": "乌鸦" * 200}]), 400),
        (chat(messages=[{"role": "user", "content": "明月" * 170_000}]), 400),
        (chat(model="nobody"), 404),
        (b'{"model": "verse", "messages": [', 400),
        (b"\xff\xfe\x00", 400),
        (chat(temperature=-1), 400),
        (chat(max_tokens=0), 400),
        (chat(messages="春"), 400),
        (b"", 400),
    ],
    ids=["over-long", "one-megabyte", "unknown-model", "cut-json", "no-text", "temperature", "length", "type", "empty"],
)
def test_misuse_gets_the_right_answer_and_the_server_lives(server: Server, body: bytes, expected: int) -> None:
    found, text = status(server, "/v1/chat/completions", body)
    assert found == expected, text[:300]
    assert lives(server)


def test_a_client_that_hangs_up(server: Server) -> None:
    """The server stops generating for a client that is gone."""
    options = {"max_tokens": 240, "min_tokens": 240, "temperature": 1.0}
    before = metric(server, "vllm:generation_tokens_total")
    for _ in range(8):
        pieces = stream_reply(server.address, [{"role": "user", "content": "春"}], options)
        next(pieces)
        pieces.close()
    deadline = time.monotonic() + 20
    while (running := metric(server, "vllm:num_requests_running")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running == 0
    assert metric(server, "vllm:generation_tokens_total") - before < 8 * 240
    assert lives(server)


def metric(server: Server, name: str) -> float:
    text = status(server, "/metrics")[1]
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(name, line))


def test_a_long_conversation_forgets_its_oldest_turns(server: Server) -> None:
    messages = [{"role": "system", "content": "诗"}]
    for _ in range(8):
        messages += [{"role": "user", "content": "春眠不觉晓" * 4}, {"role": "assistant", "content": "花落知多少" * 4}]
    messages.append({"role": "user", "content": "明月"})
    before = len(messages)
    "".join(stream_fitting(server.address, messages, {"max_tokens": 8}))
    assert len(messages) < before and messages[0]["role"] == "system" and messages[-1]["content"] == "明月"
    assert messages[1]["role"] == "user"


def test_the_end_drains_and_leaves_nothing(server: Server) -> None:
    """Runs last: SIGTERM while replies are under way; each arrives whole, a new one is refused, all processes end."""
    replies: list[Any] = []

    def ask() -> None:
        body = {"model": "verse", "prompt": "春", "max_tokens": 250, "min_tokens": 250}
        replies.append(request(server.address, "/v1/completions", body)["usage"]["completion_tokens"])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while metric(server, "vllm:num_requests_running") < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.process.terminate()
    for thread in threads:
        thread.join(60)
    assert server.process.wait(60) == 0
    said = server.said.read_text()
    assert "every reply was finished" in said
    # Those that had arrived before the signal are whole; one that came later would have been refused, not cut.
    assert replies and set(replies) == {250}
    assert all_end(str(server.model)) and port_is_free("127.0.0.1", server.port)
