"""Samples of every model from the same prompts, for the report.

    myllm samples --model base=runs/x/models/base --model sft=runs/x/models/sft --output samples.json

A base model continues the prompts' `completions`; a model with more than one end token is a chat model and answers
their `chats` in its own chat template. The first samples are those of random weights: where training started.
`--prompts FILE` replaces launch/report/sample_prompts.yaml.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import read_json, read_yaml, write_json

PROMPTS = Path(__file__).with_name("sample_prompts.yaml")
NEW_TOKENS = 72


def read_prompts(file: Path) -> dict[str, list[str]]:
    """`completions` and `chats` of a prompts file; raises UserError when it lacks one, or an entry is no text."""
    content = read_yaml(file)
    for key in ("completions", "chats"):
        texts = content.get(key) if isinstance(content, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"{file}: `{key}` must be a list of texts, as in {PROMPTS.name}")
    return dict(content)


def sample(model: Any, tokenizer: Any, prompts: list[str], chat: bool) -> list[dict[str, str]]:
    """One reply to each prompt: temperature 0.7, top-p 0.9, the seed set anew for each."""
    import torch

    rows = []
    for number, prompt in enumerate(prompts):
        text = prompt
        if chat:
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt")
        torch.manual_seed(number)
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.7, top_p=0.9, top_k=0
            )
        reply = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append({"prompt": prompt, "text": reply})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a YAML file with `completions` and `chats`")
    parser.add_argument("--output", type=Path, required=True)


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    read_prompts(arguments.prompts)
    for pair in arguments.model:
        ahead.wants(pair.partition("=")[2] or pair, "an earlier stage must make this model; check NAME=FOLDER")
    ahead.makes(arguments.output)


def run(arguments: argparse.Namespace) -> None:
    prompts = read_prompts(arguments.prompts)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # a model this small is slower on two
    samples: dict[str, list[dict[str, str]]] = {}
    for pair in arguments.model:
        name, equals, folder = pair.partition("=")
        if not equals or not (Path(folder) / "config.json").exists():
            raise UserError(f"--model {pair}: write NAME=FOLDER with the folder of a model")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = len(read_json(Path(folder) / "generation_config.json")["eos_token_id"]) > 1
        if not samples:
            torch.manual_seed(0)
            untrained = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
            untrained.generation_config.pad_token_id = tokenizer.pad_token_id
            samples["untrained"] = sample(untrained, tokenizer, prompts["completions"], chat=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        samples[name] = sample(model, tokenizer, prompts["chats" if chat else "completions"], chat)
    write_json(arguments.output, samples)
    for name, rows in samples.items():
        print(f"{name}: " + " / ".join(f"{row['prompt']} -> {row['text']}" for row in rows))


if __name__ == "__main__":
    main(__name__)
