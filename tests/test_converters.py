"""The Qwen2 adapter is exact in both directions, and every wrong rule is caught by what the export checks."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.errors import UserError
from converters import checkpoint, export, qwen2


def arguments(**changes):
    values = dict(
        normalization="RMSNorm", position_embedding_type="rope", swiglu=True, add_bias_linear=False, add_qkv_bias=True,
        num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, group_query_attention=True,
        num_query_groups=2, kv_channels=8, max_position_embeddings=64, rotary_base=10000, layernorm_epsilon=1e-6,
        untie_embeddings_and_output_weights=False, padded_vocab_size=128,
    )  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def random_weights(shape: qwen2.Shape, padded: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = qwen2.megatron_shapes(shape, padded)
    return {key: torch.randn(size, generator=generator) for key, size in shapes.items()}


def load_into_transformers(converted: dict, shape: qwen2.Shape):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(**qwen2.config(shape, 0, "float32")))
    report = model.load_state_dict(converted, strict=False)
    assert not report.unexpected_keys
    assert report.missing_keys == (["lm_head.weight"] if shape.tied else [])
    return model.eval()


@pytest.mark.parametrize(("groups", "untied", "vocab"), itertools.product((1, 2, 4), (False, True), (128, 101)))
def test_round_trip_is_exact_and_transformers_takes_every_weight(groups, untied, vocab):
    run = arguments(num_query_groups=groups, untie_embeddings_and_output_weights=untied)
    shape = qwen2.shape_of(run, vocab)
    weights = random_weights(shape, 128)
    export.check_keys(weights, qwen2.megatron_shapes(shape, 128))
    converted = qwen2.to_hugging_face(weights, shape)
    export.check_round_trip(weights, converted, shape)
    load_into_transformers(converted, shape)
    assert converted["model.embed_tokens.weight"].shape == (vocab, 32)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.booleans(),
)
def test_round_trip_for_any_shape(layers, groups, per_group, half_head, ffn, untied):
    heads, head_dim = groups * per_group, 2 * half_head
    run = arguments(
        num_layers=layers, num_attention_heads=heads, num_query_groups=groups, kv_channels=head_dim,
        hidden_size=heads * head_dim, ffn_hidden_size=ffn, untie_embeddings_and_output_weights=untied,
    )  # fmt: skip
    shape = qwen2.shape_of(run, 100)
    weights = random_weights(shape, 128)
    export.check_round_trip(weights, qwen2.to_hugging_face(weights, shape), shape)


def logits(model, ids):
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0]]


def swap_gate_and_up(converted, shape):
    key = "model.layers.0.mlp."
    gate, up = converted[key + "gate_proj.weight"], converted[key + "up_proj.weight"]
    return {**converted, key + "gate_proj.weight": up, key + "up_proj.weight": gate}


def forget_grouping(converted, shape):
    q = converted["model.layers.0.self_attn.q_proj.weight"]
    return {**converted, "model.layers.0.self_attn.q_proj.weight": q.flip(0)}


def swap_norms(converted, shape):
    a, b = "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"
    return {**converted, a: converted[b], b: converted[a]}


@pytest.mark.parametrize("mutate", [swap_gate_and_up, forget_grouping, swap_norms])
def test_a_wrong_rule_is_seen_in_the_logits(mutate):
    """The figures that the gate judges must move far past its threshold when one rule is wrong."""
    shape = qwen2.shape_of(arguments(), 128)
    converted = qwen2.to_hugging_face(random_weights(shape, 128), shape)
    right = logits(load_into_transformers(converted, shape), list(range(20)))
    wrong = logits(load_into_transformers(mutate(converted, shape), shape), list(range(20)))
    same = export.compare(right, right)
    assert same["max_abs_diff"] == 0 and same["argmax_agreement"] == 100
    assert export.compare(right, wrong)["max_abs_diff"] > 10 * export.MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_qkv_bias": False}, "--add-qkv-bias is False"),
        ({"normalization": "LayerNorm"}, "--normalization is LayerNorm"),
        ({"swiglu": False}, "--swiglu is False"),
    ],
)
def test_a_foreign_checkpoint_names_the_flag(changes, message):
    with pytest.raises(UserError, match=message):
        qwen2.shape_of(arguments(**changes), 128)


def test_missing_extra_and_misshapen_weights_are_named():
    shape = qwen2.shape_of(arguments(), 128)
    weights = random_weights(shape, 128)
    shapes = qwen2.megatron_shapes(shape, 128)
    with pytest.raises(UserError, match="missing .*linear_proj"):
        export.check_keys({k: v for k, v in weights.items() if k != qwen2.PROJECTION}, shapes)
    with pytest.raises(UserError, match="extra .*expert"):
        export.check_keys({**weights, "decoder.layers.mlp.expert": weights[qwen2.DOWN]}, shapes)
    with pytest.raises(UserError, match="its arguments say"):
        export.check_keys({**weights, qwen2.DOWN: weights[qwen2.DOWN].transpose(1, 2)}, shapes)


def test_no_checkpoint_and_a_cut_one_are_said(tmp_path):
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        checkpoint.latest_iteration(tmp_path)
    (tmp_path / checkpoint.LATEST).write_text("7")
    with pytest.raises(UserError, match="not a whole torch_dist checkpoint"):
        checkpoint.latest_iteration(tmp_path)
    folder = tmp_path / "iter_0000007"
    folder.mkdir()
    torch.distributed.checkpoint.save({"x": torch.zeros(3)}, checkpoint_id=str(folder), no_dist=True)
    with pytest.raises(UserError, match="arguments cannot be read"):
        checkpoint.arguments(folder)
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(UserError, match="a shard is missing or cut"):
        checkpoint.weights(folder)
