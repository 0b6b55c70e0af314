"""The inferencer for files of questions: the choice with the smallest summed loss of the whole text is the answer.

OpenCompass's `PPLInferencer` compares the mean loss over all tokens of prompt and choice. With choices of equal length
in characters that is not quite a comparison of likelihoods: a rare character takes two or three byte tokens where a
common one takes one, and the mean rewards the longer token sequence. The sum has no such slant: the prompt is the
same for the choices, so the smallest sum is the choice with the largest P(choice | prompt).
"""

from __future__ import annotations

from typing import Any

from opencompass.openicl.icl_inferencer import PPLInferencer

from eval_configs.models import summed_loss


class _Summed:
    """A model whose perplexity of a text is its summed loss; all else is the model's own."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_ppl_from_template(self, templates: list[str], mask_length: list[int] | None = None) -> Any:
        if mask_length is not None:
            raise ValueError("whole texts are scored: normalizing_str is not supported")
        return summed_loss(self._model, templates)


class ChoiceInferencer(PPLInferencer):  # type: ignore[misc]  # OpenCompass has no types
    """`PPLInferencer` with summed losses."""

    def __init__(self, model: Any, **more: Any) -> None:
        super().__init__(model=_Summed(model), **more)
