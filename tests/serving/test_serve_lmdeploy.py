"""LMDeploy: what can be proved of it without a GPU, with the real package; its run on a GPU is marked `gpu`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen2 import make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.layout import ENVIRONMENTS, REPOSITORY
from launch.serving import engines as serve_engines
from launch.serving import preflight as serve_preflight
from launch.serving import serve
from launch.serving.client import connect, stream_reply
from launch.serving.machine import free_port
from launch.serving.plan import has_gpu

PYTHON = REPOSITORY / ENVIRONMENTS["lmdeploy"] / "bin" / "python"
needs_lmdeploy = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-lmdeploy: make env-lmdeploy")
KEY = "a-key-for-the-test"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatML model in a folder whose name makes LMDeploy guess another template."""
    return make_tiny_qwen2(tmp_path_factory.mktemp("lmdeploy") / "llama2" / "tiny")


@pytest.fixture(scope="module")
def said(tiny: Path) -> dict[str, Any]:
    """What the real package says; see tests/serving/lmdeploy_says.py."""
    plan = serve.make_plan(tiny, free_port(), "lmdeploy")
    words = serve_engines.command(plan)
    assert words[1:3] == ["-m", "launch.serving.lmdeploy_closed"]
    done = subprocess.run(
        [str(PYTHON), "tests/serving/lmdeploy_says.py", str(tiny), json.dumps(words[3:])],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=serve_engines.full_environment(plan, KEY),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("SAYS ")[1])
    return {**found, "plan": plan}


@pytest.mark.slow
@needs_lmdeploy
def test_the_real_command_takes_ours(said: dict[str, Any]) -> None:
    assert (said["host"], said["port"]) == ("127.0.0.1", said["plan"].port)


@pytest.mark.slow
@needs_lmdeploy
def test_every_route_of_the_real_server_asks_for_the_key(said: dict[str, Any]) -> None:
    refused = said["refused"]
    known = {"POST /generate", "GET /terminate", "POST /v1/chat/completions", "GET /docs", "GET /metrics"}
    assert known <= set(refused)
    assert len(refused) > 25
    assert {route for route, found in refused.items() if found != [401, 401]} == {"GET /health"}
    assert said["with_key"] == 404  # no documentation of the routes, even with the key


@pytest.mark.slow
@needs_lmdeploy
def test_the_template_is_the_models_own(said: dict[str, Any], tiny: Path) -> None:
    from transformers import AutoTokenizer

    chat = [{"role": "user", "content": "写一首五绝。"}]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert said["prompt"] == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert said["guessed_prompt"] != said["prompt"]  # what --chat-template hf saves us from
    assert said["ids"] == tokenizer("床前明月光，疑是地上霜。", add_special_tokens=False)["input_ids"]


@pytest.mark.slow
@needs_lmdeploy
def test_the_list_of_architectures_is_read_as_it_is(said: dict[str, Any], tiny: Path) -> None:
    assert said["supported"]
    broken = Path(shutil.copytree(tiny, tiny.parent / "broken"))
    config = json.loads((broken / "config.json").read_text())
    for name in said["architectures"]:
        serve_preflight.check_architecture(broken, {"architectures": [name]}, "lmdeploy")
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UserError, match="lmdeploy does not support the architecture GPT2LMHeadModel"):
        serve_preflight.check_model(broken, cpu=False, engine="lmdeploy")


@needs_lmdeploy
def test_without_a_gpu_it_says_so(tiny: Path) -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "serve",
        str(tiny),
        "--engine",
        "lmdeploy",
        "--port",
        str(free_port()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr == "error: lmdeploy needs a GPU, and this machine shows no NVIDIA GPU: give --engine vllm\n"


@needs_lmdeploy
def test_the_shell_script_runs_the_same_command(tiny: Path) -> None:
    plan = serve.make_plan(tiny, free_port(), "lmdeploy")
    script = subprocess.run(
        ["bash", "launch/serving/serve_lmdeploy.sh", str(tiny), "--dry-run"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PORT": str(plan.port), "MAX_MODEL_LEN": "256"},
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.split() == serve_engines.printed(plan).replace("'", "").split()


@pytest.mark.gpu
@pytest.mark.slow
@needs_lmdeploy
def test_it_serves_on_a_gpu(tiny: Path, tmp_path: Path) -> None:
    """Not run yet on any machine of ours: starts, answers, asks for the key, drains and ends."""
    if not has_gpu():
        pytest.skip("needs an NVIDIA GPU")
    port, log = free_port(), tmp_path / "said.txt"
    command = [sys.executable, "-m", "launch.cli", "serve", str(tiny), "--engine", "lmdeploy", "--port", str(port)]
    with log.open("w") as stream:
        variables = {**os.environ, "MYLLM_API_KEY": KEY}
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=stream, env=variables)
    try:
        deadline = time.monotonic() + 300
        while "ready after" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert "ready after" in log.read_text(), log.read_text()
        os.environ["MYLLM_API_KEY"] = KEY
        address = connect(f"http://127.0.0.1:{port}")
        assert "".join(stream_reply(address, [{"role": "user", "content": "春"}], {"max_tokens": 8}))
    finally:
        os.environ.pop("MYLLM_API_KEY", None)
        process.terminate()
        assert process.wait(60) == 0
