"""The OpenCompass dataset class for a file of questions. The format is in `eval_configs.questions_data`."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from opencompass.datasets.base import BaseDataset

from eval_configs.questions_data import load_rows


class Questions(BaseDataset):  # type: ignore[misc]  # OpenCompass has no types
    @staticmethod
    def load(path: str, limit: int = 0, chat_of: str | None = None) -> Any:
        """A `datasets.Dataset` of `load_rows`; `chat_of` is the folder of a chat model, or None for plain text."""
        return Dataset.from_list(load_rows(path, limit, chat_of))
