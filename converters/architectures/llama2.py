"""Llama 2 (arXiv 2307.09288): RMSNorm, SwiGLU, RoPE, grouped queries, no biases."""

from __future__ import annotations

from typing import Any

from converters.families import decoder_config, rope_of, shape_of_config
from converters.rules import LAYER, MODEL, UNTIED, GroupedQKV, Rule, Shape, Zeros

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
FLAGS = {"add_qkv_bias": False}


def is_mine(config: dict[str, Any]) -> bool:
    return bool(rope_of(config)["rope_type"] == "default")


def model_rules(shape: Shape) -> tuple[Rule, ...]:
    return MODEL if shape.tied else (*MODEL, UNTIED)


def layer_rules(shape: Shape) -> tuple[Rule, ...]:
    """With `attention_bias`, Hugging Face's class also has a bias on the output projection, which Megatron lacks."""
    if not shape.qkv_bias:
        return LAYER
    return (*LAYER, GroupedQKV("bias"), Zeros("self_attn.o_proj.bias", "hidden"))


def config(shape: Shape) -> dict[str, Any]:
    """Keys of `config.json`, apart from token ids and dtype."""
    return {**decoder_config(shape), "attention_bias": shape.qkv_bias, "mlp_bias": False, "pretraining_tp": 1}


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape of a published model. Raises UserError for a setting that Megatron's GPT model lacks."""
    return shape_of_config(config, qkv_bias=bool(config.get("attention_bias")), unset={"mlp_bias": False})
