"""One real server, started once as a user starts it: its routes, its key, misuse, and its end."""

from __future__ import annotations

import codecs
import http.client
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_serve import all_end
from tiny_qwen2 import make_tiny_qwen2

from artifacts.layout import ENVIRONMENTS, REPOSITORY
from artifacts.processes import free_port
from launch.serving.client import Address, request, stream_fitting, stream_reply
from launch.serving.machine import port_is_free

pytestmark = pytest.mark.slow
KEY = "a-key-for-the-test"
# Nothing may leave the machine, and a proxy of its environment is not for 127.0.0.1: this one does not answer.
NO_WAY_OUT = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
CONTEXT = 2048  # long enough for a reply to be stopped, or drained


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
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
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
        (chat(messages=[{"role": "user", "content": "乌鸦" * 2000}]), 400),
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
    options = {"max_tokens": 1500, "min_tokens": 1500, "temperature": 1.0}
    before = metric(server, "vllm:generation_tokens_total")
    for _ in range(8):
        pieces = stream_reply(server.address, [{"role": "user", "content": "春"}], options)
        next(pieces)
        pieces.close()
    deadline = time.monotonic() + 20
    while (running := metric(server, "vllm:num_requests_running")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running == 0
    assert metric(server, "vllm:generation_tokens_total") - before < 8 * 1500
    assert lives(server)


def metric(server: Server, name: str) -> float:
    text = status(server, "/metrics")[1]
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(name, line))


def test_a_long_conversation_forgets_its_oldest_turns(server: Server) -> None:
    messages = [{"role": "system", "content": "诗"}]
    for _ in range(30):
        messages += [
            {"role": "user", "content": "乌鸦春眠不觉晓" * 6},
            {"role": "assistant", "content": "乌鸦花落知多少" * 6},
        ]
    messages.append({"role": "user", "content": "明月"})
    before = len(messages)
    "".join(stream_fitting(server.address, messages, {"max_tokens": 8}))
    assert len(messages) < before and messages[0]["role"] == "system" and messages[-1]["content"] == "明月"
    assert messages[1]["role"] == "user"


def chat_in_terminal(server: Server, *arguments: str, text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", "chat", "--server", server.address.url, *arguments]
    variables = {**os.environ, **NO_WAY_OUT, "MYLLM_API_KEY": KEY}
    return subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=REPOSITORY, env=variables, timeout=120
    )


def test_chat_through_a_pipe(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    lines = f"春\n夏\n/undo\n/system 诗人\n/set max_tokens 5\n秋\n/save {file}\n/exit\n冬\n"
    done = chat_in_terminal(server, "--max-tokens", "8", "--seed", "1", "--temperature", "0", text=lines)
    assert done.returncode == 0, done.stderr
    messages = json.loads(file.read_text())
    assert [row["role"] for row in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [row["content"] for row in messages if row["role"] == "user"] == ["春", "秋"]
    assert messages[2]["content"] in done.stdout and messages[4]["content"] in done.stdout
    greedy = {"temperature": 0, "top_p": 0.9, "max_tokens": 8, "seed": 1}
    assert messages[2]["content"] == "".join(stream_reply(server.address, messages[1:2], greedy))


def test_chat_in_a_pipe_says_what_went_wrong(server: Server) -> None:
    done = chat_in_terminal(server, "--max-tokens", "4", text="月" * 3000 + "\n/sett\n春\n")
    assert done.returncode == 2 and done.stdout.strip()
    assert "error: this turn alone is longer than the model's context" in done.stderr
    assert "there is no command /sett (did you mean '/set'?)" in done.stderr


class HangUp(threading.Event):
    """The event of a client that hangs up, and when the last one did (seconds since the epoch)."""

    at = math.inf


@pytest.fixture
def endless() -> Iterator[tuple[str, HangUp]]:
    """A server whose one reply goes on until the client hangs up, and the event of that."""
    hung_up = HangUp()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "tiny"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    chunk = json.dumps({"choices": [{"delta": {"content": "花"}}]})
                    self.wfile.write(f"data: {chunk}\n\n".encode())
                    time.sleep(0.05)
            except OSError:
                hung_up.at = time.time()
                hung_up.set()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", hung_up
        server.shutdown()


def test_chat_on_a_terminal_stops_a_reply(endless: tuple[str, HangUp]) -> None:
    """A pseudo-terminal: the reply streams, Ctrl-C stops it and keeps what was said, Ctrl-D leaves."""
    url, hung_up = endless
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "launch.cli", "chat", "--server", url, "--temperature", "1"]
    variables = {**os.environ, "MYLLM_API_KEY": KEY, "TERM": "dumb"}
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=REPOSITORY, env=variables,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip  # `make test &` in a script hands SIGINT down as ignored
    os.close(terminal)
    text, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")  # the terminal echoes byte by byte

    def read() -> None:
        nonlocal text
        if select.select([screen], [], [], 0.1)[0]:
            text += decoder.decode(os.read(screen, 1 << 16))

    def until(mark: str, seconds: float = 60) -> str:
        nonlocal text
        deadline = time.monotonic() + seconds
        while mark not in text and time.monotonic() < deadline:
            read()
        assert mark in text, text
        before, _, text = text.partition(mark)
        return before

    try:
        assert "/help for commands" in until("> ")
        os.write(screen, "春\n".encode())
        until("春\r\n")  # the terminal's echo
        until("花花")
        os.kill(process.pid, signal.SIGINT)
        assert set(until(" [stopped]")) <= {"花", "^", "C"}
        assert hung_up.wait(20)
        until("> ")
        os.write(screen, b"/show\n")
        assert "user: 春" in until("assistant: 花")
        until("> ")
        os.write(screen, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(screen)


CLIENTS = REPOSITORY / ENVIRONMENTS["clients"] / "bin" / "python"
needs_clients = pytest.mark.skipif(not CLIENTS.exists(), reason="needs .venv-clients: make env-clients")


def client(server: Server, *arguments: str, script: str | None = None) -> str:
    """What an example prints, run as its docstring says, offline."""
    variables = {**os.environ, **NO_WAY_OUT, "MYLLM_API_KEY": KEY, "PYTHONPATH": str(REPOSITORY / "examples")}
    command = [str(CLIENTS), "-W", "error::DeprecationWarning", *(["-c", script] if script else []), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=variables, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_clients
def test_langchain_remembers_and_retrieves(server: Server) -> None:
    options = ("--server", server.address.url, "--max-tokens", "8")
    said = client(server, "examples/langchain_chat.py", *options, "春", "夏")
    assert "> 春" in said and "> 夏" in said and "[4 messages remembered]" in said
    said = client(server, "examples/langchain_chat.py", *options, "--folder", "examples/poetry/notes", "李白写过什么？")
    assert said.startswith("[poets.md] 李白，字太白")


@needs_clients
def test_langchain_sends_what_it_remembers(server: Server) -> None:
    """The second prompt is longer than the first by the first turn."""
    script = f"""
import os
os.environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1")  # as examples/server.py does
import langchain_chat
from server import Address
chain = langchain_chat.remembering(Address({server.address.url!r}, "verse", {KEY!r}), 8)
session = {{"configurable": {{"thread_id": "one"}}}}
for _ in range(2):
    last = chain.invoke({{"messages": [("human", "春")]}}, session)["messages"][-1]
    print(last.usage_metadata["input_tokens"])
"""
    first, second = map(int, client(server, script=script).split())
    assert second > first + 8


@needs_clients
def test_autogen_team_of_two(server: Server) -> None:
    options = ("--server", server.address.url, "--max-tokens", "12", "--turns", "4")
    said = client(server, "examples/autogen_team.py", *options, "写一首五绝。")
    assert re.findall(r"^(user|poet|editor): ", said, re.MULTILINE) == ["user", "poet", "editor", "poet", "editor"]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


needs_a_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")


@contextmanager
def chat_page(folder: Path, *models: str) -> Iterator[int]:
    """`myllm chat-page` for models as LABEL=ADDRESS; its port."""
    port, said = free_port(), folder / "page.txt"
    with said.open("w") as stream:
        page = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "chat-page", *models, "--port", str(port)],
            cwd=REPOSITORY,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "MYLLM_API_KEY": KEY, "MYLLM_CACHE": str(folder)},
        )
    try:
        deadline = time.monotonic() + 120
        while "ready: " not in said.read_text() and page.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
        assert "ready: " in said.read_text() and KEY not in said.read_text(), said.read_text()
        yield port
    finally:
        page.terminate()
        page.wait(60)
    assert all_end(f"--port\0{port}")


def browser_says(port: int, folder: Path, *options: str) -> Any:
    """What tests/serving/browser_says.py saw of the page on this port."""
    done = subprocess.run(
        [
            str(CLIENTS),
            "tests/serving/browser_says.py",
            f"http://127.0.0.1:{port}",
            str(folder),
            str(CHROMIUM),
            *options,
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "MYLLM_API_KEY": KEY},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("SAYS ")[1])


@needs_clients
@needs_a_browser
def test_the_chat_page_stops_a_reply(endless: tuple[str, HangUp], tmp_path: Path) -> None:
    """In both columns, whose replies cannot end by themselves, however slow the browser is; the server sees it."""
    url, hung_up = endless
    with chat_page(tmp_path, f"one={url}", f"two={url}") as port:
        seen = browser_says(port, tmp_path, "--stop")
    assert seen["streams"] and seen["stopped"]
    assert hung_up.at < seen["stopped_by"], "the stop hangs up, not the reload after it"
    assert [set("".join(said)) for said in seen["before"]] == [{"花"}] * 2
    assert seen["kept"], (seen["before"], seen["after"])


@needs_clients
@needs_a_browser
def test_the_chat_page_in_a_browser(server: Server, tmp_path: Path) -> None:
    """See tests/serving/browser_says.py for what is done: type, an input method, stream, reload, dark, phone, clear."""
    with chat_page(tmp_path, f"one={server.address.url}", f"two={server.address.url}") as port:
        seen = browser_says(port, tmp_path)
        assert metric(server, "vllm:num_requests_running") == 0
        unguarded = page_routes_without_key(port)
    assert seen["refused"] == 401 and unguarded == []
    assert seen["columns"] == 2 and seen["asked"] == [["写一首五绝。"]] * 2
    assert seen["streams"] and seen["replies"] and seen["emptied"]
    assert seen["composed"] == ["春风", 1] and seen["sent_after_composing"]
    assert seen["kept"], seen["after_reload"]
    assert seen["switched"] and seen["dark_where_preferred"]
    assert not seen["wide"] and not seen["wide_on_a_phone"] and seen["box_in_sight_on_a_phone"]
    assert seen["greedy"][0] == seen["greedy"][1] != []
    assert seen["cleared"] and seen["cleared_after_reload"]
    assert (seen["english"], seen["chinese"]) == ("Send", "发送")
    assert seen["foreign"] == []  # nothing is loaded from elsewhere
    # A reload breaks off the page's own streams, of which Gradio tells.
    assert [text for text in seen["errors"] if "abort" not in text.lower() and "errored out" not in text] == []


def page_routes_without_key(port: int) -> list[str]:
    """Routes of the page, all that Gradio registers among them, that answer otherwise than 401 without a key."""
    script = """
import os, json
os.environ["MYLLM_API_KEY"] = "x"
from launch.chat.gradio_page import application
from launch.serving.client import Address
guarded = application({"m": Address("http://127.0.0.1:1", "m", "x")}, "x")
def walk(routes):
    for route in routes:
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if getattr(inner, "routes", None):
            yield from walk(inner.routes)
        if getattr(route, "path", None) is not None:
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                yield method + " " + (route.path or "/")
import launch.chat.gradio_page as page, inspect
app = inspect.getclosurevars(guarded.app).nonlocals["app"]
print("SAYS " + json.dumps(sorted(set(walk(app.routes)))))
"""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([str(CLIENTS), "-c", script], capture_output=True, text=True, env=variables, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    routes = json.loads(done.stdout.split("SAYS ")[1])
    assert len(routes) > 20, routes
    bad = []
    for route in routes:
        method, _, path = route.partition(" ")
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", b"{}" if method == "POST" else None, method=method
        )
        try:
            with urllib.request.urlopen(asked, timeout=20) as reply:
                found = int(reply.status)
        except urllib.error.HTTPError as error:
            found = error.code
        if found != 401 and path != "/health":
            bad.append(f"{route}: {found}")
    return bad


@pytest.mark.skipif(not (REPOSITORY / ".venv").exists(), reason="needs .venv")
def test_the_benchmark_counts_every_answer(server: Server) -> None:
    from benchmarks.serve import put_load, table

    load = put_load(server.address, [[{"role": "user", "content": "春"}]], clients=32, seconds=3)
    assert load.errors == [] and len(load.whole) >= 32 and load.tokens > 0
    assert f"| whole answers, lost ones | {len(load.whole):,}, 0 |" in table(load, 32, 1.0, 1.0, (1, 1), "x")


def test_the_end_drains_and_leaves_nothing(server: Server) -> None:
    """Runs last: SIGTERM while replies are under way; each arrives whole, a new one is refused, all processes end."""
    replies: list[Any] = []

    def ask() -> None:
        body = {"model": "verse", "prompt": "春", "max_tokens": 1000, "min_tokens": 1000}
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
    assert replies and set(replies) == {1000}
    assert all_end(str(server.model)) and port_is_free("127.0.0.1", server.port)
