"""Two processes, and two machines simulated on this one, train as one process does; so do DeepSpeed's shards."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from posttrain_kit import finish, start, work_metrics

from artifacts.processes import free_port

ROWS = 16  # a step's rows, however many processes share them
STEPS = 12
PROCESSES = {"FORCE_TORCHRUN": "1", "MASTER_ADDR": "127.0.0.1"}


def losses(
    ground: Path,
    recipe: str,
    output: Path,
    *machines: dict[str, str],
    words: Sequence[str] = (),
    warm: Path | None = None,
) -> list[float]:
    """The loss of every step of a training that is started once on each of `machines` (the variables it sets there)."""
    each = ROWS // sum(int(machine.get("NPROC_PER_NODE", 1)) for machine in machines)
    keys = {"max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": each, "save_steps": 1000}
    arguments = [recipe, "--model", ground / "base", "--data", ground / "data", "--output", output, *words]
    arguments += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    port = str(free_port())
    started = [
        start(*arguments, env={**machine, **({"MASTER_PORT": port} if machine else {})}, warm=warm)
        for machine in machines
    ]
    with ThreadPoolExecutor(len(started)) as pool:
        list(pool.map(finish, started))
    metrics = work_metrics(output)
    assert metrics["steps"] == STEPS
    return [loss for _, loss in metrics["loss_curve"]]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft_full", "dpo"])
def test_two_processes_and_two_machines_give_the_loss_of_one(
    ground: Path, warm: Path, tmp_path: Path, recipe: str
) -> None:
    one = losses(ground, recipe, tmp_path / "one", {}, warm=warm)
    assert len(one) == STEPS and one[-1] < one[0]
    two = losses(ground, recipe, tmp_path / "two", {**PROCESSES, "NPROC_PER_NODE": "2"})
    assert two == pytest.approx(one, abs=1e-4)
    if recipe == "sft_full":
        machines = [{**PROCESSES, "NPROC_PER_NODE": "1", "NNODES": "2", "NODE_RANK": str(rank)} for rank in (0, 1)]
        assert losses(ground, recipe, tmp_path / "machines", *machines) == pytest.approx(one, abs=1e-4)


# DeepSpeed 0.16.9 starts several gathers and waits for the last one. NCCL finishes them in order; gloo, on a CPU, does
# not, and one weight in a hundred was loaded as garbage.
WAITED = """
import torch.distributed as distributed
gather = distributed.all_gather_into_tensor
def waited(*arguments, **options):
    handle = gather(*arguments, **options)
    if handle is not None:
        handle.wait()
    return handle
distributed.all_gather_into_tensor = waited
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed: make env-train GPU=yes")
@pytest.mark.parametrize("hardware", ["node-8", "multi-node"])
def test_deepspeeds_shards_give_the_loss_of_one_process(
    ground: Path, warm: Path, tmp_path: Path, hardware: str
) -> None:
    """ZeRO-2 and ZeRO-3 of the shipped hardware files on two CPU processes, in fp32: bfloat16 is refused there."""
    one = losses(ground, "sft_full", tmp_path / "one", {}, warm=warm)
    (tmp_path / "sitecustomize.py").write_text(WAITED)
    cpus = {
        **PROCESSES,
        "NPROC_PER_NODE": "2",
        "NNODES": "1",
        "NODE_RANK": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(tmp_path),
    }
    words = ["--hardware", hardware, "--set", "bf16=false"]
    assert losses(ground, "sft_full", tmp_path / "two", cpus, words=words) == pytest.approx(one, abs=1e-4)
