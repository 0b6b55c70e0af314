"""Qwen2: names and shapes between a Megatron GPT model and Hugging Face's `Qwen2ForCausalLM`.

Megatron stacks the weights of all layers, groups query, key and value rows by key-value head (for each: its query
heads, then key, then value), and writes gate rows before up rows in `linear_fc1`. Norms carry Transformer Engine's
names from either layer spec. Rotary embeddings need no permutation (both rotate halves).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError

MODEL_TYPE = "qwen2"
ARCHITECTURE = "Qwen2ForCausalLM"
QKV_BIAS = True

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
LAYER = "decoder.layers."
INPUT_NORM = LAYER + "self_attention.linear_qkv.layer_norm_weight"
QKV = LAYER + "self_attention.linear_qkv."
PROJECTION = LAYER + "self_attention.linear_proj.weight"
MLP_NORM = LAYER + "mlp.linear_fc1.layer_norm_weight"
GATE_UP = LAYER + "mlp.linear_fc1.weight"
DOWN = LAYER + "mlp.linear_fc2.weight"


@dataclass(frozen=True)
class Shape:
    """What of a model's shape the conversion needs; read from the run's Megatron arguments."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_dim: int
    vocab: int
    positions: int
    rope_theta: float
    norm_epsilon: float
    tied: bool


def shape_of(arguments: Any, vocab: int) -> Shape:
    """The shape of a run; raises UserError when its architecture is not this one, naming the flag."""
    wanted = {
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": QKV_BIAS,
    }
    for flag, value in wanted.items():
        found = getattr(arguments, flag, None)
        if found != value:
            raise UserError(
                f"the checkpoint is not {MODEL_TYPE}: its --{flag.replace('_', '-')} is {found}, not {value}"
            )
    groups = arguments.num_query_groups if arguments.group_query_attention else arguments.num_attention_heads
    return Shape(
        layers=arguments.num_layers,
        hidden=arguments.hidden_size,
        ffn=arguments.ffn_hidden_size,
        heads=arguments.num_attention_heads,
        groups=groups,
        head_dim=arguments.kv_channels,
        vocab=vocab,
        positions=arguments.max_position_embeddings,
        rope_theta=float(arguments.rotary_base),
        norm_epsilon=arguments.layernorm_epsilon,
        tied=not arguments.untie_embeddings_and_output_weights,
    )


def config(shape: Shape, eos_token_id: int, dtype: str) -> dict[str, Any]:
    """`config.json`. `rope_theta` stands in both places: transformers 4.57 reads the one, 5.x the other."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tied,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def megatron_shapes(shape: Shape, padded_vocab: int) -> dict[str, tuple[int, ...]]:
    """Every Megatron key with its shape, the strict set that a checkpoint must hold."""
    rows = shape.groups * (shape.heads // shape.groups + 2) * shape.head_dim
    layers, hidden = shape.layers, shape.hidden
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (padded_vocab, hidden),
        FINAL_NORM: (hidden,),
        INPUT_NORM: (layers, hidden),
        QKV + "weight": (layers, rows, hidden),
        PROJECTION: (layers, hidden, shape.heads * shape.head_dim),
        MLP_NORM: (layers, hidden),
        GATE_UP: (layers, 2 * shape.ffn, hidden),
        DOWN: (layers, hidden, shape.ffn),
    }
    if QKV_BIAS:
        shapes[QKV + "bias"] = (layers, rows)
    if not shape.tied:
        shapes[OUTPUT] = (padded_vocab, hidden)
    return shapes


def to_hugging_face(weights: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Weights by Hugging Face's names, from Megatron's; padded vocabulary rows are cut."""
    per_group = shape.heads // shape.groups
    result = {
        "model.embed_tokens.weight": weights[EMBEDDING][: shape.vocab],
        "model.norm.weight": weights[FINAL_NORM],
    }
    if not shape.tied:
        result["lm_head.weight"] = weights[OUTPUT][: shape.vocab]
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for kind in ("weight", "bias") if QKV_BIAS else ("weight",):
            stacked = weights[QKV + kind][layer]
            grouped = stacked.reshape(shape.groups, per_group + 2, shape.head_dim, *stacked.shape[1:])
            parts = {"q": grouped[:, :per_group], "k": grouped[:, per_group], "v": grouped[:, per_group + 1]}
            for name, rows in parts.items():
                result[f"{prefix}self_attn.{name}_proj.{kind}"] = rows.reshape(-1, *stacked.shape[1:])
        gate, up = weights[GATE_UP][layer].split(shape.ffn)
        result[prefix + "self_attn.o_proj.weight"] = weights[PROJECTION][layer]
        result[prefix + "mlp.gate_proj.weight"] = gate
        result[prefix + "mlp.up_proj.weight"] = up
        result[prefix + "mlp.down_proj.weight"] = weights[DOWN][layer]
        result[prefix + "input_layernorm.weight"] = weights[INPUT_NORM][layer]
        result[prefix + "post_attention_layernorm.weight"] = weights[MLP_NORM][layer]
    return {name: tensor.contiguous() for name, tensor in result.items()}


def to_megatron(weights: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The inverse of `to_hugging_face`, without padding: used to prove that nothing was lost."""
    import torch

    def each(name: str) -> list[Any]:
        return [weights[f"model.layers.{layer}.{name}"] for layer in range(shape.layers)]

    result = {
        EMBEDDING: weights["model.embed_tokens.weight"],
        FINAL_NORM: weights["model.norm.weight"],
        PROJECTION: torch.stack(each("self_attn.o_proj.weight")),
        DOWN: torch.stack(each("mlp.down_proj.weight")),
        INPUT_NORM: torch.stack(each("input_layernorm.weight")),
        MLP_NORM: torch.stack(each("post_attention_layernorm.weight")),
    }
    if not shape.tied:
        result[OUTPUT] = weights["lm_head.weight"]
    for kind in ("weight", "bias") if QKV_BIAS else ("weight",):
        layers = []
        for q, k, v in zip(*(each(f"self_attn.{name}_proj.{kind}") for name in "qkv"), strict=True):
            rest = q.shape[1:]
            grouped = [part.reshape(shape.groups, -1, shape.head_dim, *rest) for part in (q, k, v)]
            layers.append(torch.cat(grouped, dim=1).reshape(-1, *rest))
        result[QKV + kind] = torch.stack(layers)
    gates, ups = each("mlp.gate_proj.weight"), each("mlp.up_proj.weight")
    result[GATE_UP] = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    return result
