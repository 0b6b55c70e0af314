"""Train a Qwen2-style byte-level BPE tokenizer, and write the folder that every later tool loads.

    python -m preprocess.tokenizer --input corpus/poems/train.jsonl.zst --output tokenizer --vocab-size 4608

Special tokens and the ChatML template are defined here and nowhere else; everything downstream reads them from the
folder. They are in the vocabulary from the start, so that no embedding ever has to grow.

The normaliser (NFC) and the pre-tokenizer's expression are Qwen2's (its published tokenizer.json): transformers 5
loads any `qwen2` model with them whatever the folder says, so a tokenizer that differs would be read differently
there. That expression keeps a whole clause of Chinese as one word; `--split-characters` shows the trainer each Chinese
character alone, so that no token spans two of them (what verse, with its fixed line lengths, wants).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import atomic_folder, read_jsonl, write_json
from artifacts.stage import report_metrics

END_OF_TEXT = "<|endoftext|>"  # ends a document; pads
IM_START = "<|im_start|>"  # opens a turn of a conversation (ChatML)
IM_END = "<|im_end|>"  # closes it
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHINESE_CHARACTER = r"[\p{Han}\u3000-\u303F\uFF00-\uFFEF]"  # ideographs, CJK punctuation, full-width forms

PROBES = (
    "床前明月光，疑是地上霜。",
    "Hello, world! It's 2024-01-01 12:30.",
    "全角ＡＢＣ，半角abc；𠮷野家、㐀㐁。",
    "é é ﬁ ½ ①  \t\n\r\n　全角空格",
    "<|im_start|>user\n你好<|im_end|>\n<|endoftext|>",
    "🙂👩‍👩‍👧 emoji\u200b零宽",
    "",
)


def new_tokenizer() -> Any:
    """An untrained `tokenizers.Tokenizer` with Qwen2's normaliser, pre-tokenizer and decoder."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False)
    return tokenizer


def train(texts: Iterator[str], vocab_size: int, split_characters: bool) -> Any:
    """Train on texts; the vocabulary has exactly `vocab_size` entries, special tokens last, as in Qwen2.

    With `split_characters`, merges are learned inside Chinese characters only. Encoding needs no such split: no merge
    that was learned can join the last byte of a character to the first of the next (UTF-8 lead bytes stand first only).
    Raises UserError when the text is too little to fill the vocabulary.
    """
    from tokenizers import AddedToken, Regex, pre_tokenizers, trainers

    tokenizer = new_tokenizer()
    as_published = tokenizer.pre_tokenizer
    if split_characters:
        alone = pre_tokenizers.Split(Regex(CHINESE_CHARACTER), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, as_published])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = as_published
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise UserError(
            f"the text gives only {size} tokens, not --vocab-size {vocab_size}: ask for less, or give more text"
        )
    return tokenizer


def save(tokenizer: Any, folder: Path, model_max_length: int) -> None:
    """Write the files that transformers 4.57 and 5.x, Megatron, LLaMA-Factory and vLLM load with equal ids.

    The configuration is written by hand: transformers 5 would name a class that 4.57 refuses, and without
    `model_input_names` generation in TRL and OpenCompass fails on `token_type_ids`.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    shutil.copyfile(CHAT_TEMPLATE, folder / CHAT_TEMPLATE.name)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(ids[token]): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in SPECIAL_TOKENS
            },
            "additional_special_tokens": [IM_START, IM_END],
            "bos_token": None,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
            "errors": "replace",
            "split_special_tokens": False,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": model_max_length,
        },
    )


def check(folder: Path) -> int:
    """Compare `tokenizers` with `AutoTokenizer` on strings that often break; returns how many were compared.

    Raises UserError naming the first string on which ids differ.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(folder)
    for probe in PROBES:
        expected, found = raw.encode(probe).ids, auto(probe)["input_ids"]
        if expected != found:
            raise UserError(f"{folder}: AutoTokenizer reads {probe!r} as {found}, tokenizers as {expected}")
    return len(PROBES)


def texts(paths: list[Path], sample_bytes: int) -> Iterator[str]:
    """Texts of each file in turn, at most an equal share of `sample_bytes` from each."""
    share = sample_bytes // len(paths)
    for path in paths:
        left = share
        for row in read_jsonl(path):
            if left <= 0:
                break
            left -= len(row["text"].encode())
            yield row["text"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, action="append", required=True, help="JSONL with `text`; may be repeated")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--vocab-size", type=int, required=True, help="special tokens included")
    parser.add_argument("--split-characters", action="store_true", help="no token spans two Chinese characters")
    parser.add_argument("--sample-megabytes", type=int, default=64, help="how much text to learn from (default 64)")
    parser.add_argument("--model-max-length", type=int, default=32768)
    arguments = parser.parse_args()
    sample = texts(arguments.input, arguments.sample_megabytes * 1_000_000)
    tokenizer = train(sample, arguments.vocab_size, arguments.split_characters)
    with atomic_folder(arguments.output) as folder:
        save(tokenizer, folder, arguments.model_max_length)
        probes = check(folder)
    rows = list(islice(texts(arguments.input, 1_000_000), 10_000))
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(rows))
    report_metrics(
        vocab_size=tokenizer.get_vocab_size(),
        characters_per_token=round(sum(map(len, rows)) / tokens, 4),
        probes_identical=probes,
    )


if __name__ == "__main__":
    run_main(main)
