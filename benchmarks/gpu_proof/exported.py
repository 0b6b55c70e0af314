"""Check an exported model on the device, without OpenCompass. Prints the result as a line of JSON.

    python -m benchmarks.gpu_proof.exported logits MODEL
    python -m benchmarks.gpu_proof.exported questions MODEL QUESTIONS.jsonl [LIMIT]

`logits` compares bfloat16 with float32 on the prompts of the parity check. `questions` scores multiple-choice questions
by the summed loss of the whole text, as `eval_configs.choice_inferencer` does; chance is 25 %.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def logits(model: Path) -> dict[str, Any]:
    """Largest difference of the logits, agreement of the argmax (percent) and mean KL divergence (nats)."""
    import torch
    from transformers import AutoModelForCausalLM

    from artifacts.files import read_json
    from converters import parity

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = read_json(model / "config.json")
    prompts = parity.prompt_ids(model, config["vocab_size"], config["max_position_embeddings"])
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
        with torch.no_grad():
            answers.append([loaded(torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in prompts])
    figures = parity.compare(*answers)
    kept = ("max_abs_diff", "argmax_agreement", "kl", "positions")
    return {"device": device, **{key: figures[key] for key in kept}}


def accuracy(model: Path, questions: Path, limit: int = 0) -> dict[str, Any]:
    """Accuracy in percent with its 95 % interval (Wilson)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from artifacts.statistics import wilson
    from eval_configs.questions_data import LETTERS, load_rows
    from launch.scoring.bits_per_byte import nats_of

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().to(device)
    rows = load_rows(str(questions), limit)
    texts = [row["prefix"] + row[letter] for row in rows for letter in LETTERS]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    nats = nats_of(loaded, ids, loaded.config.max_position_embeddings, 256, device)
    hits = 0
    for number, row in enumerate(rows):
        four = nats[4 * number : 4 * number + 4]
        hits += LETTERS[four.index(min(four))] == row["answer"]
    low, high = wilson(hits, len(rows))
    return {"accuracy": round(100 * hits / len(rows), 2), "low": low, "high": high, "n": len(rows), "chance": 25.0}


def main() -> None:
    what, model, *more = sys.argv[1:]
    if what == "logits":
        found = logits(Path(model))
    else:
        found = accuracy(Path(model), Path(more[0]), int(more[1]) if more[1:] else 0)
    print(json.dumps({"found": found}), flush=True)


if __name__ == "__main__":
    main()
