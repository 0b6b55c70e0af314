"""What each model writes when asked the same: sample verse before and after every stage, for the report.

    myllm samples --model base=runs/x/models/base --model sft=runs/x/models/sft --output samples.json

A base model goes on from a first line; a model whose folder ends turns with `<|im_end|>` is asked in its own template.
Before them stands the same architecture with random weights: what training started from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_json, write_json

FIRST_LINES = ("五绝：春风吹又生，", "五律：明月照高楼，", "七绝：万里长江一叶舟，")
REQUESTS = ("写一首五绝。", "写一首七律。", "续写下一句：五绝：明月照高楼，")
NEW_TOKENS = 72


def sample(model: Any, tokenizer: Any, chat: bool) -> list[dict[str, str]]:
    """One reply to each prompt: temperature 0.7, top-p 0.9, the seed set anew for each."""
    import torch

    rows = []
    for number, prompt in enumerate(REQUESTS if chat else FIRST_LINES):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
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
            samples["untrained"] = sample(untrained, tokenizer, chat=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        samples[name] = sample(model, tokenizer, chat)
    write_json(arguments.output, samples)
    for name, rows in samples.items():
        print(f"{name}: " + " / ".join(f"{row['prompt']} -> {row['text']}" for row in rows))


if __name__ == "__main__":
    run_main(main)
