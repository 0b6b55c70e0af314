"""Measure the rewards of a model's answers and its KL divergence from the first model, before and after PPO or GRPO.

    myllm answer-rewards --model runs/r/models/sft --model runs/r/models/grpo \\
        --data runs/r/tasks/rl_valid.json --reward my_rewards.politeness --output runs/r/eval/rewards.json

Each model samples `--answers` answers to each held-out question at temperature 1. Every reward function and, with
`--reward-model`, the merged reward model scores them; the result is the mean over questions with its 95 % interval.
`kl` is the divergence from the first model in nats per answer: the mean over the model's own answers of log p(answer)
under the model minus log p(answer) under the first model. Sampling is seeded; a few answers are kept as samples.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import write_json
from artifacts.stage import report_metrics
from artifacts.statistics import mean_interval
from launch.posttraining.data import questions
from launch.posttraining.reward_server import RewardModel
from launch.posttraining.rewards import load
from launch.preferences.pair_accuracy import answer_logprobs

BATCH = 128  # answers generated at a time
SHOWN = 6  # answers kept as samples


def read_model(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a folder. Raises UserError if it is not a model folder."""
    import torch
    import transformers

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a Hugging Face model folder with --model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval(), tokenizer


def write_answers(
    model: Any, tokenizer: Any, prompts: list[Any], tokens: int, seed: int
) -> list[tuple[list[int], int]]:
    """Sample one answer to each prompt at temperature 1: (token ids with the end token, length of the prompt)."""
    import torch

    torch.manual_seed(seed)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    sequences = []
    for start in range(0, len(prompts), BATCH):
        texts = [
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            for prompt in prompts[start : start + BATCH]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.inference_mode():
            written = model.generate(
                **inputs, max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
            )
        width = inputs["input_ids"].shape[1]
        for row, mask in zip(written.tolist(), inputs["attention_mask"].tolist(), strict=True):
            answer = row[width:]
            stop = next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))
            prompt = row[width - sum(mask) : width]
            sequences.append((prompt + answer[:stop], len(prompt)))
        print(f"progress {min(start + BATCH, len(prompts))}/{len(prompts)} answers", flush=True)
    return sequences


def by_question(values: list[float | None], answers: int) -> list[float]:
    """The mean over the answers of each question; questions without any reward are left out."""
    groups = [values[start : start + answers] for start in range(0, len(values), answers)]
    judged = [[value for value in group if value is not None] for group in groups]
    return [sum(group) / len(group) for group in judged if group]


def interval(values: list[float]) -> dict[str, Any]:
    mean, low, high = mean_interval(values)
    return {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "n": len(values)}


def measure(folder: Path, first: Path, rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Rewards, divergence from `first`, and samples of one model."""
    prompts = [row["prompt"] for row in rows for _ in range(options.answers)]
    columns = {"answer": [row["answer"] for row in rows for _ in range(options.answers)]}
    model, tokenizer = read_model(folder)
    sequences = write_answers(model, tokenizer, prompts, options.max_new_tokens, options.seed)
    texts = [tokenizer.decode(tokens[start:], skip_special_tokens=True) for tokens, start in sequences]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    found: dict[str, Any] = {"model": folder.name, "rewards": {}}
    for name in options.reward:
        values = by_question(load(name)(prompts=prompts, completions=completions, **columns), options.answers)
        if values:
            found["rewards"][name] = interval(values)
    if options.reward_model:
        whole = [p + c for p, c in zip(prompts, completions, strict=True)]
        judged = RewardModel(options.reward_model)(tokenizer.apply_chat_template(whole, tokenize=False))
        found["rewards"]["reward_model"] = interval(by_question(list(judged), options.answers))
    own = answer_logprobs(model, sequences)
    origin = own if folder == first else answer_logprobs(read_model(first)[0], sequences)
    found["kl"] = interval(by_question([a - b for a, b in zip(own, origin, strict=True)], options.answers))
    found["answer_tokens"] = round(sum(len(tokens) - start for tokens, start in sequences) / len(sequences), 1)
    step = max(1, len(rows) // SHOWN) * options.answers
    found["samples"] = [
        {"prompt": prompts[place][-1]["content"], "text": texts[place]} for place in range(0, len(texts), step)
    ][:SHOWN]
    return found


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for sampling answers: number, length, seed, output."""
    parser.add_argument("--answers", type=int, default=4, help="answers to sample for each question (default 4)")
    parser.add_argument("--max-new-tokens", type=int, default=80, help="longest answer in tokens (default 80)")
    parser.add_argument("--seed", type=int, default=1234, help="seed of the sampling (default 1234)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, action="append", required=True, help="model folder; KL is from the first")
    parser.add_argument("--data", type=Path, required=True, help="held-out instructions, e.g. rl_valid.json")
    parser.add_argument(
        "--reward", action="append", default=[], metavar="MODULE.FUNCTION", help="reward function; repeatable"
    )
    parser.add_argument("--reward-model", type=Path, help="merged output of recipe `reward`")
    add_answer_options(parser)


def look_ahead(options: argparse.Namespace, ahead: Ahead) -> None:
    for name in options.reward:
        load(name)
    for path in (*options.model, options.data, *filter(None, [options.reward_model])):
        ahead.wants(path)
    ahead.makes(options.output)


def run(options: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not options.reward and not options.reward_model:
        raise UserError("no reward given: add --reward MODULE.FUNCTION, or --reward-model FOLDER")
    for name in options.reward:
        load(name)
    rows = questions(options.data)
    results = [measure(folder, options.model[0], rows, options) for folder in options.model]
    write_json(options.output, {"metric": "answer_rewards", "data": options.data.name, "models": results})
    report_metrics(
        **{
            f"{name.rpartition('.')[2]}_{result['model']}": value["mean"]
            for result in results
            for name, value in [*result["rewards"].items(), ("kl", result["kl"])]
        }
    )
    return 0


if __name__ == "__main__":
    main(__name__)
