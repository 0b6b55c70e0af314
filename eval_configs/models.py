"""The model classes that the suites name: OpenCompass's own Hugging Face ones, with what they leave unsaid.

Both say in the log how many texts were longer than the model takes (OpenCompass cuts such texts on the left and goes
on) and can score a text by its summed loss, which `eval_configs.choice_inferencer` asks for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate, OpenAISDK
from opencompass.models.huggingface_above_v4_33 import _convert_base_messages, _convert_chat_messages


def tell_cut(tokenizer: Any, texts: list[str], longest: int) -> None:
    """Print `cut N of M texts to L tokens` when some are longer; `launch.scoring.results` reads it from the log."""
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    cut = sum(length > longest for length in lengths)
    if cut:
        print(f"\ncut {cut} of {len(texts)} texts to {longest} tokens", flush=True)


def summed_loss(model: Any, texts: list[str]) -> Any:
    """Summed negative log-likelihood of each text in nats after its first token, a float32 array [len(texts)].

    Special tokens written in a text (ChatML's) become their ids, and none is added: the text is scored as it stands.
    Raises ValueError when a text is longer than `max_seq_len`.
    """
    options = dict(add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    tokens = model.tokenizer(texts, **options)
    ids, attention = (tokens[name].to(model.model.device) for name in ("input_ids", "attention_mask"))
    if model.max_seq_len and ids.shape[1] > model.max_seq_len:
        raise ValueError(f"a text of {ids.shape[1]} tokens is longer than the model's {model.max_seq_len}")
    with torch.inference_mode():
        logits = model.model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        labels = ids[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (loss * attention[:, 1:]).sum(-1).cpu().numpy()


class ServedModel(OpenAISDK):  # type: ignore[misc]
    """A served model. `max_seq_len` is the longest prompt, as everywhere in these suites.

    OpenAISDK takes its own `max_seq_len` for prompt, answer and 100 tokens in reserve, and refuses a prompt that leaves
    no room for them; but examples are left out only until a prompt is no longer than the same number.
    """

    RESERVE = 100  # opencompass/models/openai_api.py, _preprocess_messages

    def __init__(self, max_seq_len: int, answer_room: int, **more: Any) -> None:
        super().__init__(max_seq_len=max_seq_len + answer_room + self.RESERVE, **more)


class BaseModel(HuggingFaceBaseModel):  # type: ignore[misc]  # OpenCompass has no types
    """A base model: the parts of a prompt are joined as they are."""

    def get_ppl(self, inputs: list[Any], mask_length: list[int] | None = None) -> Any:
        tell_cut(self.tokenizer, _convert_base_messages(inputs), self.max_seq_len)
        return super().get_ppl(inputs, mask_length)

    def generate(self, inputs: list[Any], max_out_len: int, **more: Any) -> list[str]:
        tell_cut(self.tokenizer, _convert_base_messages(inputs), self.max_seq_len)
        return super().generate(inputs, max_out_len, **more)


class ChatModel(HuggingFacewithChatTemplate):  # type: ignore[misc]
    """A chat model: prompts become turns of the model's own chat template."""

    def generate(self, inputs: list[Any], max_out_len: int, **more: Any) -> list[str]:
        texts = [
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            for messages in _convert_chat_messages(inputs)
        ]
        tell_cut(self.tokenizer, texts, self.max_seq_len)
        return super().generate(inputs, max_out_len, **more)
