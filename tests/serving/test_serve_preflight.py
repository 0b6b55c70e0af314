"""Every fault that an engine swallows is one line before it starts: broken folders, machines and options."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen2 import make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.layout import ENVIRONMENTS, REPOSITORY
from artifacts.processes import free_port
from launch.serving import engines as serve_engines
from launch.serving import machine as serve_machine
from launch.serving import preflight as serve_preflight
from launch.serving import serve
from launch.serving.plan import SMALLEST_CACHE_MB, Plan, cache_mb, cores_of_ranks

needs_engine = pytest.mark.skipif(
    not (REPOSITORY / ENVIRONMENTS["serve"]).exists(), reason="needs .venv-serve: make env-serve"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture()
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the model to break."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder: Path, reason: str, **options: Any) -> None:
    """The folder is refused, in one line, for that reason."""
    with pytest.raises(UserError, match=reason) as found:
        serve_preflight.check_model(folder, **options)
    assert "\n" not in str(found.value)


def test_a_whole_folder_passes(tiny: Path) -> None:
    assert serve_preflight.check_model(tiny)["model_type"] == "qwen2"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tokenizer.json", "tokenizer.json does not exist, so every request would fail"),
        ("chat_template.jinja", "no chat_template.jinja"),
        ("model.safetensors", "no \\*.safetensors"),
        ("config.json", "config.json does not exist"),
        ("generation_config.json", "lacks eos_token_id"),
    ],
)
def test_a_missing_file_is_named(broken: Path, name: str, reason: str) -> None:
    (broken / name).unlink()
    refused(broken, reason)


def test_folders_that_are_none(tmp_path: Path, broken: Path) -> None:
    refused(tmp_path / "nothing", "does not exist: run the stage")
    refused(Path("Qwen/Qwen2-0.5B"), "hub names are not supported: download it first")
    (broken / "config.json").rename(broken / "adapter_config.json")
    refused(broken, "is an adapter, not a model: merge it first")


def test_stops(broken: Path) -> None:
    file = broken / "generation_config.json"
    edit(file, eos_token_id=2)
    serve_preflight.check_model(broken)
    edit(file, eos_token_id=[0])
    refused(broken, r"lacks 2, the <\|im_end\|> that tokenizer_config.json ends a turn with")
    edit(file, eos_token_id=[2, 99999])
    refused(broken, "eos_token_id 99999 is not in the vocabulary")
    edit(file, eos_token_id=[])
    refused(broken, "lacks eos_token_id")


def test_vocabulary_against_embedding(broken: Path) -> None:
    edit(broken / "config.json", vocab_size=512)
    refused(broken, "config.json says 512 and the embedding has")
    edit(broken / "config.json", vocab_size=serve_preflight.read_weights(broken).shapes["model.embed_tokens.weight"][0])
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["霜霜"] = 9999
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(broken, "tokenizer.json has 10000 tokens")


@needs_engine
def test_a_tokenizer_that_transformers_5_would_split_otherwise(broken: Path) -> None:
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "NFKC"}}))
    refused(broken, "does not split text as Qwen2 does")
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{N}{1,3}"}
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(broken, "does not split text as Qwen2 does")


@needs_engine
def test_an_architecture_that_the_engine_does_not_know(broken: Path) -> None:
    edit(broken / "config.json", architectures=["Qwen2ForCausalLm"])
    refused(broken, "vllm does not support the architecture Qwen2ForCausalLm .did you mean 'Qwen2ForCausalLM'")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for message in messages %}{{ message", "the chat template fails"),
        ("{{ messages[5].content }}", "the chat template fails"),
        ("{{ raise_exception('only tools') }}", "fails .only tools"),
        ("<|im_start|>assistant", "drops the user's text"),
    ],
)
def test_a_broken_template(broken: Path, template: str, reason: str) -> None:
    (broken / "chat_template.jinja").write_text(template)
    refused(broken, reason)


def test_a_template_that_marks_what_the_assistant_says(broken: Path) -> None:
    text = (broken / "chat_template.jinja").read_text()
    (broken / "chat_template.jinja").write_text(text + "{%- generation -%}{%- endgeneration -%}")
    serve_preflight.check_model(broken)


def test_a_head_size_without_a_kernel(broken: Path) -> None:
    edit(broken / "config.json", head_dim=16)
    refused(broken, "attention heads of size 16")
    serve_preflight.check_model(broken, cpu=False)


def test_two_thetas(broken: Path) -> None:
    edit(broken / "config.json", rope_theta=10000.0, rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
    refused(broken, "rope_theta is 10000.0 and 1000000.0 under rope_parameters")


def test_weights_that_are_not_whole(broken: Path) -> None:
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    refused(broken, "not a complete safetensors file")
    weights.write_bytes(whole[:-10])
    refused(broken, "bytes, but its header says")
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(broken, "a Git LFS pointer")
    weights.write_bytes(whole)
    edit(broken / "config.json", num_hidden_layers=3)
    refused(broken, "config.json says 3 layers, but the weights have 2")


def test_shards_and_other_formats(broken: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "lm_head.weight": "model-2.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(broken, "names model-2.safetensors for lm_head.weight, which is missing")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    refused(broken, "pytorch_model.bin is a pickle, save it as safetensors")


def plan(folder: Path, **values: Any) -> Plan:
    return Plan(
        **{"engine": "vllm", "folder": folder, "name": "m", "host": "127.0.0.1", "port": 1, "length": 256} | values
    )


def test_memory(tiny: Path) -> None:
    weights = serve_preflight.read_weights(tiny)
    serve_machine.check_memory(plan(tiny), weights, 10_000)
    with pytest.raises(
        UserError, match="but only 1,000 MB are free: stop other programs, or give a --max-model-len below 256"
    ):
        serve_machine.check_memory(plan(tiny), weights, 1_000)
    large = serve_preflight.Weights({}, {"BF16"}, 7_000_000_000)
    with pytest.raises(UserError, match="weights 26,702"):
        serve_machine.check_memory(plan(tiny), large, 20_000)
    assert 0 < serve_machine.available_mb() < 10_000_000


def test_gpus(tiny: Path) -> None:
    large = serve_preflight.Weights({}, {"BF16"}, 7_000_000_000)
    gpu = plan(tiny, cpu=False, tp=2)
    serve_machine.check_gpus(gpu, large, [8000, 8000])
    with pytest.raises(UserError, match="--tp 2: this machine shows 1 GPUs"):
        serve_machine.check_gpus(gpu, large, [80000])
    with pytest.raises(UserError, match="needs 6,675 MB of weights on each GPU, but only 5,000 MB are free"):
        serve_machine.check_gpus(gpu, large, [8000, 5000])
    with pytest.raises(UserError, match="needs 13,351 MB of weights on each GPU"):
        serve_machine.check_gpus(replace(gpu, dtype="float32"), large, [8000, 8000])


def test_tensor_parallel_that_does_not_divide(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    serve_machine.check_parallel(tiny, config, 2)
    with pytest.raises(UserError, match="--tp 3 does not divide num_attention_heads 4"):
        serve_machine.check_parallel(tiny, config, 3)
    with pytest.raises(UserError, match="--tp 2: .* has 3 key-value heads"):
        serve_machine.check_parallel(tiny, config | {"num_key_value_heads": 3}, 2)
    with pytest.raises(UserError, match="may use .* cores, but each rank needs one"):
        cores_of_ranks(10_000)


def test_cache_holds_two_long_conversations() -> None:
    config = {"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "hidden_size": 1536}
    token = 28 * 2 * 2 * 128 * 4
    assert cache_mb(config, 32768) * 2**20 >= 2 * 32768 * token
    assert cache_mb(config, 256) == SMALLEST_CACHE_MB


@pytest.mark.parametrize("option", ["api-key=x", "api-k=x", "--host=0.0.0.0", "served_model_name=x", "port=1", "=x"])
def test_options_that_would_open_or_move_the_server(option: str) -> None:
    with pytest.raises(UserError, match="`myllm serve` sets "):
        serve_engines.engine_options("vllm", [option])
    words = serve_engines.engine_options("vllm", ["max_num_seqs=8", "enable-log-requests"])
    assert words == ("--max-num-seqs", "8", "--enable-log-requests")


def myllm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "launch.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, **variables})


def test_ports(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = myllm("serve", str(tiny), "--port", str(port))
    assert done.returncode == 2
    assert re.fullmatch(rf"error: port {port} on 127.0.0.1 is in use: .* --port \d+\n", done.stderr)
    for wrong in (0, 70000):
        with pytest.raises(UserError, match="ports go from 1 to 65535"):
            serve_machine.check_port("127.0.0.1", wrong)


def test_lengths(tiny: Path) -> None:
    for wrong in (0, 257):
        with pytest.raises(UserError, match=f"--max-model-len {wrong} must be between 1 and the model's 256"):
            serve.make_plan(tiny, free_port(), length=wrong)


@needs_engine
def test_dry_run_shows_the_command_and_no_key(tiny: Path) -> None:
    port = str(free_port())
    options = ("--port", port, "--dry-run", "--set", "max-num-seqs=7")
    done = myllm("serve", str(tiny), *options, MYLLM_API_KEY="secret-key")
    assert done.returncode == 0, done.stderr
    assert "vllm serve" in done.stdout and "--host 127.0.0.1" in done.stdout and "--max-num-seqs 7" in done.stdout
    assert "launch.serving.key.RequireKey" in done.stdout and "secret-key" not in done.stdout
    lan = myllm("serve", str(tiny), "--port", port, "--dry-run", "--lan")
    assert "--host 0.0.0.0" in lan.stdout


@needs_engine
@pytest.mark.parametrize("tp", ["1", "2"])
def test_the_shell_script_runs_the_same_command(tiny: Path, tp: str) -> None:
    import os

    port = str(free_port())
    ours = myllm("serve", str(tiny), "--port", port, "--tp", tp, "--dry-run")
    assert ours.returncode == 0, ours.stderr
    script = subprocess.run(
        ["bash", "launch/serving/serve_vllm.sh", str(tiny), "--dry-run"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PORT": port, "TP": tp, "MAX_MODEL_LEN": "256"},
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.split() == ours.stdout.replace("'", "").split()


@pytest.mark.parametrize(
    "module", ["launch.serving.serve", "launch.serving.gate", "launch.serving.reference", "launch.chat.terminal"]
)
def test_help_needs_no_heavy_import(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, "--help"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0
    assert re.search("example|^    (python|myllm)", done.stdout, re.MULTILINE)
    assert not re.search(r"\| +(torch|vllm|transformers)$", done.stderr, re.MULTILINE)


def test_a_made_key_lies_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path))
    monkeypatch.delenv("MYLLM_API_KEY", raising=False)
    key, file = serve.take_key(8000)
    assert file is not None and file.read_text().strip() == key and len(key) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("MYLLM_API_KEY", "given")
    assert serve.take_key(1) == ("given", None)
    monkeypatch.setenv("MYLLM_API_KEY", "two words")
    with pytest.raises(UserError, match="ASCII without spaces"):
        serve.take_key(1)


def test_logs_lie_in_the_run(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x" / "models" / "dpo"
    (tmp_path / "runs" / "x" / "pipeline.json").parent.mkdir(parents=True)
    (tmp_path / "runs" / "x" / "pipeline.json").write_text("{}")
    assert serve.log_file(plan(folder, port=7)) == tmp_path / "runs" / "x" / "logs" / "serve-dpo-7.log"
    assert "x" not in serve.log_file(plan(tmp_path / "elsewhere" / "m")).parts
