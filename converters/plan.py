"""What a conversion does, in order: every piece of a model, by both names. Export and import walk the same plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from converters.rules import VOCABULARY_ROWS, Dimensions, Rule, Shape

LAYER_PREFIX = "decoder.layers."


@dataclass(frozen=True)
class Piece:
    """One rule applied once: to the whole model (`layer` is None) or to one layer of a stacked tensor."""

    rule: Rule
    layer: int | None
    megatron: str | None
    hugging_face: tuple[str, ...]


def pieces(adapter: Any, shape: Shape) -> Iterator[Piece]:
    """All pieces: embedding first, then layer by layer, so that a reader of either side goes forward."""
    for rule in adapter.model_rules(shape):
        yield Piece(rule, None, rule.megatron, rule.hugging_face)
    for layer in range(shape.layers):
        for rule in adapter.layer_rules(shape):
            name = rule.megatron and LAYER_PREFIX + rule.megatron
            yield Piece(rule, layer, name, tuple(f"model.layers.{layer}.{n}" for n in rule.hugging_face))


def megatron_shapes(adapter: Any, shape: Shape, padded: int) -> dict[str, Dimensions]:
    """The strict set of a checkpoint's weights with their sizes, vocabulary rows padded."""
    found: dict[str, Dimensions] = {}
    for rule in adapter.model_rules(shape):
        size = rule.megatron_shape(shape)
        found[rule.megatron] = (padded, *size[1:]) if rule.megatron in VOCABULARY_ROWS else size
    for rule in adapter.layer_rules(shape):
        if rule.megatron:
            found[LAYER_PREFIX + rule.megatron] = (shape.layers, *rule.megatron_shape(shape))
    return found


def hugging_face_entries(adapter: Any, shape: Shape) -> list[tuple[str, Dimensions]]:
    """The strict list of a Hugging Face folder's weights with their sizes, in the order of `pieces`."""
    entries: list[tuple[str, Dimensions]] = []
    for piece in pieces(adapter, shape):
        entries += zip(piece.hugging_face, piece.rule.hugging_face_shapes(shape), strict=True)
    return entries


def check_keys(found: dict[str, Dimensions], wanted: dict[str, Dimensions], where: str) -> None:
    """Raise UserError when `where` lacks a weight, holds one too many, or one of another shape."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        some = [f"{kind} {', '.join(names[:3])}" for kind, names in (("lacks", missing), ("has also", extra)) if names]
        raise UserError(f"{where} does not hold the weights that its own description says: it {' and '.join(some)}")
    for key, shape in wanted.items():
        if tuple(found[key]) != tuple(shape):
            raise UserError(f"{where}: {key} is {tuple(found[key])}, its own description says {tuple(shape)}")
