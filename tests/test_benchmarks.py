"""The benchmarks run: what they measure is for their tables, never for a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


def bench(output: Path, *options: str) -> list[dict]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(output), *options]
    result = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    return json.loads(output.read_text())


@pytest.mark.slow
def test_the_gpu_benchmark_works_on_a_cpu_with_made_up_and_real_tokens(tmp_path):
    from benchmarks.made_up_data import make_run

    run = make_run(tmp_path / "run")
    options = ("--model", "qwen2-tiny", "--training", "demo", "--hardware", "cpu", "--steps", "4", "--run", str(run))
    rows = bench(tmp_path / "rows.json", *options)
    assert [row["tokens"] for row in rows] == ["made up", "real"]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(2048 / row["milliseconds"] * 1000)
        assert row["tflops_per_gpu"] > 0 and row["mfu_percent"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_a_billion_parameters_train_on_a_gpu(tmp_path):
    options = ("--model", "qwen2-0.5b", "--hardware", "gpu-1-80gb", "--steps", "6")
    (row,) = bench(tmp_path / "rows.json", *options, "--set", "global-batch-size=16")
    assert row["last_loss"] < row["first_loss"] and row["mfu_percent"] > 0
