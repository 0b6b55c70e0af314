"""The inferencer for question files: the answer is the choice with the smallest summed loss of the whole text.

OpenCompass's `PPLInferencer` compares the mean loss over all tokens of prompt and choice. With choices of equal length
in characters the mean is biased: a rare character is two or three byte tokens, a common one is one token, and the mean
favours the longer token sequence. The sum has no such bias. The prompt is the same for all choices, so the smallest
sum belongs to the choice with the largest P(choice | prompt).
"""

from __future__ import annotations

from typing import Any

from opencompass.openicl.icl_inferencer import PPLInferencer

from eval_configs.models import summed_loss


class _Summed:
    """Wraps a model: the perplexity of a text is its summed loss. Everything else is forwarded to the model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_ppl_from_template(self, templates: list[str], mask_length: list[int] | None = None) -> Any:
        if mask_length is not None:
            raise ValueError("normalizing_str is not supported: the whole text is scored. Remove it from the config")
        return summed_loss(self._model, templates)


class ChoiceInferencer(PPLInferencer):  # type: ignore[misc]  # OpenCompass has no types
    """`PPLInferencer` with summed losses."""

    def __init__(self, model: Any, **more: Any) -> None:
        super().__init__(model=_Summed(model), **more)
