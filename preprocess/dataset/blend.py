"""Set the weights of datasets for Megatron, and check each dataset with Megatron's own `IndexedDataset`.

    myllm blend --folder dataset --tokenizer tokenizer --train books-train --train wiki-train \\
        --valid wiki-valid --test wiki-test
    myllm blend --folder dataset --tokenizer tokenizer --train wiki:3 --train books:1 \\
        --train-tokens 10e9 --valid wiki-valid --test wiki-test       # three tokens of wiki per token of books
    myllm blend --folder dataset --tokenizer tokenizer --train wiki:2x --train web:0.5x \\
        --valid wiki-valid --test wiki-test                           # all of wiki twice, half of the web
    myllm blend --folder dataset --tokenizer tokenizer --sources wiki:3 web:1         # what `binning --sources` made

Writes `blend.json` for Megatron's `--per-split-data-args-path`: a list of weights and prefixes for each split. With
--phase NAME it writes `blend-NAME.json`, for `myllm pretrain --phase NAME`. `--sources wiki:3` stands for
`--train wiki-train:3 --valid wiki-valid --test wiki-test`.
Without weights, a source's weight is its share of tokens, so each source is read once per epoch. With `PREFIX:WEIGHT`,
for every source of a split, weights are shares of the tokens read. Sources are then read for different numbers of
epochs: `blend_report.json` gives the tokens of each and, with --train-tokens, its epochs. With `PREFIX:TIMESx` you give
the epochs of each source, and the weights and the run's tokens are computed from them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import write_json
from artifacts.stage import report_gate, report_metrics
from preprocess.dataset.encoding import end_token, load_tokenizer

SPLITS = ("train", "valid", "test")
MANY_EPOCHS = 4.0  # more repeats add little (Muennighoff et al. 2023, arXiv 2305.16264)
IDS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Part:
    """One source of a split; `weight` is None if not given. With `epochs`, `weight` is a number of epochs."""

    name: str
    weight: float | None
    epochs: bool = False


def parse_part(given: str) -> Part:
    """Parse `NAME`, `NAME:WEIGHT` or `NAME:TIMESx`. Raises UserError if the number is not positive."""
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
    """Weights of a split, with sum 1. Raises UserError if only some are given, or a prefix is given twice."""
    names = [part.name for part in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--{split} {twice[0]} is given twice: give each prefix once, with a weight")
    given = [part.weight for part in parts if part.weight is not None]
    if given and len(given) < len(parts):
        bare = next(part.name for part in parts if part.weight is None)
        raise UserError(f"--{split} {bare} has no weight but others have: give all of them a weight, or none")
    if len({part.epochs for part in parts}) > 1:
        raise UserError(f"--{split} mixes PREFIX:WEIGHT and PREFIX:TIMESx: use the same form for all")
    weights = given or [1.0] * len(parts)
    if not given or parts[0].epochs:
        weights = [weight * tokens[name] for weight, name in zip(weights, names)]
    return [weight / sum(weights) for weight in weights]


def read_back(prefix: Path, tokenizer: Any, end: str) -> tuple[int, int, str]:
    """Read a dataset as Megatron does; returns (documents, tokens, text of the first document).

    Raises UserError if a file is missing or inconsistent, an id is outside the vocabulary, or a document does not end
    with `end`.
    """
    for suffix in (".idx", ".bin"):
        if not prefix.with_name(prefix.name + suffix).exists():
            raise UserError(f"{prefix}{suffix} does not exist: write it first with `myllm binning`")
    if prefix.with_name(prefix.name + ".bin").stat().st_size == 0:
        raise UserError(f"{prefix}.bin is empty, because all its documents are: leave it out")
    import torch

    if not torch.cuda.is_available():
        from artifacts import megatron_on_cpu

        megatron_on_cpu.patch_torch()
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    lengths = dataset.sequence_lengths
    tokens = int(lengths.sum(dtype=np.int64))
    # read all ids in few large reads: one sequence at a time takes minutes for millions of them
    dtype = dataset.index.dtype
    found = prefix.with_name(prefix.name + ".bin").stat().st_size // np.dtype(dtype).itemsize
    if found != tokens:
        raise UserError(f"{prefix}.bin has {found:,} ids but its .idx lists {tokens:,}: run `myllm binning` again")
    ids = np.memmap(f"{prefix}.bin", dtype=dtype, mode="r")
    largest = max(int(ids[i : i + IDS_AT_ONCE].max()) for i in range(0, tokens, IDS_AT_ONCE))
    if largest >= tokenizer.get_vocab_size():
        raise UserError(
            f"{prefix} has id {largest}, but the tokenizer has only {tokenizer.get_vocab_size()} entries: "
            "run `myllm binning` again"
        )
    last = np.cumsum(lengths, dtype=np.int64) - 1
    if not all(bool((ids[last[i : i + IDS_AT_ONCE]] == tokenizer.token_to_id(end)).all())
               for i in range(0, len(last), IDS_AT_ONCE)):  # fmt: skip
        raise UserError(f"{prefix}: a document does not end with {end}: run `myllm binning` again")
    return len(dataset.document_indices) - 1, tokens, tokenizer.decode(dataset[0].tolist())


def blend_name(phase: str | None) -> str:
    return f"blend-{phase}" if phase else "blend"


def given_for(split: str, arguments: argparse.Namespace) -> list[str]:
    """The datasets of a split as they are given. Raises UserError if there are none, or they are given in both ways."""
    given: list[str] = getattr(arguments, split)
    if given and arguments.sources:
        raise UserError(f"--{split} and --sources are given: use one of the two")
    for source in arguments.sources:
        name, colon, weight = source.partition(":")
        given = [*given, f"{name}-{split}{colon}{weight}" if split == "train" else f"{name}-{split}"]
    if not given:
        raise UserError(f"--{split} is missing: give its datasets, or --sources for all three splits")
    return given


def there(split: str, arguments: argparse.Namespace) -> list[str]:
    """The datasets of a split; of --sources, those valid and test sets that a source is large enough to have."""
    given = given_for(split, arguments)
    if split == "train" or not arguments.sources:
        return given
    found = [name for name in given if (arguments.folder / f"{name}.idx").exists()]
    if not found:
        raise UserError(
            f"{arguments.folder} has none of {', '.join(given)}: bin again with a larger --{split}, e.g. 0.05"
        )
    for name in given:
        if name not in found:
            print(f"{name} is left out: its source is too small to have {split} documents", flush=True)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, required=True, help="folder of the datasets, and of blend.json")
    parser.add_argument("--tokenizer", type=Path, required=True)
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            action="append",
            default=[],
            metavar="PREFIX[:WEIGHT|:TIMESx]",
            help="dataset in the folder; repeatable",
        )
    parser.add_argument(
        "--sources", nargs="+", default=[], metavar="SOURCE[:WEIGHT|:TIMESx]",
        help="instead of the three: SOURCE-train with this weight, SOURCE-valid, SOURCE-test",
    )  # fmt: skip
    parser.add_argument("--phase", help="phase of the training that reads this blend (default: the first)")
    parser.add_argument("--train-tokens", type=float, help="tokens of the run, to report the epochs of each source")


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    ahead.wants(arguments.tokenizer)
    for split in SPLITS:
        for part in map(parse_part, given_for(split, arguments)):
            ahead.wants(arguments.folder / f"{part.name}.idx", "bin it in an earlier stage, or correct the name")
    ahead.makes(arguments.folder / f"{blend_name(arguments.phase)}.json")


def run(arguments: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(arguments.tokenizer)
    end = end_token(arguments.tokenizer, tokenizer)
    parts = {split: [parse_part(given) for given in there(split, arguments)] for split in SPLITS}
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
                print(f"with these epochs, the run has {asked:,.0f} training tokens")
            elif abs(read / asked - 1) > 0.01:
                raise UserError(
                    f"--train-tokens {read:g} contradicts the epochs given, which make {asked:,.0f} tokens: "
                    "leave --train-tokens out"
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
                print(f"  note: more than {MANY_EPOCHS:.0f} epochs of the same text add little")
    name = blend_name(arguments.phase)
    write_json(arguments.folder / f"{name}.json", blend)
    write_json(arguments.folder / f"{name.replace('blend', 'blend_report', 1)}.json", report)
    report_gate(f"datasets of {name}", f"{len(tokens)} read back by Megatron, every document ended")
    report_metrics(tokens=tokens)


if __name__ == "__main__":
    main(__name__)
