"""Make preference pairs for a reward model from a chat model's own answers, ranked by reward functions.

    myllm judged-pairs --model runs/r/models/sft --data runs/r/tasks/rl_train.json \\
        --reward launch.posttraining.rewards.exact_answer --reward my_rewards.politeness \\
        --output runs/r/judged/reward_train.json

The model answers each question `--answers` times at temperature 1. An answer's score is the sum of its rewards. Each
question gives at most two pairs: the best answer against the worst, and the reference answer against the second worst,
if their scores differ by at least MARGIN. In PPO the reward model scores answers of this model, so it is trained to
rank such answers. Sampling is seeded.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import write_json
from artifacts.stage import report_metrics
from launch.posttraining.data import questions
from launch.posttraining.rewards import load
from launch.preferences.answer_rewards import add_answer_options, read_model, write_answers

MARGIN = 0.3  # smallest difference of the summed rewards that counts as a preference


def reward_sums(rewards: list[str], rows: list[dict[str, Any]], texts: list[str]) -> list[float]:
    """The sum of the rewards of each text as an answer to its row; a reward of None counts as 0."""
    prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    judged = [load(name)(prompts=prompts, completions=completions, answer=answers) for name in rewards]
    return [sum(value or 0.0 for value in values) for values in zip(*judged, strict=True)]


def pairs_of(row: dict[str, Any], judged: list[tuple[float, str]], reference: float) -> list[dict[str, Any]]:
    """The pairs of one question; `judged` are its answers with scores, `reference` is the score of the row's answer."""
    ranked = sorted(
        (reward_sum, text) for reward_sum, text in judged if text.strip()
    )  # the linter refuses empty answers
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="folder of the chat model that answers")
    parser.add_argument("--data", type=Path, required=True, help="instructions with reference answers")
    parser.add_argument(
        "--reward", action="append", required=True, metavar="MODULE.FUNCTION", help="reward function; repeatable"
    )
    add_answer_options(parser)


def look_ahead(options: argparse.Namespace, ahead: Ahead) -> None:
    for name in options.reward:
        load(name)
    for path in (options.model, options.data):
        ahead.wants(path)
    ahead.makes(options.output)


def run(options: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.answers < 2:
        raise UserError(f"--answers {options.answers}: a pair needs at least 2")
    for name in options.reward:
        load(name)
    rows = questions(options.data)
    repeated = [row for row in rows for _ in range(options.answers)]
    model, tokenizer = read_model(options.model)
    sequences = write_answers(
        model, tokenizer, [row["prompt"] for row in repeated], options.max_new_tokens, options.seed
    )
    texts = [tokenizer.decode(tokens[start:], skip_special_tokens=True) for tokens, start in sequences]
    judged = list(zip(reward_sums(options.reward, repeated, texts), texts, strict=True))
    references = reward_sums(options.reward, rows, [row["answer"] for row in rows])
    found = (
        pair
        for place, (row, reference) in enumerate(zip(rows, references, strict=True))
        for pair in pairs_of(row, judged[place * options.answers : (place + 1) * options.answers], reference)
    )
    pairs = list({json.dumps(pair): pair for pair in found}.values())  # each once
    if not pairs:
        raise UserError(
            f"{options.model}: no pair differs by {MARGIN} or more in its answers to {options.data}; raise --answers"
        )
    write_json(options.output, pairs)
    report_metrics(questions=len(rows), answers=len(repeated), pairs=len(pairs))
    return 0


if __name__ == "__main__":
    main(__name__)
