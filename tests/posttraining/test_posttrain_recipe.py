"""Recipes: keys and values are checked against the tools' own, machines are told apart, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from posttrain_kit import (
    said,
    sft_arguments,
)

from artifacts.command import parser_of
from artifacts.errors import UserError
from artifacts.layout import REPOSITORY
from launch.posttraining import posttrain
from launch.posttraining import recipe as posttrain_recipe
from launch.posttraining import tool as posttrain_tool
from launch.posttraining import work_folder as posttrain_work


def test_argument_names_are_those_of_the_real_dataclasses(warm: Path) -> None:
    real = said(
        warm,
        """
import dataclasses, json
from llamafactory import hparams
kinds = ("Model", "Data", "Finetuning", "Training", "Generating")
holders = [getattr(hparams, f"{kind}Arguments") for kind in kinds]
print(json.dumps([item.name for holder in holders for item in dataclasses.fields(holder) if item.init]))
""",
    )
    assert {name for group in posttrain_recipe.argument_types().values() for name in group} == set(real)


@pytest.mark.parametrize("recipe", sorted(p.stem for p in posttrain_recipe.RECIPES.glob("*.yaml")))
@pytest.mark.parametrize("hardware", sorted(p.stem for p in (posttrain_recipe.RECIPES / "hardware").glob("*.yaml")))
def test_every_recipe_holds_only_its_tools_keys(recipe: str, hardware: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NNODES", "SLURM_NODEID", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    found = posttrain_recipe.recipe_settings(recipe, hardware, [], 3)
    assert found.tool == "trl" or found.settings["template"] == "chatml"
    assert found.exports or found.settings["seed"] == found.settings["data_seed"] == 3
    assert bool(found.environment) == (not found.exports and hardware in ("node-8", "multi-node"))


@pytest.mark.parametrize("path", sorted(posttrain_recipe.RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_is_explained(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not line or "# " in line, f"{path.name}: {line}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "no key 'learning_rat' (did you mean 'learning_rate'?)"),
        ("learning_rate=fast", "learning_rate is 'fast', but LLaMA-Factory needs float"),
        ("max_steps=1.5", "max_steps is 1.5, but LLaMA-Factory needs int"),
        ("stage=sfft", "stage is 'sfft'; LLaMA-Factory allows"),
        ("do_train", "write --set key=value"),
        ("output_dir=x", "output_dir is set by the launcher"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        posttrain_recipe.recipe_settings("sft_full", "cpu", [override], None)
    assert message in str(error.value)


def test_numbers_without_a_point_are_numbers() -> None:
    found = posttrain_recipe.recipe_settings("sft_full", "cpu", ["learning_rate=1e-3"], None)
    assert found.settings["learning_rate"] == 1e-3


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sft_full'"):
        posttrain_recipe.recipe_settings("sft_ful", "cpu", [], None)


def test_dry_run_prints_the_command_and_imports_nothing_heavy(ground: Path, tmp_path: Path) -> None:
    arguments = [str(a) for a in (*sft_arguments(ground, tmp_path / "out"), "--dry-run")]
    code = (
        f"import sys; from artifacts.command import run_command; from launch.posttraining import posttrain;"
        f"run_command(posttrain, {arguments!r});"
        "print([m for m in ('torch', 'llamafactory', 'transformers') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert f"llamafactory-cli train {tmp_path / 'out.work' / 'sft_full.yaml'}" in output
    assert output.endswith("[]\n")
    assert list(tmp_path.iterdir()) == []


def test_a_hardware_file_says_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = posttrain_recipe.recipe_settings("sft_full", "node-8", [], None)
    assert found.environment == {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "8"} and "environment" not in found.settings
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    assert posttrain_recipe.recipe_settings("sft_full", "node-8", [], None).environment["NPROC_PER_NODE"] == "2"


def test_several_machines_are_told_apart(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"NNODES is \$SLURM_NNODES, which is not set"):
        posttrain_recipe.recipe_settings("sft_full", "multi-node", [], None)
    for name, value in (("SLURM_NNODES", "2"), ("SLURM_NODEID", "1"), ("MASTER_ADDR", "first")):
        monkeypatch.setenv(name, value)
    options = ["--model", str(ground / "base"), "--data", str(ground / "data"), "--output", str(tmp_path / "o")]
    job = posttrain.job_of(parser_of(posttrain).parse_args(["sft_full", *options, "--hardware", "multi-node"]))
    assert job.node == 1 and job.processes == 16
    assert "NODE_RANK=1" in posttrain_tool.shown(job) and "llamafactory-cli train" in posttrain_tool.shown(job)
    grpo = posttrain.job_of(parser_of(posttrain).parse_args(["grpo", *options, "--hardware", "multi-node"]))
    assert "-m torch.distributed.run --nproc-per-node=8 --nnodes=2 --node-rank=1" in posttrain_tool.shown(grpo)
    assert str(REPOSITORY / "llamafactory_configs" / "hardware" / "zero3.json") in posttrain_work.render(job)


def test_a_tracker_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = posttrain_recipe.recipe_settings("sft_full", "cpu", [], None, "none")
    assert found.settings["report_to"] == "none"
    with pytest.raises(UserError, match="pip install swanlab"):
        posttrain_recipe.recipe_settings("sft_full", "cpu", [], None, "swanlab")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo", "--data", "d"], "give the merged output of recipe `reward` with --reward-model"),
        (["dpo", "--data", "d", "--reward-model", "r"], "takes no --reward-model"),
        (["dpo"], "give the folder of its data files with --data"),
        (["merge"], "give it with --adapter"),
        (["dpo", "--data", "d", "--adapter", "a"], "merge it first"),
    ],
)
def test_what_a_recipe_needs_is_told(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        posttrain.job_of(parser_of(posttrain).parse_args([*arguments, "--model", "m", "--output-folder", "o"]))
    assert message in str(error.value)
