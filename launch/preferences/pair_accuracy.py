"""Measure how often a model prefers the chosen answer: `myllm pair-accuracy --model DIR --pairs FILE --output FILE`

    myllm pair-accuracy --model runs/r/models/sft --model runs/r/models/dpo \
        --pairs runs/r/posttrain/dpo_valid.json --output runs/r/eval/pairs.json

For each model: the share of pairs (0-100) whose chosen answer has the higher summed log-probability given the prompt,
in float32, with its 95 % Wilson interval and the mean margin in nats. The prompt is rendered by the tokenizer's own
chat template. The answer ends with <|im_end|>, so that stopping in the right place counts. A tie is not a preference.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import write_json
from artifacts.stage import report_metrics
from artifacts.statistics import wilson
from launch.instructions.read import Example, form_of
from launch.posttraining.data import examples

END_OF_TURN = "<|im_end|>"
BATCH_TOKENS = 8192  # padded tokens per batch: with a vocabulary of 6,400 the logits take 200 MB


def read_pairs(path: Path) -> list[Example]:
    """The pairs of a file, in every format that the linter reads. Raises UserError for a faulty row."""
    if form_of(path).kind != "pairs":
        raise UserError(f"{path} has no preference pairs: each row needs `chosen` and `rejected`")
    return [example for _, example in examples(path)]


def encode(tokenizer: Any, rows: list[Example]) -> list[tuple[list[int], int]]:
    """(token ids, length of the prompt) of each chosen and rejected answer, in turn: 2 x rows entries."""
    sequences = []
    for row in rows:
        messages = [{"role": role, "content": text} for role, text in row.prompt]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        for said in row.answers:  # chosen, rejected
            answer = tokenizer(said + END_OF_TURN, add_special_tokens=False)["input_ids"]
            sequences.append((prompt + answer, len(prompt)))
    return sequences


def batches(sequences: list[tuple[list[int], int]]) -> Iterator[list[int]]:
    """Indices of the sequences, sorted by length, in batches of at most BATCH_TOKENS padded tokens."""
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i][0])):
        if batch and (len(batch) + 1) * len(sequences[index][0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def answer_logprobs(model: Any, sequences: list[tuple[list[int], int]]) -> list[float]:
    """Summed log-probability of each answer given its prompt, in nats.

    Padding is on the right: causal attention hides it from real tokens, and positions stay those of training.
    """
    import torch

    sums = [0.0] * len(sequences)
    with torch.inference_mode():
        for batch in batches(sequences):
            width = max(len(sequences[i][0]) for i in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros(len(batch), width, dtype=torch.long)
            counts = torch.zeros(len(batch), width - 1, dtype=torch.bool)  # whether predicting token t + 1 counts
            for row, i in enumerate(batch):
                tokens, prompt = sequences[i]
                ids[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
                counts[row, prompt - 1 : len(tokens) - 1] = True
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            chosen = logits[counts].float().log_softmax(-1).gather(-1, ids[:, 1:][counts].unsqueeze(-1)).squeeze(-1)
            scores = torch.zeros(counts.shape, dtype=torch.float64)
            scores[counts] = chosen.double()
            for i, total in zip(batch, scores.sum(1).tolist(), strict=True):
                sums[i] = total
    return sums


def measure(folder: Path, rows: list[Example]) -> dict[str, Any]:
    """Accuracy of one model on the pairs. Raises UserError if it is not a model folder or a pair is too long."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a Hugging Face model folder with --model")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    sequences = encode(tokenizer, rows)
    longest = max(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    positions = model.config.max_position_embeddings
    if len(sequences[longest][0]) > positions:
        raise UserError(
            f"--pairs, row {longest // 2 + 1}: it has {len(sequences[longest][0])} tokens, but {folder} takes at most "
            f"{positions}: shorten or remove the row"
        )
    sums = answer_logprobs(model, sequences)
    margins = [chosen - rejected for chosen, rejected in zip(sums[::2], sums[1::2], strict=True)]
    hits = sum(margin > 0 for margin in margins)
    low, high = wilson(hits, len(margins))
    return {
        "model": folder.name,
        "accuracy": round(100 * hits / len(margins), 2),
        "n": len(margins),
        "low": low,
        "high": high,
        "chance": 50.0,
        "mean_margin": round(sum(margins) / len(margins), 4),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, action="append", required=True, help="model folder; repeatable")
    parser.add_argument("--pairs", type=Path, required=True, help="preference pairs, in a format of `myllm lint-data`")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")


def look_ahead(options: argparse.Namespace, ahead: Ahead) -> None:
    for path in (*options.model, options.pairs):
        ahead.wants(path)
    ahead.makes(options.output)


def run(options: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = read_pairs(options.pairs)
    results = []
    for number, folder in enumerate(options.model, start=1):
        results.append(measure(Path(os.path.abspath(folder)), rows))
        print(f"progress {number}/{len(options.model)} models", flush=True)
    write_json(options.output, {"metric": "pair_accuracy", "pairs": options.pairs.name, "models": results})
    report_metrics(
        **{f"pair_accuracy_{result['model']}": result["accuracy"] for result in results},
        pairs=len(rows),
    )
    return 0


if __name__ == "__main__":
    main(__name__)
