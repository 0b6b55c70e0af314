"""A tiny model, a server that answers, and OpenCompass without the seconds of its imports, for the tests of scoring."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from scoring_kit import Chat
from tiny_qwen2 import make_tiny_qwen2

from artifacts.layout import ENVIRONMENTS, REPOSITORY
from tests import warm as warm_programs


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment `eval` whose `python` and `opencompass` are those of a server that has imported all they need."""
    folder = tmp_path_factory.mktemp("warm")
    python, module = REPOSITORY / ENVIRONMENTS["eval"] / "bin" / "python", "tests.scoring.warm_opencompass"
    variables = {"HF_HOME": str(folder), "MPLCONFIGDIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
    with warm_programs.serving(folder / "socket", python, module, **variables) as server:
        (folder / "bin").mkdir()
        for name, words in (("python", ()), ("opencompass", ("opencompass",))):
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(warm_programs.command(server, *words))} "$@"\n')
            program.chmod(0o755)
        yield folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("score") / "tiny")


@pytest.fixture
def server() -> Any:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    Chat.status = 200
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()
