"""The GPU proof: every part on a CPU, and what it makes of names, profiles and failures."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from artifacts.errors import UserError
from artifacts.files import read_json, write_json
from benchmarks.gpu_proof import machine, models, results, speed, trainings, wheels
from benchmarks.gpu_proof.__main__ import LIMITS
from benchmarks.gpu_proof.proof import Proof, TimeLimit, call, lines, training_folder
from launch.pretraining import gpus

REPOSITORY = Path(__file__).resolve().parents[2]


def run_proof(*options: str, path: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu_proof", *options]
    environment = {**os.environ, **({"PATH": path} if path else {})}
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    from benchmarks import made_up_data

    run = made_up_data.make_run(tmp_path / "run")
    made_up_data.write_tasks(run / "tasks")
    result = run_proof("--hardware", "cpu", "--run", str(run), "--output", str(tmp_path / "out"))
    found = read_json(tmp_path / "out" / "gpu.json")
    failed = [row for row in found["rows"] if not row["ok"]]
    # what a CPU has not is told, and stops nothing
    assert [row.get("lever") for row in failed] == ["CUDA graphs of each layer"], (failed, result.stdout[-2000:])
    assert result.returncode == 0 and set(found["seconds"]) == set(LIMITS)
    parts = {part: [row for row in found["rows"] if row["part"] == part] for part in LIMITS}
    for row in parts["speed"]:
        assert row["tokens_per_second"] == pytest.approx(2048 / row["milliseconds"] * 1000, rel=1e-3)
        assert row["mfu_percent"] is None and row["profile"]["kinds_ms"]["matrix products"] > 0
    base = parts["levers"][0]["milliseconds"]
    assert all(row["ratio"] == pytest.approx(row["milliseconds"] / base, rel=1e-3) for row in parts["levers"][:7])
    losses = parts["fidelity"][0]
    assert len(losses["device"]) == len(losses["cpu"]) == models.FIDELITY_STEPS and losses["device"] != losses["cpu"]
    assert parts["learning"][-1]["n"] == 40 and parts["learning"][-1]["parameters"] > 0
    assert [row["what"] for row in parts["posttraining"]] == [
        "SFT through LoRA, 3 steps",
        "merge gate",
        "a step of GRPO",
    ]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "## Levers" in page and "qwen2-tiny" in page and "Not done" not in page


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    result = run_proof("--output", str(tmp_path), path="/nowhere")
    assert result.returncode == 2 and "--hardware cpu" in result.stderr


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA H20", "h20-96gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24gb"),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_cards_by_their_drivers_names(name, card):
    assert machine.card_of(name) == card
    assert card is None or gpus.gpu(card).peak_tflops > 0


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>", "matrix products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<…>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<…FusedAdamMathFunctor…>", "optimizer"),
        ("triton_red_fused__log_softmax_exp_sub_1", "loss"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, true>", "norms"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_poi_fused_mul_silu_0", "elementwise"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
    ],
)
def test_kernels_by_kind(kernel, kind):
    assert trainings.kind_of(kernel) == kind


def test_a_profile_counts_what_ran_on_the_device_and_the_gap():
    def event(key: str, device: str, microseconds: float) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=f"DeviceType.{device}", self_device_time_total=microseconds, self_cpu_time_total=9e9
        )

    events = [event("nvjet_gemm", "CUDA", 6000), event("flash_fwd", "CUDA", 1000), event("aten::mm", "CPU", 6000)]
    found = trainings.summed(events, 10.0, on_gpu=True)
    assert found["kinds_ms"] == {"matrix products": 6.0, "attention": 1.0} and found["gap_ms"] == 3.0
    assert found["kernels"][0] == [6.0, "nvjet_gemm"]


def test_the_combination_takes_one_of_those_that_exclude_each_other():
    levers = [
        speed.Lever("micro batch 16", ("micro-batch-size=16",), only_one_of="micro batch"),
        speed.Lever("fused Adam", fused_adam=True),
        speed.Lever("micro batch 4", ("micro-batch-size=4",), only_one_of="micro batch"),
    ]
    together = speed.combined(levers)
    assert together.keys == ("micro-batch-size=16",) and together.fused_adam and not together.compile_layers


def test_the_levers_of_the_gpu_recipe_change_what_it_sets():
    names = [lever.name for lever in speed.levers_for(speed.GPU)]
    assert "micro batch 16" in names and "micro batch 4" in names and "fused cross entropy off" in names


def proof(tmp_path: Path) -> Proof:
    return Proof(on_gpu=False, work=tmp_path, data=None, card=None)


def test_a_part_ends_at_its_time_with_all_that_it_started(tmp_path):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    found = []
    with pytest.raises(TimeLimit, match="time limit"):
        for line in lines(proof(tmp_path), "-c", child, log=tmp_path / "log", deadline=time.monotonic() + 3):
            found.append(int(line))
    assert found
    deadline = time.monotonic() + 30
    while Path(f"/proc/{found[0]}").exists() and "Z" not in Path(f"/proc/{found[0]}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_process_is_told_by_its_own_words(tmp_path):
    with pytest.raises(UserError, match="ValueError: too hot"):
        call(proof(tmp_path), "-c", "raise ValueError('too hot')", log=tmp_path / "log", deadline=time.monotonic() + 60)


def test_when_the_process_dies_of_a_job_the_others_are_measured(tmp_path, monkeypatch):
    """The worker is a stand-in that dies at the job named `b`."""
    jobs = [trainings.Job(name, [], str(tmp_path / name)) for name in "abc"]

    def dying(_proof, *arguments, **_):
        for job in json.loads(Path(arguments[-1]).read_text()):
            if job["name"] == "b":
                raise UserError("CUDA error: an illegal memory access")
            yield json.dumps({"name": job["name"]})

    monkeypatch.setattr(speed, "lines", dying)
    found = {job.name: facts for job, facts in speed.measured(proof(tmp_path), "levers", jobs, time.monotonic() + 9)}
    assert list(found) == ["a", "b", "c"] and "illegal memory" in found["b"]["error"] and "error" not in found["c"]


def test_when_the_process_stops_after_a_job_the_others_are_measured_in_a_new_one(tmp_path, monkeypatch):
    """The worker is a stand-in that ends after each job, as it does when a job has cost it the device."""
    jobs = [trainings.Job(name, [], str(tmp_path / name)) for name in "ab"]

    def one_at_a_time(_proof, *arguments, **_):
        yield json.dumps({"name": json.loads(Path(arguments[-1]).read_text())[0]["name"]})

    monkeypatch.setattr(speed, "lines", one_at_a_time)
    found = {job.name: facts for job, facts in speed.measured(proof(tmp_path), "levers", jobs, time.monotonic() + 9)}
    assert list(found) == ["a", "b"] and not any("error" in facts for facts in found.values())


def test_a_run_that_is_cut_short_keeps_what_it_has(tmp_path):
    kept = results.Results(tmp_path, "make proof-gpu")
    kept.add("fidelity", {"what": "losses", "ok": True, "max_difference": 0.001, "device": [1.0]})
    kept.add("learning", {"ok": False, "failed": "stopped at the part's time limit"})
    assert [row["part"] for row in read_json(tmp_path / "gpu.json")["rows"]] == ["fidelity", "learning"]
    page = (tmp_path / "gpu.md").read_text()
    assert "max difference 0.001" in page and "**Not done**: stopped at the part's time limit" in page


def test_a_run_is_trained_on_from_another_folder(tmp_path):
    data = tmp_path / "data"
    (data / "tokenizer").mkdir(parents=True)
    (data / "dataset").mkdir()
    for name in ("a.bin", "a.idx"):
        (data / "dataset" / name).write_bytes(b"x")
    write_json(data / "dataset" / "blend.json", {"train": ["1.0", "runs/poetry-tiny/dataset/a"]})
    run = training_folder(data, tmp_path / "run")
    (weight, prefix) = read_json(run / "dataset" / "blend.json")["train"]
    assert weight == "1.0" and Path(prefix + ".bin").read_bytes() == b"x"


def test_wheels_are_of_the_lock_files_versions():
    known = wheels.versions()
    assert {*wheels.MAIN, *wheels.POSTTRAINING} <= set(known) and known["megatron-core"] == "0.19.2"


def test_packed_data_comes_back_without_megatrons_cache(tmp_path):
    run = tmp_path / "run"
    for name in (*wheels.DATA, "dataset/cache"):
        (run / name).mkdir(parents=True, exist_ok=True)
        (run / name / "file").write_text(name)
    wheels.pack(run, tmp_path)
    found = wheels.unpack(tmp_path / "data.tar.xz", tmp_path / "back")
    assert (found / "tasks" / "file").read_text() == "tasks" and not (found / "dataset" / "cache").exists()


def test_megatrons_dataset_helpers_are_imported_and_not_compiled():
    """The wheel has no Makefile for what `initialize_megatron` would run, and the process would end there."""
    code = (
        "from artifacts import megatron_on_cpu; megatron_on_cpu.patch_torch()\n"
        "from pathlib import Path\n"
        "from megatron.core.datasets import utils\n"
        "assert not (Path(utils.__file__).parent / 'Makefile').exists()\n"
        "from artifacts.megatron_wheel import use_compiled_helpers\n"
        "use_compiled_helpers(); utils.compile_helpers()"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, check=True)


def test_adam_is_fused_while_it_is_asked_for():
    import torch

    from artifacts.megatron_adam import fused_adam

    weight = torch.nn.Parameter(torch.ones(3))
    with fused_adam():
        assert torch.optim.AdamW([weight], lr=0.1).defaults["fused"] is True
    with fused_adam(False):
        assert torch.optim.AdamW([weight], lr=0.1).defaults["fused"] is None
    assert torch.optim.Adam([weight]).defaults["fused"] is None
