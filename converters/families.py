"""Code shared by the architectures: convert Megatron's arguments and `config.json` to a `Shape` and back."""

from __future__ import annotations

from typing import Any

from artifacts.errors import UserError
from converters.rules import Shape

ROPE_THETA = 10000.0  # transformers' default where config.json says nothing
# Llama 3's scaling as Megatron has it (`RotaryEmbedding._apply_scaling`): only the factor can be chosen there
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# flags of a Megatron run, and the values that every adapter here needs
WANTED = {"normalization": "RMSNorm", "position_embedding_type": "rope", "swiglu": True, "add_bias_linear": False}
# flags that change the forward pass; an error unless the architecture has them in its FLAGS
UNWANTED = ("qk_layernorm", "multi_latent_attention", "num_experts", "apply_layernorm_1p", "use_rope_scaling",
            "window_size", "rotary_interleaved")  # fmt: skip


def shape_of_arguments(arguments: Any, vocab: int, flags: dict[str, Any] | None = None) -> Shape:
    """The shape of a Megatron run; `flags` are the architecture's FLAGS.

    Raises:
        UserError: a flag of the run changes the forward pass in a way that the Hugging Face class does not support.
    """
    allowed = flags or {}
    for flag, general in WANTED.items():
        found, value = getattr(arguments, flag, None), allowed.get(flag, general)
        if found != value:
            raise UserError(
                f"the checkpoint was trained with --{flag.replace('_', '-')} = {found}; export supports only {value}"
            )
    for flag in UNWANTED:
        if getattr(arguments, flag, None) and flag not in allowed:
            raise UserError(
                f"the checkpoint was trained with --{flag.replace('_', '-')}, which its Hugging Face class lacks"
            )
    if getattr(arguments, "rotary_percent", 1.0) != 1.0:
        raise UserError("the checkpoint was trained with --rotary-percent, which its Hugging Face class lacks")
    return Shape(
        layers=arguments.num_layers,
        hidden=arguments.hidden_size,
        ffn=arguments.ffn_hidden_size,
        heads=arguments.num_attention_heads,
        groups=arguments.num_query_groups if arguments.group_query_attention else arguments.num_attention_heads,
        head_dim=arguments.kv_channels,
        vocab=vocab,
        positions=arguments.max_position_embeddings,
        rope_theta=float(arguments.rotary_base),
        norm_epsilon=arguments.layernorm_epsilon,
        tied=not arguments.untie_embeddings_and_output_weights,
        qkv_bias=arguments.add_qkv_bias,
        qk_norm=bool(getattr(arguments, "qk_layernorm", False)),
        rope_factor=float(arguments.rope_scaling_factor) if getattr(arguments, "use_rope_scaling", False) else None,
    )


def megatron_arguments(shape: Shape, padded: int, divisible_by: int, tensor_parallel: int) -> dict[str, Any]:
    """The inverse of `shape_of_arguments`: Megatron arguments of a checkpoint made from a Hugging Face folder."""
    return {
        **WANTED,
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "group_query_attention": shape.groups != shape.heads,
        "num_query_groups": shape.groups,
        "kv_channels": shape.head_dim,
        "max_position_embeddings": shape.positions,
        "rotary_base": int(shape.rope_theta),
        "rotary_percent": 1.0,
        "layernorm_epsilon": shape.norm_epsilon,
        "untie_embeddings_and_output_weights": not shape.tied,
        "add_qkv_bias": shape.qkv_bias,
        "qk_layernorm": shape.qk_norm,
        "use_rope_scaling": shape.rope_factor is not None,
        "rope_scaling_factor": shape.rope_factor or 8.0,
        "add_position_embedding": True,
        "vocab_size": shape.vocab,
        "padded_vocab_size": padded,
        "make_vocab_size_divisible_by": divisible_by,
        "tensor_model_parallel_size": tensor_parallel,
        "pipeline_model_parallel_size": 1,
    }


def rope_config(shape: Shape) -> dict[str, Any]:
    """The rotary embedding's keys of `config.json`. transformers 4.57 reads `rope_theta` and `rope_scaling` at the top
    level, 5.x reads `rope_parameters`, so both are written."""
    scaling = {"rope_type": "default"}
    if shape.rope_factor is not None:
        scaling = {"rope_type": "llama3", "factor": shape.rope_factor, **LLAMA3_ROPE}  # type: ignore[dict-item]
    return {
        "rope_theta": shape.rope_theta,
        "rope_parameters": {**scaling, "rope_theta": shape.rope_theta},
        **({"rope_scaling": scaling} if shape.rope_factor is not None else {}),
    }


def decoder_config(shape: Shape) -> dict[str, Any]:
    """Keys of `config.json` that all architectures here share."""
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.norm_epsilon,
        **rope_config(shape),
        "tie_word_embeddings": shape.tied,
        "vocab_size": shape.vocab,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's settings of a `config.json`, wherever it has them; `rope_type` is always there."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    return {**rope, "rope_type": rope.get("rope_type", rope.get("type", "default"))}


def rope_factor_of(rope: dict[str, Any]) -> float | None:
    """The factor of Llama 3's scaling; None without scaling. Raises UserError for a scaling that Megatron lacks."""
    if rope["rope_type"] == "default":
        return None
    other = [f"{key} {rope.get(key)} (not {value})" for key, value in LLAMA3_ROPE.items() if rope.get(key) != value]
    if rope["rope_type"] != "llama3" or other or "factor" not in rope:
        why = f": {', '.join(other)}" if rope["rope_type"] == "llama3" and other else ""
        raise UserError(f"config.json scales its rotary embeddings ({rope}), which Megatron cannot{why}")
    return float(rope["factor"])


def shape_of_config(config: dict[str, Any], qkv_bias: bool, unset: dict[str, Any], qk_norm: bool = False) -> Shape:
    """Read a `config.json` into a Shape. Raises UserError for a missing key or a setting that Megatron lacks."""
    rope = rope_of(config)
    factor = rope_factor_of(rope)
    for key, value in {"hidden_act": "silu", **unset}.items():
        if config.get(key, value) != value:
            raise UserError(f"config.json has {key} = {config[key]!r}; only {value!r} can be imported")
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            ffn=config["intermediate_size"],
            heads=heads,
            groups=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab=config["vocab_size"],
            positions=config["max_position_embeddings"],
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or ROPE_THETA),
            norm_epsilon=config["rms_norm_eps"],
            tied=config.get("tie_word_embeddings", False),
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            rope_factor=factor,
        )
    except KeyError as error:
        raise UserError(f"config.json has no {error.args[0]}: download the file again") from None
