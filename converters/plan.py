"""The list of weights to convert, in order, with both names of each. Export and import use the same list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from converters.rules import VOCABULARY_ROWS, Dimensions, Rule, Shape

LAYER_PREFIX = "decoder.layers."


@dataclass(frozen=True)
class Piece:
    """One application of a rule: to a weight of the model (`layer` is None) or to one layer of a stacked weight."""

    rule: Rule
    layer: int | None
    megatron: str | None
    hugging_face: tuple[str, ...]


def pieces(adapter: Any, shape: Shape) -> Iterator[Piece]:
    """All pieces: the weights outside the layers first, then layer by layer, so that files are read sequentially."""
    for rule in adapter.model_rules(shape):
        yield Piece(rule, None, rule.megatron, rule.hugging_face)
    for layer in range(shape.layers):
        for rule in adapter.layer_rules(shape):
            name = rule.megatron and LAYER_PREFIX + rule.megatron
            yield Piece(rule, layer, name, tuple(f"model.layers.{layer}.{n}" for n in rule.hugging_face))


def megatron_shapes(adapter: Any, shape: Shape, padded: int) -> dict[str, Dimensions]:
    """Names and sizes of all weights that a checkpoint must have, with padded vocabulary rows."""
    found: dict[str, Dimensions] = {}
    for rule in adapter.model_rules(shape):
        size = rule.megatron_shape(shape)
        found[rule.megatron] = (padded, *size[1:]) if rule.megatron in VOCABULARY_ROWS else size
    for rule in adapter.layer_rules(shape):
        if rule.megatron:
            found[LAYER_PREFIX + rule.megatron] = (shape.layers, *rule.megatron_shape(shape))
    return found


def hugging_face_entries(adapter: Any, shape: Shape) -> list[tuple[str, Dimensions]]:
    """Names and sizes of all weights that a Hugging Face folder must have, in the order of `pieces`."""
    entries: list[tuple[str, Dimensions]] = []
    for piece in pieces(adapter, shape):
        entries += zip(piece.hugging_face, piece.rule.hugging_face_shapes(shape), strict=True)
    return entries


def check_keys(found: dict[str, Dimensions], wanted: dict[str, Dimensions], where: str) -> None:
    """Raise UserError if `where` has a missing weight, an extra weight or a weight of another shape."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        some = [f"{kind} {', '.join(names[:3])}" for kind, names in (("lacks", missing), ("also has", extra)) if names]
        raise UserError(f"{where}: the weights do not match the model's configuration: it {' and '.join(some)}")
    for key, shape in wanted.items():
        if tuple(found[key]) != tuple(shape):
            raise UserError(
                f"{where}: {key} has shape {tuple(found[key])}, the model's configuration gives {tuple(shape)}"
            )
