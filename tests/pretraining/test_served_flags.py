"""No flag of a recipe does nothing: each flag of Megatron's parser is read by a training, or refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from combinations import COMBINATIONS

from artifacts.errors import UserError
from launch.pretraining import pretrain, recipe, served_flags
from launch.pretraining.dataset import LEFT_ALONE
from launch.pretraining.recipe import Key
from tests.pretraining import megatron_reads

REPOSITORY = Path(__file__).resolve().parents[2]
TE = ("qwen2-0.5b", "zh-10b", "gpu-1-80gb-te")
LOCAL = ("qwen2-0.5b", "zh-10b", "gpu-1-80gb")

PARSER = """
import json, sys
sys.path.insert(0, ".")
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()):
    from launch.pretraining.flags import _parser
    found = [[action.dest, action.option_strings] for action in _parser()._actions if action.dest != "help"]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def parser() -> list[tuple[str, list[str]]]:
    """(argument, its flags) of Megatron's parser; in a process of its own, for the CPU's patch of torch stays there."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSER], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def read() -> set[str]:
    return megatron_reads.read()


def refusal(name: str, value: object = "some") -> str:
    try:
        served_flags.check_served({name: Key(value, "x.yaml")})
    except UserError as error:
        return str(error)
    return ""


def test_every_flag_is_read_or_refused_by_name(parser, read):
    """Where this fails after an upgrade of Megatron: serve the flag, or add it to `served_flags.FAMILIES`."""
    silent = [
        flag
        for argument, flags in parser
        if argument not in read
        for flag in flags
        if not refusal(flag.removeprefix("--")).startswith(f"x.yaml: {flag.removeprefix('--')} is not supported: ")
    ]
    assert not silent, f"neither read nor refused: {' '.join(silent)}"
    assert len(parser) > 700 and len(read & {argument for argument, _ in parser}) > 450


def test_every_rule_names_flags_that_exist(parser):
    names = [flag.removeprefix("--") for _, flags in parser for flag in flags]
    for rule in (*served_flags.FAMILIES, *served_flags.NEEDS):
        for one in alternatives(rule.pattern):
            assert any(served_flags.re.fullmatch(one, name) for name in names), f"Megatron has no flag {one}"


def alternatives(pattern: str) -> list[str]:
    """A pattern cut at the bars outside of its brackets."""
    parts, depth = [""], 0
    for letter in pattern:
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("lr", "an optimizer's"),
        ("rotary_base", "the model's, by its builder, which Megatron names in a string"),
        ("cross_entropy_loss_fusion", "a method of the model"),
        ("recompute_activations", "validate_args sets recompute_granularity from it"),
        ("disable_bf16_reduced_precision_matmul", "__post_init__ tells torch"),
        ("muon_momentum", "by the signature of the optimizer's class"),
        ("dataloader_fast_cache_load", "launch.pretraining.dataset hands it on"),
        ("wandb_project", "by validate_args' call of set_global_variables"),
    ],
)
def test_the_walk_finds_what_is_read(argument, why, read):
    assert argument in read, why


@pytest.mark.parametrize(
    "argument",
    ["fim_rate", "mock_data", "check_for_spiky_loss", "rampup_batch_size", "img_h", "batch_size", "onnx_safe"],
)
def test_the_walk_finds_what_nothing_reads(argument, read):
    assert argument not in read


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_shipped_recipes_are_served(combination):
    served_flags.check_packages(recipe.load_recipe(*combination))


@pytest.mark.parametrize(
    "replaced",
    [
        "context-parallel-size=1",
        "expert-model-parallel-size=1",
        "mtp-num-layers=0",
        "ckpt-format=torch_dist",
        "attention-backend=auto",
        "num-experts=null",
        "async-save=true",
        "cuda-graph-impl=local",
        "dataloader-fast-cache-load=true",
        "no-mmap-bin-files=true",
        "override-opt_param-scheduler=true",
        "wandb-project=mine",
        "log-params-norm=true",
        "exit-duration-in-mins=5",
        "rerun-mode=disabled",
        "tokenizer-hf-no-use-fast=true",
        "iterations-to-skip=[5]",
        "save-retain-interval=1000",
        "enable-msc=true",
        "use-megatron-fsdp=true",
    ],
)
def test_what_works_is_not_refused(replaced):
    for combination in (LOCAL, TE):
        recipe.load_recipe(*combination, [replaced])


@pytest.mark.parametrize(
    ("combination", "replaced", "message"),
    [
        (
            TE,
            ["dataloader-inter-document-masking=true"],
            "is not supported: the worker does not pass document boundaries",
        ),
        (TE, ["mtp-num-layers=1"], "mtp-num-layers is not supported: Hugging Face's Qwen2 and Llama do not support"),
        (TE, ["reset-attention-mask=true"], "has no effect: Transformer Engine's layers .*issue 2357"),
        (LOCAL, ["reset-attention-mask=true"], "with no-create-attention-mask-in-dataloader there is no mask"),
        (LOCAL, ["reset-position-ids=true"], "rotary embeddings count from the start"),
        (TE, ["cross-entropy-loss-fusion=null", "cross-entropy-fusion-impl=te"], "Set cross-entropy-loss-fusion=true"),
        (LOCAL, ["fp8-format=hybrid"], "only Transformer Engine's layers support it"),
        (LOCAL, ["attention-backend=flash"], "only Transformer Engine's layers support it"),
        (LOCAL, ["num-experts=8"], "do not support experts"),
        (LOCAL, ["multi-latent-attention=true"], "do not support multi-latent attention"),
        (LOCAL, ["fim-data=true"], "without fill-in-the-middle"),
        (LOCAL, ["sft=true"], "Use `myllm posttrain sft_full`; or remove it, or --set sft=null"),
        (LOCAL, ["save=elsewhere"], "the folder of --run determines it"),
        (LOCAL, ["muon-momentum=0.9"], "the optimizer is not Muon"),
        (LOCAL, ["lr-wsd-decay-iters=5"], "the schedule is not WSD"),
        (LOCAL, ["full-validation=true"], "ends with an error at the first validation"),
        (LOCAL, ["multiple-validation-sets=true"], "ends with an error at the test set"),
        (LOCAL, ["context-parallel-size=2"], "context-parallel-size is not supported"),
    ],
)
def test_what_would_do_nothing_is_refused(combination, replaced, message):
    with pytest.raises(UserError, match=message):
        recipe.load_recipe(*combination, replaced)


def test_a_mask_that_is_used_is_served():
    served = ["reset-attention-mask=true", "no-create-attention-mask-in-dataloader=null"]
    recipe.load_recipe(*LOCAL, served)
    recipe.load_recipe("qwen2-tiny", "demo", "cpu", [*served, "spec=null"])


def test_what_the_launcher_sets_itself_is_refused_in_a_recipe():
    flags = [part.removeprefix("--") for part in pretrain.run_flags(pretrain.Run(Path("run"))) if part.startswith("--")]
    for flag in flags:
        assert flag == "exit-signal-handler" or "is not supported" in refusal(flag)


def test_a_missing_package_is_named_at_dry_run():
    command = [
        sys.executable,
        "-m",
        "launch.pretraining.pretrain",
        "--model",
        "qwen2-tiny",
        "--training",
        "demo",
        "--dry-run",
    ]
    result = subprocess.run(
        [*command, "--run", "runs/none", "--set", "optimizer=muon"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "optimizer muon needs the package emerging-optimizers" in result.stderr
    assert "pip install 'emerging-optimizers>=0.2'" in result.stderr and result.stderr.count("\n") == 1


DATASETS = """
import json, sys
sys.path.insert(0, ".")
from artifacts import megatron_on_cpu
megatron_on_cpu.patch_torch()
import dataclasses
from types import SimpleNamespace
import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from launch.pretraining.dataset import dataset_fields
from launch.pretraining.flags import parse

folder = sys.argv[1]
for name in "ab":
    builder = IndexedDatasetBuilder(f"{folder}/{name}.bin", dtype=np.uint16)
    for number in range(25):
        builder.add_document((np.arange(8) + number).astype(np.uint16), [8])
    builder.finalize(f"{folder}/{name}.idx")
tokenizer = SimpleNamespace(vocab_size=100, eod=0, pad=99, unique_identifiers={}, bos=1)
blend = [([f"{folder}/a"], None), ([f"{folder}/a", f"{folder}/b"], None), None]

def arguments(*flags):
    args = parse(["--seq-length", "8", "--data-cache-path", f"{folder}/cache", *flags])
    args.data_parallel_size = 1  # validate_args does it
    return args

def build(*flags):
    args = arguments(*flags)
    config = GPTDatasetConfig(**dataset_fields(args, tokenizer, None, blend))
    sizes = [40, None if args.full_validation else 12, 0]
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()

train, valid, _ = build()
plain = [train[i]["tokens"].tolist() for i in range(len(train))]
part = len(valid)

counts = {f"{folder}/{name}": (25, 26) for name in "ab"}
with open(f"{folder}/counts.json", "w") as stream:
    json.dump(counts, stream)
quick, _, _ = build("--dataloader-fast-cache-load", "--per-dataset-sequences-path", f"{folder}/counts.json")
same_by_cache = [quick[i]["tokens"].tolist() for i in range(len(quick))] == plain
deferred, _, _ = build("--dataloader-defer-npy-index-mmap")
closed = deferred.shuffle_index is None
same_deferred = [deferred[i]["tokens"].tolist() for i in range(len(deferred))] == plain
_, whole, _ = build("--full-validation")
print(json.dumps({
    "validation set": part,
    "counts reach the index": quick.dataset.sequences_per_dataset == [25, 26],
    "fast": quick.dataset.fast_cache_load, "same by cache": same_by_cache,
    "closed": closed, "same deferred": same_deferred,
    "whole validation set": len(whole),
    "filled": list(dataset_fields(arguments(), tokenizer, None, None)),
    "fields": [field.name for field in dataclasses.fields(GPTDatasetConfig) if field.init],
}))
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict:
    """What Megatron's datasets say of themselves, built from two files of 25 documents of 8 tokens."""
    command = [sys.executable, "-W", "ignore", "-c", DATASETS, str(tmp_path_factory.mktemp("datasets"))]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_every_field_of_the_dataset_configuration_is_filled_or_left_alone(datasets):
    """Where this fails after an upgrade of Megatron: fill the field in dataset.py, or say why not."""
    filled = set(datasets["filled"])
    assert filled | set(LEFT_ALONE) == set(datasets["fields"]) and not filled & set(LEFT_ALONE)


def test_the_datasets_do_what_the_flags_say(datasets):
    assert datasets["counts reach the index"] and datasets["fast"] and datasets["closed"]
    assert datasets["same by cache"] and datasets["same deferred"]
    assert 12 <= datasets["validation set"] < 48  # about as many sequences as were asked for
    assert datasets["whole validation set"] == 48  # twice 25 times 8 tokens, less the last, which is only a label
