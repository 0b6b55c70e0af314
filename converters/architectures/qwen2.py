"""Qwen2 (arXiv 2407.10671): RMSNorm, SwiGLU, RoPE, grouped queries, a bias on query, key and value only."""

from __future__ import annotations

from typing import Any

from converters.families import decoder_config, shape_of_config
from converters.rules import LAYER, MODEL, UNTIED, GroupedQKV, Rule, Shape, Zeros

MODEL_TYPE = "qwen2"
ARCHITECTURE = "Qwen2ForCausalLM"
FLAGS = {"add_qkv_bias": True}


def model_rules(shape: Shape) -> tuple[Rule, ...]:
    return MODEL if shape.tied else (*MODEL, UNTIED)


def layer_rules(shape: Shape) -> tuple[Rule, ...]:
    """Hugging Face's class always has the three biases. A model trained without them gets zeros."""
    if shape.qkv_bias:
        return (*LAYER, GroupedQKV("bias"))
    biases = (("q", "query"), ("k", "key_value"), ("v", "key_value"))
    return (*LAYER, *(Zeros(f"self_attn.{part}_proj.bias", rows) for part, rows in biases))


def config(shape: Shape) -> dict[str, Any]:
    """Keys of `config.json`, apart from token ids and dtype."""
    return {**decoder_config(shape), "use_sliding_window": False}


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape of a published model. Raises UserError for a setting that Megatron's GPT model lacks."""
    return shape_of_config(config, qkv_bias=True, unset={"use_sliding_window": False})
