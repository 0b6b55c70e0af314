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


ATTENTION = """
import sys; sys.path.insert(0, ".")
from artifacts import megatron_on_cpu
megatron_on_cpu.patch_torch()
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from launch.attention import SDPACoreAttention
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
model_parallel_cuda_manual_seed(0)
config = dict(num_layers=1, hidden_size=64, num_attention_heads=4, num_query_groups=2, attention_dropout=0.0)
config = TransformerConfig(**config, masked_softmax_fusion=False, use_cpu_initialization=True)
stock = DotProductAttention(config, 1, AttnMaskType.causal, "self")
ours = SDPACoreAttention(config=config)
q, k, v = (torch.randn(24, 3, heads, 16, requires_grad=True) for heads in (4, 2, 2))
causal = torch.ones(1, 1, 24, 24, dtype=torch.bool).triu(1)
documents = causal.clone(); documents[..., 12:, :12] = True  # two documents that must not see each other
answers = []
for module, masks in ((stock, (causal, documents)), (ours, (None, documents))):
    for mask in masks:
        output = module(q, k, v, mask)
        answers.append([output, *torch.autograd.grad(output.square().sum(), (q, k, v))])
for a, b in zip(answers[:2], answers[2:]):
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
assert not torch.allclose(answers[0][0], answers[1][0])
config.window_size = (8, 0)
try:
    SDPACoreAttention(config=config)
except ValueError as error:
    assert "window_size" in str(error)
else:
    raise AssertionError("a window was taken")
"""


def test_sdpa_equals_megatrons_own_attention():
    """Outputs and gradients, causal and with a mask, grouped queries."""
    subprocess.run([sys.executable, "-c", ATTENTION], cwd=REPOSITORY, check=True)
