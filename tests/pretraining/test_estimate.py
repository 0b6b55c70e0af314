"""Estimates: published counts, the models that Megatron and Hugging Face build, and what the command prints."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import UserError
from launch.pretraining import estimate, gpus, model_size, recipe

REPOSITORY = Path(__file__).resolve().parents[2]
PUBLISHED = {
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "llama2-1.1b": 1_100_048_384,
    "qwen3-0.6b": 596_049_920,
    "llama3.2-1b": 1_235_814_400,
}


def model(name: str) -> model_size.Model:
    return model_size.model_of(recipe.load_recipe(name, "zh-10b", "gpu-1-80gb"))


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_counts(name, count):
    assert model_size.parameters(model(name)) == count


@pytest.mark.parametrize("name", recipe.names("models"))
def test_counts_are_hugging_faces(name):
    """The model is built on the meta device: shapes, no numbers."""
    import torch
    import transformers

    shape = model(name)
    family = {"qwen2": "Qwen2", "qwen3": "Qwen3"}.get(name.partition("-")[0], "Llama")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        built = getattr(transformers, f"{family}ForCausalLM")(config)
    assert sum(p.numel() for p in built.parameters()) == model_size.parameters(shape)


BUILT = """
import argparse, json, sys; sys.path.insert(0, ".")
from artifacts import megatron_on_cpu
megatron_on_cpu.patch_torch()
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from converters.megatron_forward import build
from launch.pretraining import flags, model_size, recipe
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel(); model_parallel_cuda_manual_seed(0)
counts = {}
for name in recipe.names("models"):
    found = recipe.load_recipe(name, "demo", "gpu-1-80gb")
    args = flags.parse(recipe.flags(found))
    shape = model_size.model_of(found)
    args.kv_channels, args.padded_vocab_size, args.num_layers = shape.head_dim, 1024, 1
    args.layernorm_epsilon, args.add_bias_linear = args.norm_epsilon if hasattr(args, "norm_epsilon") else 1e-6, False
    one = model_size.Model(**{**vars(shape), "vocab": 1024, "layers": 1})
    counts[name] = [sum(p.numel() for p in build(args).parameters()), model_size.parameters(one)]
print(json.dumps(counts))
"""


def test_counts_are_those_of_the_models_that_megatron_builds():
    """One layer of each, a small vocabulary: the other layers are alike."""
    command = [sys.executable, "-W", "ignore", "-c", BUILT]
    out = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    counts = json.loads(out.splitlines()[-1])
    assert set(counts) == set(recipe.names("models"))
    for name, (built, counted) in counts.items():
        assert built == counted, name


def run(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.cli", "estimate", *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_json_has_what_programs_ask_for():
    options = ("qwen2-0.5b", "--hardware", "node-8", "--tokens", "10B", "--price", "2", "--mfu", "0.5", "--json")
    found = json.loads(run(*options).stdout)
    assert found["parameters"] == 494_032_768 and found["tokens"] == 10**10
    expected = 0.5 * 989e12 * 8 / found["flops_per_token"]
    assert found["tokens_per_second"] == pytest.approx(expected)
    assert found["hours"] == pytest.approx(1e10 / expected / 3600)
    assert found["gpu_hours"] == pytest.approx(8 * found["hours"])
    assert found["cost"] == pytest.approx(2 * found["gpu_hours"])
    assert found["memory_gb_per_gpu"] == pytest.approx(sum(found["memory_gb_by_part"].values()))
    assert found["mfu_assumed"] == 0.5 and found["mfu_source"] == "given with --mfu"


H100 = "NVIDIA H100 80GB HBM3"


def measured(model: str, hardware: str, mfu_percent: object, **changed: object) -> dict:
    row = {"part": "speed", "model": model, "training": "zh-10b", "hardware": hardware, "card": "h100-80gb", "set": []}
    return {**row, "mfu_percent": mfu_percent, "tokens_per_second": 1.0, **changed}


def results(folder: Path, *rows: object) -> Path:
    path = folder / "gpu.json"
    path.write_text(json.dumps({"machine": {"gpu": H100, "torch": "2.13.0"}, "rows": rows}))
    return path


def estimated(capsys, path: Path, *options: str) -> str:
    parser = argparse.ArgumentParser()
    estimate.add_arguments(parser)
    estimate.run(parser.parse_args(options), path)
    return capsys.readouterr().out


def test_a_measured_mfu_is_taken_and_told(tmp_path, capsys):
    path = results(
        tmp_path,
        measured("llama2-1.1b", "gpu-1-80gb", 47.0),
        measured("qwen2-0.5b", "gpu-1-80gb-te", 44.0),
        measured("qwen2-0.5b", "gpu-1-80gb", 41.2),
    )
    out = estimated(capsys, path, "qwen2-0.5b", "--hardware", "gpu-1-80gb")
    assert f"at an MFU of 41.2 %, measured: qwen2-0.5b on gpu-1-80gb, {H100} ({path})\n" in out
    found = json.loads(estimated(capsys, path, "qwen2-0.5b", "--hardware", "gpu-1-80gb", "--json"))
    assert found["mfu_assumed"] == pytest.approx(0.412) and found["mfu_source"].startswith("measured: qwen2-0.5b on")
    assert found["tokens_per_second"] == pytest.approx(0.412 * 989e12 / found["flops_per_token"])
    out = estimated(capsys, path, "qwen2-0.5b", "--hardware", "gpu-1-80gb", "--mfu", "0.3")
    assert "at an MFU of 30.0 %, given with --mfu" in out


def test_without_its_own_row_the_nearest_in_parameters_counts(tmp_path, capsys):
    rows = (measured("qwen2-0.5b", "gpu-1-80gb", 41.2), measured("llama2-1.1b", "gpu-1-80gb", 47.0))
    out = estimated(capsys, results(tmp_path, *rows), "qwen2-1.5b", "--hardware", "node-8")
    assert "at an MFU of 47.0 %, measured: llama2-1.1b on gpu-1-80gb" in out
    assert "; no row of qwen2-1.5b on node-8, this is the nearest in parameters" in out
    out = estimated(capsys, results(tmp_path, *rows), "qwen2-0.5b", "--hardware", "node-8")
    assert "at an MFU of 41.2 %, measured: qwen2-0.5b on gpu-1-80gb" in out and "no row of qwen2-0.5b on node-8" in out


@pytest.mark.parametrize(
    "row",
    [
        measured("qwen2-0.5b", "gpu-1-80gb", 41.2, card="a100-80gb"),
        measured("qwen2-0.5b", "gpu-1-80gb", 41.2, part="levers"),
        measured("qwen2-0.5b", "gpu-1-80gb", None),
        measured("qwen2-0.5b", "gpu-1-80gb", 412),
        measured("qwen9", "gpu-1-80gb", 41.2),
        measured("qwen2-0.5b", "gpu-1-80gb", 41.2, set=None),
        {"part": "speed"},
        "a row",
    ],
)
def test_other_cards_and_rows_that_cannot_be_used_are_no_measurement(tmp_path, capsys, row):
    out = estimated(capsys, results(tmp_path, row), "qwen2-0.5b", "--hardware", "gpu-1-80gb")
    assert "at an MFU of 40.0 %, assumed, no measured row of h100-80gb\n" in out


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rows": 3}', '{"rows": [], "machine": 1}', "\udcff"])
def test_broken_results_break_no_estimate(tmp_path, capsys, text):
    path = tmp_path / "gpu.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    out = estimated(capsys, path, "qwen2-0.5b", "--hardware", "gpu-1-80gb")
    assert f"at an MFU of 40.0 %, assumed, {path} cannot be read\n" in out


def test_missing_results_break_no_estimate(tmp_path, capsys):
    out = estimated(capsys, tmp_path / "gpu.json", "qwen2-0.5b", "--hardware", "gpu-1-80gb", "--gpu", "a100-80gb")
    assert "at an MFU of 40.0 %, assumed, no measured row of a100-80gb\n" in out


def test_a_vocabulary_of_ones_own_counts():
    own = json.loads(run("qwen2-0.5b", "--hardware", "node-8", "--vocab-size", "32000", "--json").stdout)
    assert own["parameters"] == 494_032_768 - (151_936 - 32_000) * 896


def test_table_says_when_it_does_not_fit():
    assert "does not fit into 24 GB" in run("qwen2-1.5b", "--hardware", "gpu-1-24gb").stdout
    assert "does not fit" not in run("llama2-0.5b", "--hardware", "gpu-1-24gb").stdout


def test_a_cpu_has_no_hours():
    out = run("qwen2-tiny", "--training", "demo", "--hardware", "cpu").stdout
    assert "time" in out and "names no gpu" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("qwen2-05b", "--hardware", "node-8"), "did you mean 'qwen2-0.5b'"),
        (("qwen2-0.5b", "--hardware", "node8"), "did you mean 'node-8'"),
        (("qwen2-0.5b", "--hardware", "node-8", "--tokens", "ten"), "write 10B, 300M or 1e10"),
        (("qwen2-0.5b", "--hardware", "node-8", "--mfu", "40"), "write 0.4 for 40 %"),
        (("qwen2-0.5b", "--hardware", "node-8", "--gpu", "h100-80"), "did you mean 'h100-80gb'"),
    ],
)
def test_mistakes_are_named(options, message):
    result = run(*options)
    assert result.returncode == 2 and message in result.stderr


def test_interleaving_and_pipelines_cost_memory():
    def total(*replaced: str) -> float:
        found = recipe.load_recipe("llama2-0.5b", "zh-10b", "node-8", replaced)
        return estimate.estimate(found)["memory_gb_by_part"]["activations"]

    flat = total("pipeline-model-parallel-size=4")
    assert total("pipeline-model-parallel-size=4", "num-layers-per-virtual-pipeline-stage=3") > flat


def test_unknown_gpu():
    with pytest.raises(UserError, match="did you mean"):
        gpus.gpu("a100-80g")
