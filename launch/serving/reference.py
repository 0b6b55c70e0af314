"""Compute the reference for `launch.serving.gate`: greedy float32 continuations by Hugging Face `generate`.

The gate starts it in the training environment, whose transformers has another major version than the server's, so the
comparison checks the model folder with both.

    python -m launch.serving.reference --model runs/poetry-tiny/models/dpo --prompts p.json --output reference.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from artifacts.errors import run_main
from artifacts.files import read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.serving.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON file of `myllm serve-gate --prompts`")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--max-tokens", type=int, default=48, help="longest continuation (default: %(default)s)")
    arguments = parser.parse_args()

    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # One thread: the starting server uses the other core, and the order of summation is the same on every machine.
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    prompts = read_json(arguments.prompts)
    chats = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in prompts["chats"]
    ]
    rows = []
    for text in [*prompts["completions"], *chats]:
        # The chat template writes its own special tokens; plain text gets none: Qwen2's tokenizer adds none.
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        length = prompt["input_ids"].shape[1]
        room = min(arguments.max_tokens, model.config.max_position_embeddings - length)
        with torch.inference_mode():
            out = model.generate(
                **prompt, max_new_tokens=room, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        best = [step[0].topk(2) for step in out.logits]
        rows.append(
            {
                "prompt": text,
                "prompt_ids": prompt["input_ids"][0].tolist(),
                "ids": out.sequences[0, length:].tolist(),
                "max_tokens": room,
                # For each step: the difference of the two largest logits (near 0 is a tie), and the id of the second.
                "margins": [float(step.values[0] - step.values[1]) for step in best],
                "runner_up": [int(step.indices[1]) for step in best],
            }
        )
    stops = model.generation_config.eos_token_id
    version = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
    stops = stops if isinstance(stops, list) else [stops]
    write_json(arguments.output, {"rows": rows, "stops": stops, "versions": version})


if __name__ == "__main__":
    run_main(main)
