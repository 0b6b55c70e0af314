"""Qwen3 (arXiv 2505.09388), dense: Qwen2's layers without biases, with a norm on each query head and each key head."""

from __future__ import annotations

from typing import Any

from converters.families import decoder_config, shape_of_config
from converters.rules import LAYER, MODEL, UNTIED, Rule, Same, Shape

MODEL_TYPE = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"
FLAGS = {"add_qkv_bias": False, "qk_layernorm": True}


def model_rules(shape: Shape) -> tuple[Rule, ...]:
    return MODEL if shape.tied else (*MODEL, UNTIED)


def layer_rules(shape: Shape) -> tuple[Rule, ...]:
    """The norms are `head_dim` wide and the same for every head, so tensor parallel does not split them."""
    norms = ((f"self_attention.{part}_layernorm.weight", f"self_attn.{part}_norm.weight") for part in "qk")
    return (*LAYER, *(Same(megatron, name, ("head_dim",)) for megatron, name in norms))


def config(shape: Shape) -> dict[str, Any]:
    """Keys of `config.json`, apart from token ids and dtype."""
    return {**decoder_config(shape), "attention_bias": False, "use_sliding_window": False}


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape of a published model. Raises UserError for a setting that Megatron's GPT model lacks."""
    unset = {"attention_bias": False, "use_sliding_window": False}
    return shape_of_config(config, qkv_bias=False, unset=unset, qk_norm=True)
