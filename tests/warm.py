"""Programs whose modules are imported once and that are forked for every run: tests start some a dozen times.

    PYTHON -m tests.warm SOCKET MODULE           # serves: MODULE.preload(), then a forked process for each run
    PYTHON -S tests/warm.py SOCKET WORDS…        # MODULE.run(WORDS) there, with the streams, folder, variables of here

Most seconds of a short training or scoring are imports. Every run is a process of its own and does what the program
does; only the modules are there before it starts. Tests that are about processes (a kill, several machines, a command
that fails) run the programs themselves.
"""

import atexit
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

READY = "ready\n"
REPOSITORY = Path(__file__).resolve().parent.parent


@contextmanager
def serving(name: Path, python: Path, module: str, **variables: str) -> Iterator[Path]:
    """The server behind a socket of this name, ready, and its end."""
    from artifacts.processes import die_with_parent

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    log = name.with_name(f"{name.name}.log")
    with log.open("w") as stream:
        server = subprocess.Popen(
            [str(python), "-m", "tests.warm", str(name), module],
            cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream, preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while READY not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        yield name
    finally:
        server.kill()
        server.wait()
        name.unlink(missing_ok=True)  # a socket that nobody listens to would be taken for a server


def command(name: Path, *words: str) -> list[str]:
    """The command that runs the words there."""
    return [sys.executable, "-S", str(Path(__file__).resolve()), str(name), *words]


def ask(name: str, words: list[str]) -> int:
    """Have the words run by the server behind the socket; returns their exit status (128 + N for a signal N)."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(name)
        asked = json.dumps({"words": words, "folder": os.getcwd(), "variables": dict(os.environ)}).encode()
        socket.send_fds(server, [struct.pack("!I", len(asked))], [0, 1, 2])
        server.sendall(asked)
        return int(server.recv(16) or b"1")


def serve(name: str, module: Any) -> None:
    """Import, then fork for every connection."""
    import gc

    module.preload()
    gc.freeze()  # LLaMA-Factory's PPO collects garbage before every forward pass: 0.3 s each over all those modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        print(READY, end="", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                attend(connection, module)
            connection.close()


def attend(connection: socket.socket, module: Any) -> NoReturn:
    """Fork the run and answer with its status; kill it when the caller is gone."""
    from artifacts.processes import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    (length,), asked = struct.unpack("!I", head), b""
    while len(asked) < length:
        asked += connection.recv(1 << 16)
    me = os.getpid()
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        die_with_parent(me)
        end(lambda: run(module, streams, **json.loads(asked)))
    for stream in streams:
        os.close(stream)
    done = os.pidfd_open(child)
    readable, _, _ = select.select([connection, done], [], [])
    if done not in readable:
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(str(status if status >= 0 else 128 - status).encode())
    except OSError:
        pass
    os._exit(0)


def run(module: Any, streams: list[int], words: list[str], folder: str, variables: dict[str, str]) -> None:
    """Become the run: its streams, variables, folder and words. Ends as a program does, by SystemExit."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path[1:1] = [part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part]
    if datasets := sys.modules.get("datasets"):  # it read where its cache is when it was imported
        home = variables.get("HF_HOME", Path.home() / ".cache" / "huggingface")
        datasets.config.HF_DATASETS_CACHE = Path(variables.get("HF_DATASETS_CACHE", Path(home) / "datasets"))
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})  # noqa: S102  # a test's own code
    else:
        module.run(words)
    sys.exit(0)


def end(what: Callable[[], None]) -> NoReturn:
    """Do it and end as Python ends a program, less the second that it takes to tear so many modules down."""
    status = 1
    try:
        what()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if __package__:
        import importlib

        serve(sys.argv[1], importlib.import_module(sys.argv[2]))
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
