"""Train a tokenizer, and write a folder that every later tool loads with the same ids.

    myllm tokenizer --input corpus/wiki/train.jsonl.zst --output tokenizer --vocab-size 4608
    myllm tokenizer --sources corpus/clean/shards --output tokenizer --vocab-size 64000
    myllm tokenizer --style llama2 --input a.jsonl --input b.jsonl --output tokenizer --vocab-size 32000

Special tokens are defined here, the ChatML template in chat_template.jinja; all later stages read them from the
folder. They are in the vocabulary from the start, so that embeddings never have to be resized.

`--style qwen2`: byte-level BPE with Qwen2's normaliser (NFC) and pre-tokenizer (its published tokenizer.json), which
transformers 5 uses for every `qwen2` model, whatever the folder says. `--style llama2`: BPE over characters with 256
byte tokens as fallback, like Llama 2, but without its space before every text, which Chinese does not use.

A Chinese clause is one long word that rarely repeats, so the trainer splits text at punctuation and every 16
characters. `--split-characters` splits it at every Chinese character, so that no token spans two of them; a small
model that has to count characters needs this. Memory is estimated from the sample before training and kept below
--max-memory-gb.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import atomic_folder, write_json
from artifacts.layout import cache_folder
from artifacts.stage import report_gate, report_metrics

END_OF_TEXT = "<|endoftext|>"  # ends a document; also the padding token
IM_START = "<|im_start|>"  # starts a turn of a conversation (ChatML)
IM_END = "<|im_end|>"  # ends a turn
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

QWEN2_RANKS = "qwen.tiktoken"  # in the cache: Qwen2's published vocabulary, for comparison
REPORTED = 5_000  # documents per source for measuring characters per token

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHINESE_CHARACTER = r"[\p{Han}\u3000-\u303F\uFF00-\uFFEF]"  # ideographs, CJK punctuation, full-width forms
CHINESE_PIECE = r"\p{Han}{1,16}"  # without the punctuation before it, at most 16 characters
LLAMA2_WORD = r"▁?[\p{L}\p{M}]+|\p{N}|▁+|[^\p{L}\p{M}\p{N}▁]"  # digits one by one, as in Llama 2
COVERAGE = 0.9995  # share of the text that the llama2 alphabet covers (SentencePiece's value for Chinese)

STYLES = ("qwen2", "llama2")
CLASSES = {"qwen2": "Qwen2Tokenizer", "llama2": "PreTrainedTokenizerFast"}
MODEL_TYPES = {"qwen2": "qwen2", "llama2": "llama"}
SPACE = "▁"


def new_qwen2() -> Any:
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


def train_qwen2(texts: Iterable[str], size: int, cut: str) -> Any:
    """Byte-level BPE with `size` entries; merges are learned only within pieces split by the regex `cut`."""
    from tokenizers import Regex, pre_tokenizers, trainers

    tokenizer = new_qwen2()
    as_published = tokenizer.pre_tokenizer
    pieces = pre_tokenizers.Split(Regex(cut), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_published])
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = as_published
    return tokenizer


def covering(counts: Counter[str]) -> int:
    """How many of the most frequent characters cover the share `COVERAGE` of the text."""
    needed = COVERAGE * counts.total()
    for kept, (_, count) in enumerate(counts.most_common(), start=1):
        needed -= count
        if needed <= 0:
            return kept
    return len(counts)


def train_llama2(texts: Iterable[str], size: int, cut: str) -> Any:
    """BPE over characters with `size` entries; the first 256 are the bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    counts: Counter[str] = Counter()

    def counted() -> Iterator[str]:
        for text in texts:
            counts.update(text)
            yield text

    texts = list(counted())
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in (cut, LLAMA2_WORD)]
    )
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(byte_tokens),
        limit_alphabet=min(covering(counts), max(1, (size - len(byte_tokens)) * 3 // 4)),
        initial_alphabet=[SPACE],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    names = byte_tokens + sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    model = models.BPE(
        vocab={name: index for index, name in enumerate(names)},
        merges=[tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]],
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def check_size(vocab_size: int, style: str) -> None:
    smallest = 256 + len(SPECIAL_TOKENS) + (32 if style == "llama2" else 0)
    if vocab_size < smallest:
        raise UserError(f"--vocab-size {vocab_size} is too small for --style {style}: give at least {smallest}")


def train(texts: Iterable[str], vocab_size: int, style: str = "qwen2", split_characters: bool = False) -> Any:
    """Train on texts. The vocabulary has exactly `vocab_size` entries, special tokens last, as in Qwen2.

    With `split_characters`, merges of Chinese text are learned only within single characters. Encoding needs no such
    split: in qwen2 style, no learned merge can join the last byte of a character to the first byte of the next, because
    UTF-8 lead bytes only come first; in llama2 style no merge of Chinese text is learned at all.
    Raises UserError if the text is too short to fill the vocabulary, or the vocabulary too small for the style.
    """
    from tokenizers import AddedToken

    check_size(vocab_size, style)
    cut = CHINESE_CHARACTER if split_characters else CHINESE_PIECE
    trainer = {"qwen2": train_qwen2, "llama2": train_llama2}[style]
    tokenizer = trainer(texts, vocab_size - len(SPECIAL_TOKENS), cut)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise UserError(
            f"the text gives only {size} tokens, not --vocab-size {vocab_size}: lower it, or add text with --input"
        )
    return tokenizer


def save(tokenizer: Any, folder: Path, style: str, model_max_length: int) -> None:
    """Write the files that transformers 4.57 and 5.x, Megatron, LLaMA-Factory and vLLM load with equal ids.

    The configuration is not written by transformers, because version 5 names a class that 4.57 rejects. Without
    `model_input_names`, generation in TRL and OpenCompass fails on `token_type_ids`.
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
            "tokenizer_class": CLASSES[style],
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


def characters_per_token(texts: list[str], tokenizer: Any) -> float:
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
    return round(sum(map(len, texts)) / max(1, tokens), 4)


def qwen2_characters_per_token(texts: list[str]) -> float | None:
    """Characters per token of Qwen2's own vocabulary; None if `qwen.tiktoken` is not in the cache.

    `python -m benchmarks.preprocess_tokens` downloads it.
    """
    path = cache_folder() / QWEN2_RANKS
    if not path.exists():
        return None
    import gigatoken

    reader = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="qwen2")
    tokens = sum(len(reader.encode(text)) for text in texts)
    return round(sum(map(len, texts)) / max(1, tokens), 4)


def report_sources(by_source: dict[Path, list[str]], tokenizer: Any, beside: Path) -> dict[str, Any]:
    """Print and return characters per token by source, compared with Qwen2's own tokenizer.

    Source paths are relative to the folder `beside`, so that the same run elsewhere writes the same bytes.
    """
    report = {}
    for path, texts in by_source.items():
        some = texts[:: max(1, len(texts) // REPORTED)]
        ours, theirs = characters_per_token(some, tokenizer), qwen2_characters_per_token(some)
        other = f"Qwen2's own {theirs}" if theirs else f"Qwen2's own unknown: no {cache_folder() / QWEN2_RANKS}"
        print(f"{path}: {ours} characters per token ({other})", flush=True)
        report[os.path.relpath(path, beside)] = {"characters_per_token": ours, "qwen2": theirs}
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, action="append", help="JSONL file, or folder of shards; repeatable")
    given.add_argument("--sources", type=Path, help="folder with a folder of shards for each source: `myllm corpora`")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, required=True, help="special tokens included")
    parser.add_argument("--style", choices=STYLES, default="qwen2")
    parser.add_argument("--split-characters", action="store_true", help="no token spans two Chinese characters")
    parser.add_argument("--max-memory-gb", type=float, default=3.0, help="memory limit of training (default 3)")
    parser.add_argument("--sample-megabytes", type=int, help="text to train on (default: as much as memory allows)")
    parser.add_argument("--model-max-length", type=int, default=32768)
    parser.add_argument(
        "--environments", default="train,serve", help="environments to check, if they exist (default both)"
    )


def sample_bytes(arguments: argparse.Namespace) -> int:
    """Bytes of text to train on. Raises UserError if training on them may take more memory than is allowed."""
    from preprocess.tokenizer import sample as tokenizer_sample

    style, alone, limit = arguments.style, arguments.split_characters, arguments.max_memory_gb
    allowed = tokenizer_sample.largest_sample(limit, style, alone)
    asked = arguments.sample_megabytes * 1_000_000 if arguments.sample_megabytes else allowed
    if asked > allowed:
        raise UserError(
            f"training on {asked // 1_000_000} MB may take {tokenizer_sample.estimate_gb(asked, style, alone):.1f} GB: "
            f"give --sample-megabytes {allowed // 1_000_000} or less, or raise --max-memory-gb (now {limit})"
        )
    return asked


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    from preprocess.tokenizer import sample as tokenizer_sample

    for path in arguments.input or [arguments.sources]:
        ahead.wants(path)
    check_size(arguments.vocab_size, arguments.style)
    asked = sample_bytes(arguments)
    ahead.needs(memory=1e9 * tokenizer_sample.estimate_gb(asked, arguments.style, arguments.split_characters))
    ahead.makes(arguments.output, vocab=arguments.vocab_size)


def run(arguments: argparse.Namespace) -> None:
    from preprocess.sources.lines import source_folders
    from preprocess.tokenizer import probe as tokenizer_probe
    from preprocess.tokenizer import sample as tokenizer_sample

    style, alone, asked = arguments.style, arguments.split_characters, sample_bytes(arguments)
    inputs = arguments.input or source_folders(arguments.sources)
    by_source = tokenizer_sample.sample(inputs, asked)
    texts = [text for found in by_source.values() for text in found]
    taken = sum(len(text.encode()) for text in texts)
    for path, found in by_source.items():
        print(f"{path}: {len(found):,} documents, {sum(len(t.encode()) for t in found) / 1e6:.1f} MB", flush=True)
    estimate = tokenizer_sample.estimate_gb(taken, style, alone)
    print(f"training on {taken / 1e6:.1f} MB: at most {estimate:.2f} GB of memory", flush=True)
    tokenizer = train(texts, arguments.vocab_size, style, alone)
    # absolute: transformers takes a relative path of one part, `.tokenizer.partial`, for a name on the Hub
    with atomic_folder(arguments.output.absolute()) as folder:
        save(tokenizer, folder, style, arguments.model_max_length)
        evidence = tokenizer_probe.gate(folder, MODEL_TYPES[style], tuple(arguments.environments.split(",")))
        sources = report_sources(by_source, tokenizer, arguments.output.absolute().parent)
        write_json(folder / "report.json", {"style": style, "sample_bytes": taken, "sources": sources})
    strings, readers = len(evidence["probes"]), len(evidence["agreed"])
    report_gate("tokenizer", f"{strings} strings give the same ids in {readers} readers")
    report_metrics(
        vocab_size=tokenizer.get_vocab_size(),
        characters_per_token=characters_per_token(texts[:: max(1, len(texts) // 10_000)], tokenizer),
        probes_identical=len(evidence["probes"]),
        readers=len(evidence["agreed"]),
        estimated_gb=round(estimate, 2),
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    )


if __name__ == "__main__":
    main(__name__)
