"""Put datasets together for Megatron, and read each back with Megatron's own `IndexedDataset`.

    myllm blend --folder dataset --tokenizer tokenizer --train books-train --train wiki-train \\
        --valid wiki-valid --test wiki-test
    myllm blend --folder dataset --tokenizer tokenizer --train wiki:3 --train books:1 \\
        --train-tokens 10e9 --valid wiki-valid --test wiki-test       # three tokens of wiki for one of books
    myllm blend --folder dataset --tokenizer tokenizer --train wiki:2x --train web:0.5x \\
        --valid wiki-valid --test wiki-test                           # all of wiki twice, half of the web

Writes `blend.json` in the form that `--per-split-data-args-path` takes: for each split a list of weight and prefix.
Without weights a source's weight is its share of tokens, so that each is read once an epoch. With `PREFIX:WEIGHT`, for
every source of a split, weights are shares of what is read; then sources are read to different depths, and
`blend_report.json` tells the tokens of each and, for a run of --train-tokens, how many times each is read. With
`PREFIX:TIMESx` it is the other way round: how many times each is to be read decides the weights and the run's tokens.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import write_json
from artifacts.stage import report_metrics
from preprocess.dataset.encoding import end_token, load_tokenizer

SPLITS = ("train", "valid", "test")
MANY_EPOCHS = 4.0  # repeats beyond these are worth little (Muennighoff et al. 2023, arXiv 2305.16264)
IDS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Part:
    """One source of a split; `weight` None where none was given. `epochs`: the weight is times of reading it."""

    name: str
    weight: float | None
    epochs: bool = False


def parse_part(given: str) -> Part:
    """`NAME`, `NAME:WEIGHT` or `NAME:TIMESx`; raises UserError when that is no positive number."""
    name, colon, weight = given.rpartition(":")
    if not colon:
        return Part(given, None)
    epochs = weight.endswith("x")
    try:
        value = float(weight.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not name or not 0 < value < float("inf"):
        raise UserError(f"{given!r}: give PREFIX, PREFIX:WEIGHT or PREFIX:TIMESx, with a positive number")
    return Part(name, value, epochs)


def shares(split: str, parts: list[Part], tokens: dict[str, int]) -> list[float]:
    """Weights of a split that add up to 1; raises UserError when only some are given, or a prefix stands twice."""
    names = [part.name for part in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--{split} {twice[0]} is given twice: give each prefix once, with a weight")
    given = [part.weight for part in parts if part.weight is not None]
    if given and len(given) < len(parts):
        bare = next(part.name for part in parts if part.weight is None)
        raise UserError(f"--{split} {bare} has no weight while others have: give all of them one, or none")
    if len({part.epochs for part in parts}) > 1:
        raise UserError(f"--{split} mixes weights and times of reading (…x): give all of them one or the other")
    weights = given or [1.0] * len(parts)
    if not given or parts[0].epochs:
        weights = [weight * tokens[name] for weight, name in zip(weights, names)]
    return [weight / sum(weights) for weight in weights]


def read_back(prefix: Path, tokenizer: Any, end: str) -> tuple[int, int, str]:
    """(documents, tokens, text of the first document) of a dataset, as Megatron reads them.

    Raises UserError when it cannot, when an id is outside the vocabulary, or when a document does not end with `end`.
    """
    for suffix in (".idx", ".bin"):
        if not prefix.with_name(prefix.name + suffix).exists():
            raise UserError(f"{prefix}{suffix} does not exist: bin it first (`myllm binning`)")
    if prefix.with_name(prefix.name + ".bin").stat().st_size == 0:
        raise UserError(f"{prefix}.bin is empty: every document was; leave it out")
    import torch

    if not torch.cuda.is_available():
        from artifacts import megatron_on_cpu

        megatron_on_cpu.patch_torch()
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    lengths = dataset.sequence_lengths
    tokens = int(lengths.sum(dtype=np.int64))
    # all ids in few reads: one sequence at a time takes minutes for millions of them
    dtype = dataset.index.dtype
    found = prefix.with_name(prefix.name + ".bin").stat().st_size // np.dtype(dtype).itemsize
    if found != tokens:
        raise UserError(f"{prefix}.bin holds {found:,} ids, its .idx tells of {tokens:,}: bin it again")
    ids = np.memmap(f"{prefix}.bin", dtype=dtype, mode="r")
    largest = max(int(ids[i : i + IDS_AT_ONCE].max()) for i in range(0, tokens, IDS_AT_ONCE))
    if largest >= tokenizer.get_vocab_size():
        raise UserError(f"{prefix} holds id {largest}, the tokenizer only {tokenizer.get_vocab_size()}: bin it again")
    last = np.cumsum(lengths, dtype=np.int64) - 1
    if not all(bool((ids[last[i : i + IDS_AT_ONCE]] == tokenizer.token_to_id(end)).all())
               for i in range(0, len(last), IDS_AT_ONCE)):  # fmt: skip
        raise UserError(f"{prefix}: a document does not end with {end}: bin it again")
    return len(dataset.document_indices) - 1, tokens, tokenizer.decode(dataset[0].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the datasets lie and blend.json goes")
    parser.add_argument("--tokenizer", type=Path, required=True)
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            action="append",
            required=True,
            metavar="PREFIX[:WEIGHT|:TIMESx]",
            help="in the folder; repeatable",
        )
    parser.add_argument("--train-tokens", type=float, help="of the run, to tell how often each source is read")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    end = end_token(arguments.tokenizer, tokenizer)
    parts = {split: [parse_part(given) for given in getattr(arguments, split)] for split in SPLITS}
    documents: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for name in dict.fromkeys(part.name for split in SPLITS for part in parts[split]):
        documents[name], tokens[name], sample = read_back(arguments.folder / name, tokenizer, end)
        print(f"{name}: {tokens[name]:,} tokens; begins: {sample[:60]}", flush=True)
    blend: dict[str, list[str]] = {}
    report: dict[str, Any] = {}
    for split in SPLITS:
        weights = shares(split, parts[split], tokens)
        read: float | None = arguments.train_tokens if split == "train" else None
        total = sum(tokens[part.name] for part in parts[split])
        if split == "train" and parts[split][0].epochs:
            asked = sum(tokens[part.name] * part.weight for part in parts[split] if part.weight)
            if read is None:
                read = asked
                print(f"read so often, these are {asked:,.0f} tokens: the length of the run")
            elif abs(read / asked - 1) > 0.01:
                raise UserError(
                    f"--train-tokens {read:g}, but read as often as asked the sources give {asked:,.0f}: leave it out"
                )
        print(f"{split}: {total:,} tokens")
        report[split] = {"tokens": total, "sources": {}}
        blend[split] = []
        for part, weight in zip(parts[split], weights):
            blend[split] += [f"{weight:.6f}", str(arguments.folder / part.name)]
            row: dict[str, Any] = {"documents": documents[part.name], "tokens": tokens[part.name], "weight": weight}
            epochs = weight * read / tokens[part.name] if read else None
            if read and epochs:
                row |= {"tokens_read": round(weight * read), "epochs": round(epochs, 4)}
            report[split]["sources"][part.name] = row
            depth = "" if epochs is None else f", read {epochs:.2f} times"
            print(f"  {part.name}: {tokens[part.name]:,} tokens, weight {weight:.4f}{depth}")
            if epochs is not None and epochs > MANY_EPOCHS:
                print(f"  note: more than {MANY_EPOCHS:.0f} readings of the same text teach little")
    write_json(arguments.folder / "blend.json", blend)
    write_json(arguments.folder / "blend_report.json", report)
    report_metrics(tokens=tokens)


if __name__ == "__main__":
    run_main(main)
