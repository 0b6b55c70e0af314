"""Rules that convert single weights between Megatron and Hugging Face. An architecture is a table of these rules.

Every rule turns one Megatron tensor into one or more Hugging Face tensors (`split`) and back (`join`) without
arithmetic, so a round trip is exact. Rotary embeddings need no rule: both sides rotate halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Dimensions = tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder. `vocab` is Hugging Face's number of rows, without padding."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int  # key-value heads
    head_dim: int
    vocab: int
    positions: int
    rope_theta: float
    norm_epsilon: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool = False  # an RMSNorm on each query head and each key head
    rope_factor: float | None = None  # of Llama 3's scaling of rotary frequencies; None: not scaled

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        return self.groups * self.head_dim


class Rule:
    """One Megatron weight (`megatron`) and the Hugging Face weights with the same values (`hugging_face`).

    In a layer's rules, names are relative to `decoder.layers.` and `model.layers.N.`; in the model's they are complete.
    """

    megatron: str | None
    hugging_face: tuple[str, ...]

    def megatron_shape(self, shape: Shape) -> Dimensions:
        raise NotImplementedError

    def hugging_face_shapes(self, shape: Shape) -> list[Dimensions]:
        raise NotImplementedError

    def split(self, tensor: Any, shape: Shape) -> list[Any]:
        """Hugging Face's tensors, in the order of `hugging_face`; views where possible."""
        raise NotImplementedError

    def join(self, tensors: Sequence[Any], shape: Shape) -> Any:
        """Megatron's tensor: the inverse of `split`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Same(Rule):
    """The same tensor under another name. `dimensions` names attributes of Shape."""

    megatron: str
    name: str
    dimensions: tuple[str, ...]

    @property
    def hugging_face(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def megatron_shape(self, shape: Shape) -> Dimensions:
        return tuple(getattr(shape, dimension) for dimension in self.dimensions)

    def hugging_face_shapes(self, shape: Shape) -> list[Dimensions]:
        return [self.megatron_shape(shape)]

    def split(self, tensor: Any, shape: Shape) -> list[Any]:
        return [tensor]

    def join(self, tensors: Sequence[Any], shape: Shape) -> Any:
        return tensors[0]


@dataclass(frozen=True)
class GroupedQKV(Rule):
    """Megatron stores query, key and value in one matrix: for each key-value head its query heads, its key, its value.

    Shape [groups x (heads / groups + 2) x head_dim, hidden]; a bias (`kind`) has no `hidden` dimension. Source:
    `SelfAttention.get_query_key_value_tensors` in megatron/core/transformer/attention.py.
    """

    kind: str = "weight"

    @property
    def megatron(self) -> str:  # type: ignore[override]
        return f"self_attention.linear_qkv.{self.kind}"

    @property
    def hugging_face(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"self_attn.{part}_proj.{self.kind}" for part in "qkv")

    def _columns(self, shape: Shape) -> Dimensions:
        return (shape.hidden,) if self.kind == "weight" else ()

    def megatron_shape(self, shape: Shape) -> Dimensions:
        return (shape.query + 2 * shape.key_value, *self._columns(shape))

    def hugging_face_shapes(self, shape: Shape) -> list[Dimensions]:
        return [(rows, *self._columns(shape)) for rows in (shape.query, shape.key_value, shape.key_value)]

    def split(self, tensor: Any, shape: Shape) -> list[Any]:
        per_group, rest = shape.heads // shape.groups, tensor.shape[1:]
        grouped = tensor.reshape(shape.groups, per_group + 2, shape.head_dim, *rest)
        parts = (grouped[:, :per_group], grouped[:, per_group], grouped[:, per_group + 1])
        return [part.reshape(-1, *rest) for part in parts]

    def join(self, tensors: Sequence[Any], shape: Shape) -> Any:
        import torch

        rest = tensors[0].shape[1:]
        grouped = [tensor.reshape(shape.groups, -1, shape.head_dim, *rest) for tensor in tensors]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)


@dataclass(frozen=True)
class GateUp(Rule):
    """Megatron stores SwiGLU's two matrices in one: the rows of gate, then of up (arXiv 2002.05202)."""

    megatron: str = "mlp.linear_fc1.weight"
    hugging_face: tuple[str, ...] = ("mlp.gate_proj.weight", "mlp.up_proj.weight")

    def megatron_shape(self, shape: Shape) -> Dimensions:
        return (2 * shape.ffn, shape.hidden)

    def hugging_face_shapes(self, shape: Shape) -> list[Dimensions]:
        return [(shape.ffn, shape.hidden)] * 2

    def split(self, tensor: Any, shape: Shape) -> list[Any]:
        return list(tensor.split(shape.ffn))

    def join(self, tensors: Sequence[Any], shape: Shape) -> Any:
        import torch

        return torch.cat(list(tensors))


@dataclass(frozen=True)
class Zeros(Rule):
    """A bias that Hugging Face's class always has and this Megatron model lacks. Export writes zeros; import requires
    zeros."""

    name: str
    dimension: str
    megatron: None = None

    @property
    def hugging_face(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def hugging_face_shapes(self, shape: Shape) -> list[Dimensions]:
        return [(getattr(shape, self.dimension),)]


MODEL = (
    Same("embedding.word_embeddings.weight", "model.embed_tokens.weight", ("vocab", "hidden")),
    Same("decoder.final_layernorm.weight", "model.norm.weight", ("hidden",)),
)
UNTIED = Same("output_layer.weight", "lm_head.weight", ("vocab", "hidden"))
VOCABULARY_ROWS = ("embedding.word_embeddings.weight", "output_layer.weight")  # Megatron pads these

LAYER = (
    # norms have Transformer Engine's names under both layer specs (`sharded_state_dict_keys_map`)
    Same("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", ("hidden",)),
    GroupedQKV("weight"),
    Same("self_attention.linear_proj.weight", "self_attn.o_proj.weight", ("hidden", "query")),
    Same("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight", ("hidden",)),
    GateUp(),
    Same("mlp.linear_fc2.weight", "mlp.down_proj.weight", ("hidden", "ffn")),
)
