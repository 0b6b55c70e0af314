"""Compute the logits of Megatron's own forward pass for the parity check: one process, fp32, no training stack.

    python -m converters.megatron_forward CHECKPOINT/iter_0000100 prompts.json logits.pt

The model is Megatron's `GPTModel`, built from the arguments in the checkpoint (local layer spec). Megatron's own
`dist_checkpointing` reads the weights, so this side of the comparison uses none of the conversion code.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from artifacts.errors import run_main
from converters.checkpoint import arguments as read_arguments


def build(arguments: Any, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> Any:
    """Build this rank's part of the run's model, in fp32 and evaluation mode. Needs Megatron's parallel state."""
    import torch
    import torch.nn.functional as F
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=arguments.num_layers,
        hidden_size=arguments.hidden_size,
        ffn_hidden_size=arguments.ffn_hidden_size,
        num_attention_heads=arguments.num_attention_heads,
        num_query_groups=arguments.num_query_groups if arguments.group_query_attention else None,
        kv_channels=arguments.kv_channels,
        add_bias_linear=arguments.add_bias_linear,
        add_qkv_bias=arguments.add_qkv_bias,
        qk_layernorm=getattr(arguments, "qk_layernorm", False),
        normalization=arguments.normalization,
        layernorm_epsilon=arguments.layernorm_epsilon,
        gated_linear_unit=arguments.swiglu,
        activation_func=F.silu if arguments.swiglu else F.gelu,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        pipeline_dtype=torch.float32,
    )
    spec = get_gpt_layer_local_spec(normalization=arguments.normalization, qk_layernorm=config.qk_layernorm)
    return GPTModel(
        config,
        spec,
        vocab_size=arguments.padded_vocab_size,
        max_sequence_length=arguments.max_position_embeddings,
        position_embedding_type=arguments.position_embedding_type,
        rotary_base=arguments.rotary_base,
        rope_scaling=getattr(arguments, "use_rope_scaling", False),
        rope_scaling_factor=getattr(arguments, "rope_scaling_factor", 8.0),
        share_embeddings_and_output_weights=not arguments.untie_embeddings_and_output_weights,
        parallel_output=False,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    ).eval()


def main() -> None:
    iteration, requests, answers = map(Path, sys.argv[1:4])
    import torch

    if not torch.cuda.is_available():
        from artifacts import megatron_on_cpu

        megatron_on_cpu.patch_torch()
    arguments = read_arguments(iteration)
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = torch.distributed.HashStore()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    model = build(arguments).cuda()  # built on the CPU; without a GPU, megatron_on_cpu makes .cuda() a no-op
    wanted = model.state_dict().keys()
    loaded = dist_checkpointing.load(model.sharded_state_dict(), str(iteration))
    # dist_checkpointing.load also returns non-tensors (arguments, schedules), whatever was requested
    model.load_state_dict({key: value for key, value in loaded.items() if key in wanted}, strict=True)
    logits = []
    with torch.no_grad():
        for ids in json.loads(requests.read_text()):
            tokens = torch.tensor([ids]).cuda()
            positions = torch.arange(len(ids)).unsqueeze(0).cuda()
            mask = torch.triu(torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool), diagonal=1).cuda()
            logits.append(model(tokens, positions, mask)[0].float().cpu())
    torch.save(logits, answers)


if __name__ == "__main__":
    run_main(main)
