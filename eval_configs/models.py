"""The model classes of the suites: subclasses of OpenCompass's models.

The two Hugging Face classes log how many texts are longer than the model's context (OpenCompass truncates them on the
left without a message). `summed_loss` scores a text for `eval_configs.choice_inferencer`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate, OpenAISDK
from opencompass.models.huggingface_above_v4_33 import _convert_base_messages, _convert_chat_messages


def tell_cut(tokenizer: Any, texts: list[str], longest: int) -> None:
    """Print `cut N of M texts to L tokens` if some are longer. `launch.scoring.results` reads it from the log."""
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    cut = sum(length > longest for length in lengths)
    if cut:
        print(f"\ncut {cut} of {len(texts)} texts to {longest} tokens", flush=True)


def summed_loss(model: Any, texts: list[str]) -> Any:
    """Summed negative log-likelihood in nats of each text, without its first token: a float32 array [len(texts)].

    Special tokens written in a text (e.g. ChatML's) become their ids; no other special token is added.
    Raises ValueError if a text is longer than `max_seq_len`.
    """
    options = dict(add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    tokens = model.tokenizer(texts, **options)
    ids, attention = (tokens[name].to(model.model.device) for name in ("input_ids", "attention_mask"))
    if model.max_seq_len and ids.shape[1] > model.max_seq_len:
        raise ValueError(
            f"a text has {ids.shape[1]} tokens, the model takes {model.max_seq_len}: shorten the questions"
        )
    with torch.inference_mode():
        logits = model.model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        labels = ids[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (loss * attention[:, 1:]).sum(-1).cpu().numpy()


class ServedModel(OpenAISDK):  # type: ignore[misc]
    """A served model. `max_seq_len` is the longest prompt in tokens, as for the other classes.

    OpenAISDK's `max_seq_len` covers the prompt, the answer and 100 reserved tokens, and it rejects a longer prompt. But
    OpenCompass drops examples only until the prompt alone fits into it, so the answer and the reserve are added.
    """

    RESERVE = 100  # opencompass/models/openai_api.py, _preprocess_messages

    def __init__(self, max_seq_len: int, answer_room: int, **more: Any) -> None:
        super().__init__(max_seq_len=max_seq_len + answer_room + self.RESERVE, **more)


class BaseModel(HuggingFaceBaseModel):  # type: ignore[misc]  # OpenCompass has no types
    """A base model: the parts of a prompt are concatenated."""

    def get_ppl(self, inputs: list[Any], mask_length: list[int] | None = None) -> Any:
        tell_cut(self.tokenizer, _convert_base_messages(inputs), self.max_seq_len)
        return super().get_ppl(inputs, mask_length)

    def generate(self, inputs: list[Any], max_out_len: int, **more: Any) -> list[str]:
        tell_cut(self.tokenizer, _convert_base_messages(inputs), self.max_seq_len)
        return super().generate(inputs, max_out_len, **more)


class ChatModel(HuggingFacewithChatTemplate):  # type: ignore[misc]
    """A chat model: the parts of a prompt become turns of the model's chat template."""

    def generate(self, inputs: list[Any], max_out_len: int, **more: Any) -> list[str]:
        texts = [
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            for messages in _convert_chat_messages(inputs)
        ]
        tell_cut(self.tokenizer, texts, self.max_seq_len)
        return super().generate(inputs, max_out_len, **more)
