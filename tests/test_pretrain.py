"""Recipes: refused before anything starts, with the nearest valid name; Megatron's own parser has the last word."""

import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import UserError
from launch import pretrain

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = ("qwen2-tiny", "demo", "cpu")


def check(*replaced: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "launch.pretrain",
        "--model",
        "qwen2-tiny",
        "--training",
        "demo",
        "--hardware",
        "cpu",
    ]
    command += ["--run", "runs/none", "--dry-run", *(part for item in replaced for part in ("--set", item))]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_shipped_recipe_is_megatrons():
    result = check()
    assert result.returncode == 0, result.stderr
    assert "torchrun --standalone --nproc-per-node=2 launch/pretrain_worker.py --num-layers 4" in result.stdout
    assert not (REPOSITORY / "runs" / "none").exists()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ("train-iter=5", "did you mean '--train-iters'"),
        ("train-iters=many", "invalid int value"),
    ],
)
def test_megatrons_parser_refuses(replaced, message):
    result = check(replaced)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("replaced", "processes", "message"),
    [
        ("tensor-model-parallel-size=3", 6, "num-attention-heads 4 cannot be divided"),
        ("micro-batch-size=3", 2, "no multiple of micro-batch-size"),
        ("pipeline-model-parallel-size=4", 2, "mend nproc-per-node"),
    ],
)
def test_layouts_that_cannot_be(replaced, processes, message):
    recipe = pretrain.load_recipe(*RECIPE, [replaced])
    with pytest.raises(UserError, match=message):
        pretrain.check_layout(recipe, processes)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'qwen2-tiny'"):
        pretrain.load_recipe("qwen2-tyni", "demo", "cpu", [])


def line(iteration: int, loss: float) -> str:
    return (
        f" [x] iteration {iteration:8d}/      20 | consumed samples: 1 | elapsed time per iteration (ms): 250.0 "
        f"| learning rate: 1.0E-03 | global batch size: 16 | lm loss: {loss:.6E} | loss scale: 1 | grad norm: 0.500 |\n"
    )


def test_history_takes_the_later_of_two_lines(tmp_path):
    log = tmp_path / "megatron.log"
    log.write_text(
        line(1, 5.8)
        + line(10, 5.0)
        + line(10, 4.9)
        + " validation loss at iteration 10 on validation set | lm loss value: 4.95E+00 |"
    )
    history = pretrain.read_history(log)
    assert history["loss"] == [[1, 5.8], [10, 4.9]] and history["valid"] == [[10, 4.95]]


def test_a_wrong_first_loss_stops_the_chain(tmp_path):
    log = tmp_path / "megatron.log"
    log.write_text(line(1, 9.0))
    with pytest.raises(UserError, match="not near ln"):
        pretrain.check_learning(pretrain.read_history(log), 320)
    log.write_text(line(1, 5.77))
    pretrain.check_learning(pretrain.read_history(log), 320)


def test_a_half_written_checkpoint_is_dropped(tmp_path):
    for number, whole in ((5, True), (10, False)):
        folder = tmp_path / f"iter_{number:07d}"
        folder.mkdir()
        (folder / "metadata.json").write_text("{}")
        if whole:
            (folder / ".metadata").write_text("x")
    (tmp_path / pretrain.LATEST).write_text("10")
    pretrain.drop_half_written(tmp_path)
    assert (tmp_path / pretrain.LATEST).read_text() == "5"
    assert not (tmp_path / "iter_0000010").exists()
