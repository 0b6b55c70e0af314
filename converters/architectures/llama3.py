"""Llama 3 (arXiv 2407.21783), from 3.1 on: Llama 2's layers, and rotary frequencies scaled for long sequences.

Llama 3 without that scaling (8B and 70B of April 2024) is Llama 2's architecture in every respect.
"""

from __future__ import annotations

from typing import Any

from converters.architectures import llama2
from converters.families import rope_of, shape_of_config
from converters.rules import Shape

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
FLAGS = {"add_qkv_bias": False, "use_rope_scaling": True}
model_rules = llama2.model_rules
layer_rules = llama2.layer_rules
config = llama2.config


def is_mine(config: dict[str, Any]) -> bool:
    return bool(rope_of(config)["rope_type"] != "default")


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape of a published model. Raises UserError for a setting that Megatron's GPT model lacks."""
    return shape_of_config(config, qkv_bias=False, unset={"attention_bias": False, "mlp_bias": False})
