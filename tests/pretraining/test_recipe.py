"""Recipes: every combination that ships, Megatron's word on it, and refusals that name the nearest valid name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from combinations import COMBINATIONS
from in_process import typed

from artifacts.errors import UserError
from launch.pretraining import estimate, recipe

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
TINY = ("qwen2-tiny", "demo", "cpu")
# each file at least once
KEPT = (
    TINY,
    ("llama2-tiny", "demo", "cpu"),
    ("qwen2-0.5b", "zh-10b", "gpu-1-80gb"),
    ("qwen2-0.5b", "zh-10b", "node-8"),
    ("qwen2-0.5b", "zh-10b-stable", "node-8"),
    ("qwen2-0.5b", "zh-10b-anneal", "node-8"),
    ("qwen2-1.5b", "continue-from-hf", "gpu-1-80gb-te"),
    ("llama2-0.5b", "zh-10b", "gpu-1-24gb"),
    ("llama2-1.1b", "zh-100b", "cluster-4x8"),
    ("qwen3-0.6b", "zh-10b", "gpu-1-80gb"),
    ("llama3.2-1b", "zh-100b", "node-8"),
    ("llama2-1.1b", "zh-100b-stable", "cluster-4x8"),
    ("llama2-1.1b", "zh-100b-anneal", "cluster-4x8"),
)


@pytest.fixture(scope="session")
def megatron_says(request) -> dict:
    """What Megatron says of each combination that this run of the tests asks for."""
    script = Path(__file__).parent / "megatron_says.py"
    asked = [item.callspec.params["combination"] for item in request.session.items
             if item.name.startswith("test_every_combination")]  # fmt: skip
    command = [sys.executable, "-W", "ignore", str(script), json.dumps(asked)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def possible(model: str, training: str, hardware: str) -> bool:
    """A tiny model is declared for 256 positions; the demo's 16 sequences do not divide over many GPUs."""
    return model.endswith("tiny") <= (training == "demo") and not (
        training == "demo" and hardware in ("node-8", "cluster-4x8")
    )


@pytest.mark.parametrize(
    "combination",
    [pytest.param(each, marks=[] if each in KEPT else pytest.mark.slow, id=" ".join(each)) for each in COMBINATIONS],
)
def test_every_combination_is_megatrons_or_refused_for_a_reason(combination, megatron_says):
    said = megatron_says[" ".join(combination)]
    if not possible(*combination):
        assert "max-position-embeddings" in said["error"] or "not a multiple of" in said["error"]
        return
    assert "error" not in said, said
    found = recipe.load_recipe(*combination)
    assert said["data_parallel"] == recipe.layout_of(found).data
    counted = estimate.estimate(found)
    step = recipe.whole(found, "global-batch-size") * recipe.whole(found, "seq-length")
    assert counted["flops_per_token"] * step == pytest.approx(said["flops"], rel=1e-12)
    if said["16 bits"] and said["recompute"] is None:  # all that Megatron's estimator knows
        assert counted["memory_gb_per_gpu"] * 1e9 == pytest.approx(said["megabytes"] * 2**20, rel=0.001)
    if said["16 bits"]:
        parts = counted["memory_gb_by_part"]
        states = parts["weights"] + parts["gradients"] + parts["optimizer"]
        assert states * 1e9 == pytest.approx(said["weight_megabytes"] * 2**20, rel=0.1)


def test_every_key_of_every_recipe_is_explained():
    for kind in recipe.KINDS:
        for name in recipe.names(kind):
            for line in (recipe.CONFIGS / kind / f"{name}.yaml").read_text().splitlines():
                assert line.startswith("#") or "  # " in line, f"{kind}/{name}.yaml: {line}"


@pytest.mark.parametrize("combination", KEPT, ids=" ".join)
def test_golden_command_lines(combination):
    """UPDATE_GOLDEN=1 writes them anew, for `git diff` to show."""
    flags = recipe.flags(recipe.load_recipe(*combination))
    lines = "\n".join(flags).replace("\n--", "\n\0--").replace("\n", " ").replace(" \0", "\n") + "\n"
    path = GOLDEN / ("_".join(combination) + ".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines)
    assert path.read_text() == lines


def test_a_training_may_go_on_with_other_hardware():
    """What a hardware file says is no other training, but for the precision and what its optimizer saves."""
    from launch.pretraining.checkpoints import ELSEWHERE

    keys = {key for name in recipe.names("hardware")
            for key in yaml.safe_load((recipe.CONFIGS / "hardware" / f"{name}.yaml").read_text())}  # fmt: skip
    assert keys - ELSEWHERE == {"bf16", "use-distributed-optimizer"}


def test_golden_command_lines_cover_every_file():
    for place, kind in enumerate(recipe.KINDS):
        assert {combination[place] for combination in KEPT} == set(recipe.names(kind))


def dry_run(*replaced: str, recipe: tuple[str, str, str] = TINY) -> subprocess.CompletedProcess:
    changes = [part for item in replaced for part in ("--set", item)]
    given = ("--model", recipe[0], "--training", recipe[1], "--hardware", recipe[2])
    return typed("launch.pretraining.pretrain", *given, "--run", "runs/none", "--dry-run", *changes)


def test_dry_run_prints_keys_ranks_and_the_command():
    result = dry_run("nproc-per-node=8", "tensor-model-parallel-size=2")
    assert result.returncode == 0, result.stderr
    out = result.stdout
    assert "torchrun --nproc-per-node=8 --standalone --signals-to-handle=SIGQUIT launch/pretraining/worker.py" in out
    assert "num-layers                              4" in out and "megatron_configs/models/qwen2-tiny.yaml" in out
    assert "nproc-per-node                          8                           --set" in out
    assert "1 x 8 = 8 = TP 2 x DP 2 x PP 2" in out
    assert not (REPOSITORY / "runs" / "none").exists()


def test_dry_run_of_several_machines_names_the_rendezvous():
    place = ("--node-rank", "3", "--rendezvous", "first:29500")
    recipe = ("--model", "llama2-1.1b", "--training", "zh-10b", "--hardware", "cluster-4x8")
    result = typed("launch.pretraining.pretrain", *recipe, "--run", "runs/none", "--dry-run", *place)
    assert result.returncode == 0, result.stderr
    assert "--nnodes=4 --rdzv-backend=c10d --rdzv-endpoint=first:29500" in result.stdout
    assert "is_host=0" in result.stdout


RANKS = """
import sys; sys.path.insert(0, ".")
from artifacts import megatron_on_cpu
megatron_on_cpu.patch_torch()
from megatron.core.parallel_state import RankGenerator
from launch.pretraining.recipe import Layout
for layout in (Layout(4, 8, 2, 4, 1), Layout(1, 8, 4, 2, 1), Layout(2, 8, 1, 1, 1)):
    said = RankGenerator(tp=layout.tensor, ep=1, dp=layout.data, pp=layout.pipeline, cp=1, order="tp-cp-ep-dp-pp")
    for place, name in enumerate(("tp", "dp", "pp")):
        for group in said.get_ranks(name):
            assert [layout.coordinates(rank)[place] for rank in group] == list(range(len(group))), (layout, name)
"""


def test_the_rank_layout_is_megatrons():
    subprocess.run([sys.executable, "-W", "ignore", "-c", RANKS], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ("train-iter=5", "did you mean '--train-iters'"),
        ("train-iters=many", "train-iters is 'many', not a whole number"),
        ("lr=fast", "argument --lr: invalid float value"),
        ("lr-decay-style=cosin", "did you mean 'cosine'"),
        ("overlap-param-gather=true", "Megatron refuses the recipe"),
        ("stop-at-spik=1", "did you mean '--stop-at-spike'"),
        ("stop-at-spike=abc", "stop-at-spike is 'abc', not a number"),
        ("gpu=h100", "launch/pretraining/gpus.yaml has no 'h100'"),
    ],
)
def test_megatrons_parser_refuses(replaced, message):
    result = dry_run(replaced)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (["tensor-model-parallel-size=3", "nproc-per-node=6"], "num-attention-heads 4 cannot be divided"),
        (["tensor-model-parallel-size=4", "nproc-per-node=8"], "num-query-groups 2 cannot be divided by tensor"),
        (["micro-batch-size=3"], "not a multiple of micro-batch-size"),
        (["pipeline-model-parallel-size=4"], "change nproc-per-node"),
        (["decoder-first-pipeline-num-layers=5"], "num-layers 4 cannot be divided by pipeline parallel 2"),
        (["decoder-first-pipeline-num-layers=null", "num-layers=5"], "num-layers 5 cannot be divided by pipeline"),
        (["num-layers-per-virtual-pipeline-stage=1"], "an interleaved schedule needs equal stages"),
        (["pipeline-model-parallel-size=1"], "decoder-first-pipeline-num-layers is for pipeline parallel"),
        (["make-vocab-size-divisible-by=0"], "make-vocab-size-divisible-by is 0; it must be at least 1"),
        (["seq-length=512"], "longer than the model's max-position-embeddings 256"),
        (["num-attention-heads=6"], "hidden-size 128 cannot be divided by num-attention-heads 6"),
        (["global-batch-size=null"], "the recipe lacks global-batch-size"),
        (["micro-batch-size=0"], "micro-batch-size is 0; it must be at least 1"),
        (["decoder-first-pipeline-num-layers=x"], "decoder-first-pipeline-num-layers is 'x', not a whole number"),
        (["context-parallel-size=2"], "context-parallel-size is not supported"),
        (["lr-warmup-iters=900"], "lr-warmup-iters 900 leaves no step of train-iters 900"),
    ],
)
def test_layouts_that_cannot_be(replaced, message):
    with pytest.raises(UserError, match=message):
        recipe.layout_of(recipe.load_recipe(*TINY, replaced))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'qwen2-tiny'"):
        recipe.load_recipe("qwen2-tyni", "demo", "cpu")


def test_a_key_that_two_files_set_names_both(tmp_path, monkeypatch):
    for kind, keys in (("models", {"lr": 1}), ("training", {"lr": 2}), ("hardware", {})):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.yaml").write_text(yaml.safe_dump(keys))
    monkeypatch.setattr(recipe, "CONFIGS", tmp_path)
    with pytest.raises(UserError, match="training/x.yaml sets lr, which .*models/x.yaml sets already"):
        recipe.load_recipe("x", "x", "x")


def test_continue_from_hf_asks_for_an_import():
    result = dry_run(recipe=("qwen2-0.5b", "continue-from-hf", "cpu"))
    assert result.returncode == 2 and "myllm import --model FOLDER" in result.stderr
