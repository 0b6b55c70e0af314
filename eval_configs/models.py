"""The model class that the configs name: OpenCompass's Hugging Face base model, scoring a whole choice.

OpenCompass's own `get_ppl` returns the mean loss over all tokens of prompt and choice. With choices of equal
length in characters that is not quite a comparison of likelihoods: a rare character takes two or three byte tokens
where a common one takes one, and the mean rewards the longer token sequence. The sum has no such slant: the prompt
is the same for the four choices, so the smallest sum is the choice with the largest P(choice | prompt).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from opencompass.models import HuggingFaceBaseModel


class ChoiceLikelihood(HuggingFaceBaseModel):  # type: ignore[misc]  # OpenCompass has no types
    """Texts are scored by their summed negative log-likelihood in nats, at full context, never truncated."""

    def get_ppl(self, inputs: list[Any], mask_length: list[int] | None = None) -> Any:
        """Summed loss of each text, a float32 array of shape [len(inputs)].

        Special tokens written in a text (ChatML's) become their ids, and none is added: the text is scored as it
        stands. Raises ValueError when a text is longer than `max_seq_len`; OpenCompass would cut it and go on.
        """
        if mask_length is not None:
            raise ValueError("ChoiceLikelihood scores whole texts: normalizing_str is not supported")
        texts = [text if isinstance(text, str) else "".join(part["prompt"] for part in text) for text in inputs]
        options = dict(add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
        tokens = self.tokenizer(texts, **options)
        ids, attention = (tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        if self.max_seq_len and ids.shape[1] > self.max_seq_len:
            raise ValueError(f"a text of {ids.shape[1]} tokens is longer than the model's {self.max_seq_len}")
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
            labels = ids[:, 1:]
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        return (loss * attention[:, 1:]).sum(-1).cpu().numpy()
