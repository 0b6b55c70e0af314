"""Put datasets together for Megatron, and read each back with Megatron's own `IndexedDataset`.

    python -m preprocess.blend --folder dataset --tokenizer tokenizer --train poems-train --train wiki-train \\
        --valid poems-valid --test poems-test

Writes `blend.json` in the form that `--per-split-data-args-path` takes: for each split a list of weight and prefix.
A source's weight is its share of tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import write_json
from artifacts.stage import report_metrics
from preprocess.binning import load_tokenizer
from preprocess.tokenizer import END_OF_TEXT


def read_back(prefix: Path, tokenizer: Any) -> tuple[int, str]:
    """Tokens of a dataset and its first document's text, as Megatron reads them.

    Raises UserError when it cannot, when an id is outside the vocabulary, or when the first document does not end.
    """
    if not prefix.with_name(prefix.name + ".idx").exists():
        raise UserError(f"{prefix}.idx does not exist: bin it first (`python -m preprocess.binning`)")
    import torch

    if not torch.cuda.is_available():
        from artifacts import megatron_on_cpu

        megatron_on_cpu.patch_torch()
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    largest = max(int(np.max(dataset[i])) for i in range(len(dataset)))
    if largest >= tokenizer.get_vocab_size():
        raise UserError(f"{prefix} holds id {largest}, the tokenizer only {tokenizer.get_vocab_size()}: bin it again")
    first = dataset[0].tolist()
    if first[-1] != tokenizer.token_to_id(END_OF_TEXT):
        raise UserError(f"{prefix}: the first document does not end with {END_OF_TEXT}: bin it again")
    return int(dataset.sequence_lengths.sum()), tokenizer.decode(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the datasets lie and blend.json goes")
    parser.add_argument("--tokenizer", type=Path, required=True)
    for split in ("train", "valid", "test"):
        parser.add_argument(f"--{split}", action="append", required=True, help="prefix in the folder; may be repeated")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    blend: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for split in ("train", "valid", "test"):
        for name in getattr(arguments, split):
            counts[name], sample = read_back(arguments.folder / name, tokenizer)
            print(f"{name}: {counts[name]:,} tokens; begins: {sample[:60]}", flush=True)
        total = sum(counts[name] for name in getattr(arguments, split))
        blend[split] = [
            part
            for name in getattr(arguments, split)
            for part in (f"{counts[name] / total:.6f}", str(arguments.folder / name))
        ]
    write_json(arguments.folder / "blend.json", blend)
    report_metrics(tokens=counts)


if __name__ == "__main__":
    run_main(main)
