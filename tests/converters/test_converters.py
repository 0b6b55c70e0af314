"""Conversion is exact in both directions, in every layout, and every wrong rule is caught by what the export checks."""

import argparse
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import typed

from artifacts.errors import UserError
from artifacts.files import read_json, write_json
from artifacts.layout import REPOSITORY
from converters import (
    architectures,
    checkpoint,
    export,
    families,
    import_hf,
    parity,
    plan,
    rules,
    safetensors_files,
    vocabulary,
)
from launch.pretraining import flags, worker
from launch.pretraining.recipe import flags as flags_of
from launch.pretraining.recipe import layout_of, load_recipe
from preprocess.tokenizer import train as tokenizer_maker

HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}  # key-value heads of four
LAYOUTS = tuple(itertools.product((1, 2, 4), (1, 2)))
PROMPT = [5, 17, 99, 3, 3, 64, 0, 42, 7, 11]


def shape_of(**changes) -> rules.Shape:
    values = dict(
        layers=2, hidden=32, ffn=48, heads=4, groups=2, head_dim=8, vocab=101, positions=64, rope_theta=10000.0,
        norm_epsilon=1e-6, tied=True, qkv_bias=True,
    )  # fmt: skip
    return rules.Shape(**{**values, **changes})


# what sets the newer architectures apart; Llama 3's frequencies as published
OWN = {
    "qwen3": dict(qkv_bias=False, qk_norm=True, head_dim=16),
    "llama3": dict(qkv_bias=False, rope_theta=500000.0, rope_factor=32.0, positions=131072),
}


def shape_for(name, **changes):
    return shape_of(**{**changes, **OWN.get(name, {})})


def random_model(folder, adapter, shape, dtype=torch.float32):
    """A Hugging Face folder with random weights, norms and biases among them, and the model itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(hash((adapter.MODEL_TYPE, shape)) % 1000)
    configuration = AutoConfig.for_model(adapter.MODEL_TYPE, **adapter.config(shape), bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(configuration).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1, 0.3)
            elif name.endswith("o_proj.bias"):
                parameter.zero_()
            else:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return model


def as_read(folder):
    return {name: safetensors_files.read(stored) for name, stored in safetensors_files.contents(folder).items()}


def import_only(model, output):
    """`import_hf` without its gate, which costs a process: the grid has one of its own."""
    import_hf.import_folder.__globals__["parity"] = SimpleNamespace(
        prompt_ids=lambda *a: [], megatron_logits=lambda *a: [], hugging_face_logits=lambda *a: [],
        compare=lambda *a: {"passed": True},
    )  # fmt: skip
    try:
        import_hf.import_folder(model, output)
    finally:
        import_hf.import_folder.__globals__["parity"] = parity


def export_only(iteration, output, architecture=None):
    """The weights' part of `export`: every check but the forward passes."""
    arguments = checkpoint.arguments(iteration)
    sizes = vocabulary.of_checkpoint(arguments, 100)
    adapter = architectures.adapter_of_arguments(arguments, architecture)
    shape = families.shape_of_arguments(arguments, sizes.hugging_face, adapter.FLAGS)
    source = checkpoint.Checkpoint(iteration)
    plan.check_keys(source.shapes, plan.megatron_shapes(adapter, shape, sizes.padded), "checkpoint")
    output.mkdir()
    export.write_weights(source, adapter, shape, output)
    return adapter, shape


MODELS = {
    f"{name}-{kind}-{'tied' if tied else 'untied'}-{'bias' if bias else 'plain'}-{vocab}": (
        name,
        shape_for(name, groups=groups, tied=tied, qkv_bias=bias, vocab=vocab),
    )
    for name, (kind, groups), tied, bias, vocab in itertools.product(
        architectures.names(), HEADS.items(), (True, False), (True, False), (128, 101)
    )
    if bias or name != "qwen2"  # Hugging Face's Qwen2 always has the biases; see the test below
    if name not in OWN or (not bias and vocab == 101)
}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Random models, imported; then Megatron itself loads each in each layout, runs it, and saves it."""
    work = tmp_path_factory.mktemp("grid")
    write_json(work / "plan.json", {"layouts": LAYOUTS, "models": list(MODELS)})
    write_json(work / "prompt.json", PROMPT)
    for name, (architecture, shape) in MODELS.items():
        model = random_model(work / name / "model", architectures.adapter(architecture), shape)
        with torch.no_grad():
            torch.save(model(torch.tensor([PROMPT])).logits[0], work / name / "logits.pt")
        import_only(work / name / "model", work / name / "imported")
    torchrun = os.path.join(os.path.dirname(sys.executable), "torchrun")
    with (work / "log").open("w") as log:
        command = [torchrun, "--standalone", "--nproc-per-node=8", "tests/converters/megatron_grid.py", str(work)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, env=environment)
    assert result.returncode == 0, (work / "log").read_text()[-3000:]
    return work


@pytest.mark.slow
def test_megatron_answers_as_hugging_face_in_every_layout(grid):
    differences = read_json(grid / "differences.json")
    assert len(differences) == len(MODELS) * len(LAYOUTS)
    assert {name: found for name, found in differences.items() if not found <= parity.MAX_DIFFERENCE} == {}
    assert max(differences.values()) > 0  # Megatron's arithmetic is its own


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "TP{} PP{}".format(*layout))
def test_what_megatron_saved_comes_back_bit_for_bit(grid, layout, tmp_path):
    for name in MODELS:
        iteration = grid / name / "{}x{}".format(*layout)
        export_only(iteration, tmp_path / name, MODELS[name][0])
        expected, found = as_read(grid / name / "model"), as_read(tmp_path / name)
        expected = {key: tensor for key, tensor in expected.items() if not MODELS[name][1].tied or key in found}
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), name


@pytest.mark.slow
def test_a_model_without_bias_becomes_qwen2_with_zeros(grid, tmp_path):
    from transformers import AutoModelForCausalLM

    name = "llama2-GQA-untied-plain-101"
    adapter, shape = export_only(grid / name / "2x2", tmp_path / "qwen2", "qwen2")
    export.write_description(tmp_path / "qwen2", adapter, shape, {"begin": None, "end": 0}, "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen2", dtype=torch.float32)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits, torch.load(grid / name / "logits.pt"), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A random Qwen2 with a tokenizer, imported and exported by the commands, with their gates."""
    work = tmp_path_factory.mktemp("whole")
    texts = ["春风明月夜，江山白云天。" * 3, "花鸟雨雪山水。"]
    made = tokenizer_maker.train(iter(texts), 280, split_characters=True)
    (work / "tokenizer").mkdir()
    tokenizer_maker.save(made, work / "tokenizer", "qwen2", model_max_length=64)
    size = export.tokenizer_ids(work / "tokenizer")["size"]
    random_model(work / "model", architectures.adapter("qwen2"), shape_of(vocab=size))
    shutil.copyfile(work / "tokenizer" / "tokenizer.json", work / "model" / "tokenizer.json")
    for module, options in (
        ("import_hf", ("--model", work / "model", "--output", work / "imported")),
        ("export", ("--checkpoint", work / "imported", "--tokenizer", work / "tokenizer", "--output", work / "back")),
        ("export", ("--checkpoint", work / "imported", "--tokenizer", work / "tokenizer", "--output", work / "half",
                    "--dtype", "bfloat16")),
    ):  # fmt: skip
        result = typed(f"converters.{module}", *options)
        assert result.returncode == 0, result.stdout + result.stderr
    return work


def test_there_and_back(whole):
    before, after, half = (as_read(whole / name) for name in ("model", "back", "half"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(before[key].bfloat16(), half[key]) for key in before)
    for name in ("imported", "back", "half"):
        figures = read_json(whole / name / "parity.json")
        assert figures["passed"] and figures["argmax_agreement"] == 100 and 0 < figures["max_abs_diff"] < 1e-4
    assert read_json(whole / "half" / "config.json")["torch_dtype"] == "bfloat16"
    assert read_json(whole / "half" / "parity.json")["gated_in"] == "float32"


@pytest.mark.slow
def test_transformers_5_gives_the_same_logits_and_ids(whole):
    """The environments differ in transformers' major version; the folder must mean the same in both."""
    other = REPOSITORY / ".venv-serve" / "bin" / "python"
    if not other.exists():
        pytest.skip("needs .venv-serve (make env-serve)")
    script = (
        "import sys, torch, transformers\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2])['input_ids']\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "torch.save([transformers.__version__, ids, model(torch.tensor([ids])).logits.detach()], sys.argv[3])\n"
    )
    found = []
    for number, python in enumerate((sys.executable, str(other))):
        answer = whole / f"answer-{number}.pt"
        arguments = [str(whole / "back"), "春风明月夜，<|im_start|>江山 x", str(answer)]
        subprocess.run([python, "-c", script, *arguments], check=True, capture_output=True)
        found.append(torch.load(answer))
    assert found[0][0].startswith("4.") and found[1][0].startswith("5.")
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-5, rtol=0)


def swapped_split(self, tensor, shape):
    return list(reversed(tensor.split(shape.ffn)))


def swap_gate_and_up(patch):
    """Wrong both ways, so that the round trip alone would not see it."""
    patch.setattr(rules.GateUp, "split", swapped_split)
    patch.setattr(rules.GateUp, "join", lambda self, tensors, shape: torch.cat(list(reversed(tensors))))


def forget_grouping(patch):
    def split(self, tensor, shape):
        return list(tensor.split([shape.query, shape.key_value, shape.key_value]))

    patch.setattr(rules.GroupedQKV, "split", split)
    patch.setattr(rules.GroupedQKV, "join", lambda self, tensors, shape: torch.cat(list(tensors)))


def swap_norms(patch):
    first, second = (rule for rule in rules.LAYER if "layer_norm" in (rule.megatron or ""))
    others = tuple(rule for rule in rules.LAYER if rule not in (first, second))
    wrong = (rules.Same(first.megatron, second.name, first.dimensions),
             rules.Same(second.megatron, first.name, second.dimensions))  # fmt: skip
    patch.setattr(architectures.adapter("qwen2"), "LAYER", (*others, *wrong))


def turn_one_norm(patch):
    class Turned(rules.Same):
        def split(self, tensor, shape):
            return [tensor.flip(0)]

        def join(self, tensors, shape):
            return tensors[0].flip(0)

    last = rules.MODEL[1]
    turned = Turned(last.megatron, last.name, last.dimensions)
    patch.setattr(architectures.adapter("qwen2"), "MODEL", (rules.MODEL[0], turned))


def wrong_theta(patch):
    adapter = architectures.adapter("qwen2")
    right = adapter.config

    def config(shape):
        return {**right(shape), "rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}

    patch.setattr(adapter, "config", config)


def untie(patch):
    adapter = architectures.adapter("qwen2")
    right = adapter.config
    patch.setattr(adapter, "config", lambda shape: {**right(shape), "tie_word_embeddings": False})


def wrong_epsilon(patch):
    adapter = architectures.adapter("qwen2")
    right = adapter.config
    patch.setattr(adapter, "config", lambda shape: {**right(shape), "rms_norm_eps": 1e-2})


@pytest.fixture(scope="module")
def megatrons_answer(whole):
    prompts = parity.prompt_ids(whole / "tokenizer", export.tokenizer_ids(whole / "tokenizer")["size"], 64)
    return parity.megatron_logits(checkpoint.latest_iteration(whole / "imported"), prompts)


MUTATIONS = (
    swap_gate_and_up,
    forget_grouping,
    swap_norms,
    turn_one_norm,
    wrong_theta,
    untie,
    wrong_epsilon,
)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_the_gate_catches_every_wrong_rule(mutate, whole, megatrons_answer, monkeypatch, tmp_path):
    monkeypatch.setattr(parity, "megatron_logits", lambda *_: megatrons_answer)
    export.export(whole / "imported", whole / "tokenizer", tmp_path / "right")
    mutate(monkeypatch)
    with pytest.raises(UserError, match=r"differs from the original|missing, unexpected or misshapen"):
        export.export(whole / "imported", whole / "tokenizer", tmp_path / "wrong")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["right"]
    if mutate is not untie:
        assert not read_json(tmp_path / "wrong.parity-failed.json")["passed"]


def test_an_adapter_that_loses_numbers_is_caught_before_any_forward(whole, monkeypatch, tmp_path):
    monkeypatch.setattr(rules.GateUp, "split", swapped_split)
    with pytest.raises(UserError, match="does not convert back to the same values"):
        export.export(whole / "imported", whole / "tokenizer", tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(architectures.names()),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_any_shape_comes_back(name, layers, groups, per_group, half_head, ffn, vocab, tied, bias):
    adapter = architectures.adapter(name)
    shape = shape_of(
        layers=layers, groups=groups, heads=groups * per_group, head_dim=2 * half_head, ffn=ffn, vocab=vocab,
        hidden=groups * per_group * 2 * half_head, tied=tied, qkv_bias=bias,
    )  # fmt: skip
    sizes = plan.megatron_shapes(adapter, shape, vocab)
    for piece in plan.pieces(adapter, shape):
        if piece.megatron is None:
            continue
        tensor = torch.randn(sizes[piece.megatron][piece.layer is not None :])
        parts = piece.rule.split(tensor, shape)
        assert [tuple(part.shape) for part in parts] == piece.rule.hugging_face_shapes(shape)
        assert torch.equal(piece.rule.join(parts, shape), tensor)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=8),
    st.integers(1, 300),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_shards_are_what_the_library_reads(tmp_path_factory, shapes, shard_bytes, dtype):
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": torch.randn(shape).to(getattr(torch, dtype)) for i, shape in enumerate(shapes)}
    entries = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with safetensors_files.Writer(folder, entries, dtype, shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    read = {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}
    ours = as_read(folder)
    assert read.keys() == ours.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) and torch.equal(ours[key], tensors[key]) for key in tensors)


def test_pieces_are_merged_as_torch_merges_them(tmp_path):
    """Rows in two pieces, layers in four, one of them cut along its last dimension as tensor parallel does."""
    stacked, rows = torch.randn(4, 6, 8), torch.randn(10, 8)
    with checkpoint.Writer(tmp_path / "c", {"rows": (10, 8), "stacked": (4, 6, 8)}, "float32") as writer:
        writer.write("rows", rows[:7])
        writer.write("rows", rows[7:], row=7)
        for layer in range(4):
            writer.write("stacked", stacked[layer], layer)
    state = {"rows": torch.empty(10, 8), "stacked": torch.empty(4, 6, 8)}
    torch.distributed.checkpoint.load(state, checkpoint_id=str(tmp_path / "c"), no_dist=True)
    assert torch.equal(state["rows"], rows) and torch.equal(state["stacked"], stacked)
    source = checkpoint.Checkpoint(tmp_path / "c")
    assert torch.equal(source.read("rows"), rows) and torch.equal(source.read("stacked"), stacked)
    assert all(torch.equal(source.read("stacked", layer), stacked[layer]) for layer in range(4))


# What a checkpoint of Transformer Engine layers holds beside the optimizer: `sharded_state_dict` of
# TELayerNormColumnParallelLinear, TERowParallelLinear, TEDotProductAttention and TENorm, megatron-core 0.19.2.
TRANSFORMER_ENGINE = (
    "embedding.word_embeddings.weight",
    "decoder.layers.self_attention.linear_proj.weight",
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "decoder.layers.self_attention.linear_qkv.weight",
    "decoder.layers.self_attention.linear_qkv.bias",
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "decoder.layers.mlp.linear_fc1.weight",
    "decoder.layers.mlp.linear_fc2.weight",
    "decoder.final_layernorm.weight",
)
TRANSFORMER_ENGINE_OBJECTS = (
    "decoder.layers.self_attention.core_attention._extra_state/shard_0_2",
    "decoder.layers.self_attention.linear_qkv._extra_state/shard_1_2",
    "decoder.layers.mlp.linear_fc2._extra_state/shard_0_2",
    "decoder.final_layernorm._extra_state/shard_0_1",
    "rng_state/shard_0.0_1.1",
)


def test_names_of_transformer_engine_layers_are_taken(tmp_path):
    adapter, shape = architectures.adapter("qwen2"), shape_of()
    sizes = plan.megatron_shapes(adapter, shape, 128)
    assert set(TRANSFORMER_ENGINE) == set(sizes)
    with checkpoint.Writer(tmp_path / "c", {**sizes, "optimizer.state.exp_avg.x": (3,)}, "bfloat16") as writer:
        for name, size in sizes.items():
            writer.write(name, torch.randn(size).bfloat16())
        writer.write("optimizer.state.exp_avg.x", torch.zeros(3))
        for name in TRANSFORMER_ENGINE_OBJECTS:
            writer.write_object(name, None)
    source = checkpoint.Checkpoint(tmp_path / "c")
    plan.check_keys(source.shapes, sizes, "checkpoint")
    (tmp_path / "out").mkdir()
    export.write_weights(source, adapter, shape, tmp_path / "out")
    assert dict(plan.hugging_face_entries(adapter, shape)).keys() == as_read(tmp_path / "out").keys()


@pytest.mark.parametrize(
    ("size", "stored", "padded", "tensor_parallel", "expected"),
    [(101, None, 128, 1, 101), (101, None, 256, 2, 101), (128, None, 128, 1, 128), (90, 101, 128, 1, 101)],
)
def test_vocabulary_sizes(size, stored, padded, tensor_parallel, expected):
    run = SimpleNamespace(
        vocab_size=stored, padded_vocab_size=padded, make_vocab_size_divisible_by=128,
        tensor_model_parallel_size=tensor_parallel,
    )  # fmt: skip
    assert vocabulary.of_checkpoint(run, size) == vocabulary.Vocabulary(size, expected, padded)


@pytest.mark.parametrize(("size", "padded"), [(300, 128), (100, 512)])
def test_a_tokenizer_of_another_model_is_refused(size, padded):
    run = SimpleNamespace(
        vocab_size=None, padded_vocab_size=padded, make_vocab_size_divisible_by=128, tensor_model_parallel_size=1
    )
    with pytest.raises(UserError, match="give the tokenizer that the model was trained with"):
        vocabulary.of_checkpoint(run, size)


def arguments(**changes):
    described = families.megatron_arguments(shape_of(), 128, 128, 1)
    return argparse.Namespace(**{**described, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": "LayerNorm"}, "--normalization = LayerNorm"),
        ({"swiglu": False}, "--swiglu = False"),
        ({"qk_layernorm": True}, "--qk-layernorm"),
        ({"rotary_percent": 0.5}, "--rotary-percent"),
    ],
)
def test_a_foreign_checkpoint_names_the_flag(changes, message):
    with pytest.raises(UserError, match=message):
        families.shape_of_arguments(arguments(**changes), 101)


@pytest.mark.parametrize("name", architectures.names())
def test_arguments_and_shape_are_inverse(name):
    adapter, shape = architectures.adapter(name), shape_for(name, qkv_bias=name == "qwen2")
    described = argparse.Namespace(**families.megatron_arguments(shape, 128, 128, 1))
    assert families.shape_of_arguments(described, 101, adapter.FLAGS) == shape
    assert architectures.adapter_of_arguments(described) is adapter


@pytest.mark.parametrize("name", architectures.names())
def test_configuration_and_shape_are_inverse(name):
    adapter, shape = architectures.adapter(name), shape_for(name)
    config = {**adapter.config(shape), "model_type": adapter.MODEL_TYPE}
    assert adapter.shape_of(config) == shape
    assert architectures.adapter_of_config(config) is adapter


# config.json as the Hub has them, but for what no program here reads
PUBLISHED = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "llama3.2-1b": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_shape(name):
    config = PUBLISHED[name]
    adapter = architectures.adapter_of_config(config)
    shape = adapter.shape_of(config)
    found = load_recipe(name, "zh-10b", "gpu-1-80gb")
    args = flags.validate(flags_of(found), layout_of(found))
    assert families.shape_of_arguments(args, shape.vocab, adapter.FLAGS) == shape
    args.padded_vocab_size = shape.vocab
    assert worker.model_config(args).rope_scaling_factor == (shape.rope_factor or 8.0)


@pytest.mark.parametrize(
    "changes",
    [{"rope_type": "yarn"}, {"original_max_position_embeddings": 4096}, {"high_freq_factor": 2.0}, {"type": "linear"}],
)
def test_another_scaling_of_rotary_embeddings_is_refused(changes):
    config = PUBLISHED["llama3.2-1b"]
    scaling = {**config["rope_scaling"], **changes}
    if "type" in changes:
        scaling.pop("rope_type")
    config = {**config, "rope_scaling": scaling}
    with pytest.raises(UserError, match="scales its rotary embeddings"):
        architectures.adapter_of_config(config).shape_of(config)


def swap_query_and_key_norms(adapter, patch):
    right = adapter.layer_rules

    def layer_rules(shape):
        query, key = right(shape)[-2:]
        return (*right(shape)[:-2], replace(query, name=key.name), replace(key, name=query.name))

    patch.setattr(adapter, "layer_rules", layer_rules)


def without_scaling(adapter, patch):
    """The factor of Llama 3.1, which megatron-core 0.19.2 trains with unless it is told twice."""
    right = adapter.config
    patch.setattr(adapter, "config", lambda shape: right(replace(shape, rope_factor=8.0)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mutate"), [("qwen3", swap_query_and_key_norms), ("llama3", without_scaling)])
def test_the_gate_knows_what_sets_an_architecture_apart(name, mutate, monkeypatch, tmp_path):
    adapter = architectures.adapter(name)
    random_model(tmp_path / "model", adapter, shape_for(name, vocab=101))
    import_hf.import_folder(tmp_path / "model", tmp_path / "imported")
    iteration = checkpoint.latest_iteration(tmp_path / "imported")
    _, shape = export_only(iteration, tmp_path / "back")
    before, after = as_read(tmp_path / "model"), as_read(tmp_path / "back")
    assert all(torch.equal(before[key], after[key]) for key in after) and after
    prompts = parity.prompt_ids(tmp_path, 101, shape.positions)
    logits = parity.megatron_logits(iteration, prompts)
    for wrong in (False, True):
        if wrong:
            mutate(adapter, monkeypatch)
        export_only(iteration, tmp_path / f"wrong-{wrong}")
        export.write_description(tmp_path / f"wrong-{wrong}", adapter, shape, {"begin": None, "end": 0}, "float32")
        figures = parity.compare(logits, parity.hugging_face_logits(tmp_path / f"wrong-{wrong}", prompts))
        assert figures["passed"] is not wrong, figures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, "scales its rotary"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rms_norm_eps": None, "hidden_size": None}, "has no hidden_size"),
    ],
)
def test_a_foreign_configuration_names_the_key(whole, changes, message, tmp_path):
    shutil.copytree(whole / "model", tmp_path / "model")
    config = {**read_json(tmp_path / "model" / "config.json"), **changes}
    write_json(tmp_path / "model" / "config.json", {k: v for k, v in config.items() if v is not None})
    with pytest.raises(UserError, match=message):
        import_hf.import_folder(tmp_path / "model", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_missing_extra_and_misshapen_weights_are_named():
    adapter, shape = architectures.adapter("qwen2"), shape_of()
    sizes = plan.megatron_shapes(adapter, shape, 128)
    key = "decoder.layers.mlp.linear_fc2.weight"
    with pytest.raises(UserError, match="lacks .*linear_fc2"):
        plan.check_keys({k: v for k, v in sizes.items() if k != key}, sizes, "it")
    with pytest.raises(UserError, match="also has .*expert"):
        plan.check_keys({**sizes, "decoder.layers.mlp.expert": (1,)}, sizes, "it")
    with pytest.raises(UserError, match="the model's configuration gives"):
        plan.check_keys({**sizes, key: (2, 48, 32)}, sizes, "it")


def damaged(source, target, harm):
    shutil.copytree(source, target)
    harm(target)
    return target


def test_a_damaged_checkpoint_is_one_line(whole, tmp_path):
    def cut(folder):
        shard = next(folder.glob("*/*.distcp"))
        os.truncate(shard, shard.stat().st_size // 2)

    cases = {
        "cannot read the run's arguments|truncated or damaged": cut,
        "missing|cannot read": lambda folder: next(folder.glob("*/*.distcp")).unlink(),
        "is an incomplete torch_dist checkpoint": lambda folder: (folder / "release" / ".metadata").unlink(),
        "has no finished checkpoint": lambda folder: (folder / checkpoint.LATEST).unlink(),
        r"\.metadata cannot be read|cannot read the run's arguments": lambda folder: (
            folder / "release" / ".metadata"
        ).write_bytes(b"x"),
    }
    for number, (message, harm) in enumerate(cases.items()):
        folder = damaged(whole / "imported", tmp_path / f"c{number}", harm)
        with pytest.raises(UserError, match=message):
            export.export(folder, whole / "tokenizer", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_damaged_hugging_face_folder_is_one_line(whole, tmp_path):
    def half(folder):
        os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)

    def index_without_shard(folder):
        (folder / "model.safetensors").unlink()
        write_json(folder / safetensors_files.INDEX, {"weight_map": {"model.norm.weight": "model-00001.safetensors"}})

    def pickle_only(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    cases = {
        "is truncated": half,
        "model-00001.safetensors is missing": index_without_shard,
        "save the model as safetensors": pickle_only,
        "is not a safetensors file": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99),
        "config.json does not exist": lambda folder: (folder / "config.json").unlink(),
    }
    for number, (message, harm) in enumerate(cases.items()):
        folder = damaged(whole / "model", tmp_path / f"m{number}", harm)
        with pytest.raises(UserError, match=message):
            import_hf.import_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_bias_that_megatron_has_no_place_for_is_refused(tmp_path):
    adapter = architectures.adapter("llama2")
    model = random_model(tmp_path / "model", adapter, shape_of())
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.bias[3] = 1.0
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"layers.1.self_attn.o_proj.bias is not zero"):
        import_hf.import_folder(tmp_path / "model", tmp_path / "out")


def test_a_full_folder_and_a_full_disk_lose_nothing(whole, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="has files that no conversion made"):
        export.export(whole / "imported", whole / "tokenizer", tmp_path / "mine")
    with pytest.raises(UserError, match="has files that no conversion made"):
        import_hf.import_folder(whole / "model", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"

    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(safetensors_files.Writer, "write", full)
    monkeypatch.setattr(checkpoint.Writer, "write", full)
    for convert in (
        lambda: export.export(whole / "imported", whole / "tokenizer", tmp_path / "out"),
        lambda: import_hf.import_folder(whole / "model", tmp_path / "out"),
    ):
        with pytest.raises(OSError, match="No space left"):
            convert()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_killed_in_the_middle_leaves_no_folder(whole, tmp_path):
    """SIGKILL while weights are written: no output folder; the same command then makes it."""
    slow = (
        "import os, signal, sys; from pathlib import Path\n"
        "from converters import export, safetensors_files as s\n"
        "write, count = s.Writer.write, iter(range(99))\n"
        "s.Writer.write = lambda *a: os.kill(os.getpid(), signal.SIGKILL) if next(count) == 9 else write(*a)\n"
        "export.export(*map(Path, sys.argv[1:]))\n"
    )
    paths = [str(whole / "imported"), str(whole / "tokenizer"), str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", slow, *paths], cwd=REPOSITORY, capture_output=True)
    assert result.returncode == -9 and not (tmp_path / "out").exists()
    command = [sys.executable, "-m", "converters.export"]
    for name, path in zip(("--checkpoint", "--tokenizer", "--output"), paths, strict=True):
        command += [name, path]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["passed"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="not finite"):
        parity.compare([torch.tensor([[float("nan"), 1.0]])], [torch.tensor([[0.0, 1.0]])])


def test_a_token_of_the_padding_fails_the_gate():
    """The argmax is taken over the padded rows too: a model that would emit one is not handed on."""
    figures = parity.compare([torch.tensor([[0.0, 1.0, 9.0]])], [torch.tensor([[0.0, 1.0]])])
    assert figures["max_abs_diff"] == 0 and not figures["passed"] and figures["padding_probability"] > 0.9
