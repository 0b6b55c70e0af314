"""Two processes, and two machines simulated on this one, train as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_posttrain import make_data, make_model

from artifacts.layout import REPOSITORY
from artifacts.processes import free_port

ROWS = 16  # a step's rows, however many processes share them
STEPS = 12
PROCESSES = {"FORCE_TORCHRUN": "1", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    make_model(folder / "base")
    make_data(folder / "data")
    return folder


def losses(ground: Path, recipe: str, output: Path, *machines: dict[str, str]) -> list[float]:
    """The loss of every step of a training that is started once on each of `machines` (the variables it sets there)."""
    each = ROWS // sum(int(machine.get("NPROC_PER_NODE", 1)) for machine in machines)
    keys = {"max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": each, "save_steps": 1000}
    command = [sys.executable, "-m", "launch.posttraining.posttrain", recipe, "--model", str(ground / "base"), "--data"]
    command += [str(ground / "data"), "--output", str(output)]
    command += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    port = str(free_port())
    started = []
    for number, machine in enumerate(machines):
        log = output.with_name(f"{output.name}.{number}.log").open("w")
        variables = {**os.environ, **machine, **({"MASTER_PORT": port} if machine else {})}
        started.append((subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=log, stderr=log), log.name))
    for process, log in started:
        assert process.wait(timeout=300) == 0, Path(log).read_text()[-3000:]
    metrics = json.loads((output.with_name(output.name + ".work") / "metrics.json").read_text())
    assert metrics["steps"] == STEPS
    return [loss for _, loss in metrics["loss_curve"]]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft_full", "dpo"])
def test_two_processes_and_two_machines_give_the_loss_of_one(ground: Path, tmp_path: Path, recipe: str) -> None:
    one = losses(ground, recipe, tmp_path / "one", {})
    assert len(one) == STEPS and one[-1] < one[0]
    two = losses(ground, recipe, tmp_path / "two", {**PROCESSES, "NPROC_PER_NODE": "2"})
    assert two == pytest.approx(one, abs=1e-4)
    if recipe == "sft_full":
        machines = [{**PROCESSES, "NPROC_PER_NODE": "1", "NNODES": "2", "NODE_RANK": str(rank)} for rank in (0, 1)]
        assert losses(ground, recipe, tmp_path / "machines", *machines) == pytest.approx(one, abs=1e-4)
