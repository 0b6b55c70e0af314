"""Use PyTorch's scaled dot-product attention in Megatron's local layers.

Enable it with Megatron's flag `--spec launch.pretraining.attention layer_spec`.

Stock local layers materialise the whole matrix of attention scores. `torch.nn.functional.scaled_dot_product_attention`
(SDPA) does not: it uses flash attention on a GPU (arXiv 2205.14135) and a tiled kernel on a CPU. It has no weights, so
checkpoints with and without it are the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule


class SDPACoreAttention(MegatronModule):
    """Softmax attention over heads, in place of Megatron's `DotProductAttention`. It has no parameters.

    Raises:
        ValueError: the config asks for a sliding window, a learnable softmax or context parallel.
    """

    def __init__(
        self, config: Any, attention_dropout: float | None = None, softmax_scale: float | None = None, **_: Any
    ) -> None:
        super().__init__(config=config)
        served = {"window_size": None, "softmax_type": "vanilla", "context_parallel_size": 1}
        for key, wanted in served.items():
            if getattr(config, key) != wanted:
                raise ValueError(
                    f"launch.pretraining.attention supports only {key} = {wanted}, not {getattr(config, key)}"
                )
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = 1 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Compute attention; it is causal if no mask is given.

        Args:
            query: [sequence, batch, heads, head width]; key and value: the same with key-value heads.
            attention_mask: [batch or 1, 1, sequence, sequence], True at masked positions, or None.

        Returns:
            [sequence, batch, heads x head width]
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError(
                "launch.pretraining.attention does not support attention bias or packed sequences: use Transformer "
                "Engine"
            )
        output = torch.nn.functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return output.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)


def layer_spec(config: Any, vp_stage: int | None = None) -> Any:
    """Megatron's default local layers with this attention (what `--spec` names)."""
    from megatron.training.models.gpt import default_layer_spec

    if config.transformer.transformer_impl != "local":
        raise ValueError(
            "launch.pretraining.attention needs transformer-impl local; Transformer Engine has its own attention"
        )
    spec = default_layer_spec(config, vp_stage)
    spec.submodules.self_attention.submodules.core_attention = SDPACoreAttention
    return spec
