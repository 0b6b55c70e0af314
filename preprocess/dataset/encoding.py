"""Encode texts to token ids fast: with gigatoken if its ids equal those of `tokenizers`, else with `tokenizers`.

Used by `preprocess.dataset.binning`; not a command. A literal special token in a text (`<|endoftext|>`
on a web page) is encoded as ordinary characters by both engines: `tokenizers` with `encode_special_tokens`, gigatoken
because it gets the vocabulary without the special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json
from preprocess.tokenizer.train import END_OF_TEXT

ENGINES = ("auto", "gigatoken", "tokenizers")
UINT16_LIMIT = 65_500  # megatron.core.datasets.indexed_dataset.DType.optimal_dtype
LONGEST_CHECKED = 20_000  # characters; a longer document is not checked against `tokenizers`


def tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: train a tokenizer first (`myllm tokenizer`)")
    return path


def load_tokenizer(folder: Path) -> Any:
    """Load the folder's `tokenizers.Tokenizer`, set to encode special tokens in text as ordinary characters."""
    from tokenizers import Tokenizer

    path = tokenizer_file(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{path} is not a valid tokenizer ({error}): make it again with `myllm tokenizer`") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def eos_token(folder: Path) -> str | None:
    """The `eos_token` of the folder's tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    named = read_json(path).get("eos_token") if path.exists() else None
    return named.get("content") if isinstance(named, dict) else named


def end_token(folder: Path, tokenizer: Any) -> str:
    """The token that ends a document: `<|endoftext|>`, or `eos_token` if the tokenizer has no such token."""
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        return END_OF_TEXT
    token = eos_token(folder)
    if token is None or tokenizer.token_to_id(token) is None:
        raise UserError(f"{folder} has no {END_OF_TEXT} and no eos_token: set eos_token in its tokenizer_config.json")
    return token


def dtype_of(tokenizer: Any) -> str:
    """`uint16` below 65,500 entries, else `int32`, as in Megatron."""
    return "uint16" if tokenizer.get_vocab_size() < UINT16_LIMIT else "int32"


@dataclass(frozen=True)
class Encoder:
    """`name` is the engine in use; `fast` is gigatoken's tokenizer or None; `exact` is `tokenizers`' own."""

    name: str
    fast: Any
    exact: Any
    end: int  # the id that ends a document
    dtype: str

    def ids(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Ids of all texts, concatenated [tokens, uint32], and the number of ids of each text [texts, int64]."""
        import numpy as np

        if self.fast is None:
            # add_special_tokens stays on: Megatron's own tool keeps a begin-of-text token that a tokenizer adds
            each = [encoding.ids for encoding in self.exact.encode_batch_fast(texts)]
            lengths = np.fromiter((len(ids) for ids in each), dtype=np.int64, count=len(each))
            flat = np.fromiter((i for ids in each for i in ids), dtype=np.uint32, count=int(lengths.sum()))
            return flat, lengths
        layout = self.fast.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    def documents(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Like `ids`, in the dataset's dtype, with the end id after every non-empty text (and counted).

        With gigatoken, one document per batch is compared. Raises UserError if `tokenizers` gives it different ids.
        """
        import numpy as np

        flat, lengths = self.ids(texts)
        if self.fast is not None:
            self._check_one(texts, flat, lengths)
        filled = lengths > 0
        with_end = lengths + filled
        result: Any = np.empty(int(with_end.sum()), dtype=self.dtype)
        ends = np.cumsum(with_end)[filled] - 1
        inside: Any = np.ones(len(result), dtype=bool)
        inside[ends] = False
        result[inside] = flat
        result[ends] = self.end
        return result, with_end

    def _check_one(self, texts: Sequence[str], flat: Any, lengths: Any) -> None:
        place = len(texts) // 2
        if len(texts[place]) > LONGEST_CHECKED:
            return
        start = int(lengths[:place].sum())
        if flat[start : start + int(lengths[place])].tolist() != self.exact.encode(texts[place]).ids:
            raise UserError(
                f"gigatoken and tokenizers differ on {texts[place][:80]!r}: run again with --engine tokenizers"
            )


def gigatoken_or_reason(folder: Path, exact: Any, sample: Sequence[str]) -> tuple[Any, str]:
    """gigatoken's tokenizer and "", or None and the reason: it rejects the tokenizer, or differs on a sample."""
    try:
        import gigatoken

        described = json.loads(tokenizer_file(folder).read_text(encoding="utf-8"))
        described["added_tokens"] = [token for token in described.get("added_tokens", []) if not token["special"]]
        fast = gigatoken.Tokenizer.from_json(json.dumps(described))
    except ImportError:
        return None, "gigatoken is not installed"
    except Exception as error:  # a Rust extension raises many types
        return None, f"gigatoken rejects this tokenizer ({' '.join(str(error).split())[:200]})"
    for text in sample:
        if fast.encode(text).tolist() != exact.encode(text).ids:
            return None, f"gigatoken and tokenizers give different ids for {text[:60]!r}"
    return fast, ""


def load_encoder(folder: Path, engine: str = "auto", sample: Sequence[str] = ()) -> Encoder:
    """An encoder for a tokenizer folder. "auto" chooses the engine after encoding every document of `sample` with both.

    Raises UserError if `engine` is "gigatoken" and gigatoken cannot be used.
    """
    exact = load_tokenizer(folder)
    end = exact.token_to_id(end_token(folder, exact))
    fast, reason = (None, "") if engine == "tokenizers" else gigatoken_or_reason(folder, exact, sample)
    if reason and engine == "gigatoken":
        raise UserError(f"{folder}: {reason}: run again with --engine tokenizers")
    if reason:
        print(f"{reason}: encoding with tokenizers, about a quarter of the speed", flush=True)
    return Encoder("gigatoken" if fast is not None else "tokenizers", fast, exact, end, dtype_of(exact))
