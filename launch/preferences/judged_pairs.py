"""Pairs for a reward model out of a chat model's own answers, chosen and rejected by rewards that code computes.

    myllm judged-pairs --model runs/r/models/sft --data runs/r/tasks/rl_train.json \\
        --reward launch.posttraining.rewards.exact_answer --reward my_rewards.politeness \\
        --output runs/r/judged/reward_train.json

The model answers each question `--answers` times at temperature 1; an answer's worth is the sum of its rewards. Each
question gives at most two pairs: its best answer against its worst, and the reference answer against its second worst,
each where the worths differ by MARGIN or more. What the reward model will judge in PPO is what this model writes, so
that is what it has to tell apart. Seeded.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import write_json
from artifacts.stage import report_metrics
from launch.posttraining.data import questions
from launch.posttraining.rewards import load
from launch.preferences.answer_rewards import add_answer_options, read_model, write_answers

MARGIN = 0.3  # of the summed rewards; less is no preference


def worths(rewards: list[str], rows: list[dict[str, Any]], texts: list[str]) -> list[float]:
    """The summed rewards of each text as an answer to its row; one that has nothing to judge counts as 0."""
    prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    judged = [load(name)(prompts=prompts, completions=completions, answer=answers) for name in rewards]
    return [sum(value or 0.0 for value in values) for values in zip(*judged, strict=True)]


def pairs_of(row: dict[str, Any], judged: list[tuple[float, str]], reference: float) -> list[dict[str, Any]]:
    """The pairs of one question: `judged` are its answers with their worths, `reference` is that of the row's own."""
    ranked = sorted((worth, text) for worth, text in judged if text.strip())  # the linter refuses empty ones
    if len(ranked) < 2:
        return []
    candidates = [(ranked[-1], ranked[0]), ((reference, row["answer"]), ranked[1])]
    return [
        {
            "messages": row["prompt"],
            "chosen": {"role": "assistant", "content": better},
            "rejected": {"role": "assistant", "content": worse},
        }
        for (high, better), (low, worse) in candidates
        if high - low >= MARGIN
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the chat model that answers")
    parser.add_argument("--data", type=Path, required=True, help="instructions with reference answers")
    parser.add_argument("--reward", action="append", required=True, metavar="MODULE.FUNCTION", help="may be repeated")
    add_answer_options(parser)
    options = parser.parse_args(argv)

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.answers < 2:
        raise UserError("--answers: a pair wants two at least")
    for name in options.reward:
        load(name)
    rows = questions(options.data)
    asked = [row for row in rows for _ in range(options.answers)]
    model, tokenizer = read_model(options.model)
    sequences = write_answers(model, tokenizer, [row["prompt"] for row in asked], options.max_new_tokens, options.seed)
    texts = [tokenizer.decode(tokens[start:], skip_special_tokens=True) for tokens, start in sequences]
    judged = list(zip(worths(options.reward, asked, texts), texts, strict=True))
    references = worths(options.reward, rows, [row["answer"] for row in rows])
    found = (
        pair
        for place, (row, reference) in enumerate(zip(rows, references, strict=True))
        for pair in pairs_of(row, judged[place * options.answers : (place + 1) * options.answers], reference)
    )
    pairs = list({json.dumps(pair): pair for pair in found}.values())  # the linter refuses repeats
    if not pairs:
        raise UserError(f"{options.model}: its answers to {options.data} are equally good: there is nothing to prefer")
    write_json(options.output, pairs)
    report_metrics(questions=len(rows), answers=len(asked), pairs=len(pairs))
    return 0


if __name__ == "__main__":
    run_main(main)
