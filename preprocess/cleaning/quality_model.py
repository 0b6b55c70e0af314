"""Learn from your examples what good text is, and score documents by it.

    myllm quality train --good chosen.jsonl.zst --bad web.jsonl.zst --output quality_model
    myllm quality train --input rated.jsonl --score-key score --good-from 3 --output quality_model
    myllm corpora --source c4_zh --quality-model quality_model --keep-quality 0.5 --output-folder corpus/c4_zh

Give documents (JSON lines with `text`) that are good and others that are bad, or one file with a score in each row or
in its `metadata`. A tenth of them, chosen by their text, is held out; the command prints how often the model agrees
with you there. Some thousand documents of each kind are enough.

The model is linear over hashed character n-grams, as fastText's classifiers for web text are (Joulin et al. 2017);
scikit-learn learns it. The folder holds `weights.npy` and `quality.json`: scoring needs nothing but numpy.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import atomic_file, read_json, sha256, write_json
from artifacts.stage import report_metrics
from preprocess.cleaning.characters import Characters, window_hashes
from preprocess.sources.documents import read_documents

GRAMS = (1, 2, 3)  # characters
BUCKETS = 1 << 20  # weights
LONGEST = 4000  # characters of a document that are looked at, from its beginning
BATCH = 512  # documents
EPOCHS = 5
HELD_OUT = 10  # one document in ten
SCORE = "quality_model"  # the key in `metadata`

Example = tuple[str, bool]  # a text, and whether it is good


@dataclass(frozen=True)
class Model:
    """Score of a text: sigmoid(bias + sum of the weights of its n-grams / root of their number)."""

    weights: np.ndarray  # float32 [BUCKETS]
    bias: float


def features(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of all n-grams of all texts, text by text for each size, and how many each text has.

    Shapes: buckets [n], counts [len(GRAMS), texts]. White space and control characters are left out.
    """
    solid = Characters.of([text[:LONGEST] for text in texts]).without_space()
    buckets, counts = [], []
    for size in GRAMS:
        hashes = window_hashes(solid.codes, size)[solid.window_starts(size)]
        buckets.append((hashes & np.uint64(BUCKETS - 1)).astype(np.int64))
        counts.append(solid.window_counts(size))
    return np.concatenate(buckets), np.stack(counts)


def scores(model: Model, texts: list[str]) -> np.ndarray:
    """How good each text is, from 0 to 1; shape [texts]. A text without characters has the score of the bias."""
    buckets, counts = features(texts)
    owners: np.ndarray = np.tile(np.arange(len(texts)), len(GRAMS)).repeat(counts.ravel())
    sums = np.bincount(owners, weights=model.weights[buckets], minlength=len(texts))
    return 1 / (1 + np.exp(-(model.bias + sums / np.sqrt(np.maximum(counts.sum(axis=0), 1)))))


@lru_cache(maxsize=1)
def load(folder: str) -> Model:
    """The model of a folder. Raises UserError if it is not one."""
    try:
        settings = read_json(Path(folder) / "quality.json")
        weights = np.load(Path(folder) / "weights.npy")
    except (OSError, ValueError, UserError):
        raise UserError(
            f"{folder} is not a quality model: make one with `myllm quality train --output {folder}`"
        ) from None
    if settings.get("grams") != list(GRAMS) or weights.shape != (BUCKETS,):
        raise UserError(f"{folder} was made by another version of `myllm quality train`: train it again")
    return Model(weights, float(settings["bias"]))


def fingerprint(folder: Path) -> str:
    """The hash of the model's weights. Raises UserError if the folder is not a model."""
    load(str(folder))
    return sha256(folder / "weights.npy")


def judge_rows(rows: list[dict[str, Any]], folder: str, keep: float | None) -> list[str | None]:
    """Write each row's score into its metadata; the reason for dropping it if the score is below `keep`, or None."""
    if not rows:
        return []
    found = scores(load(folder), [row["text"] for row in rows])
    reasons: list[str | None] = []
    for row, score in zip(rows, found.tolist()):
        row["metadata"][SCORE] = round(score, 4)
        reasons.append(f"quality model below {keep:g}" if keep is not None and score < keep else None)
    return reasons


def _order(text: str) -> int:
    """A number that depends on the text alone: the order of the examples, and who is held out."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")


def _texts(path: Path) -> Iterator[dict[str, Any]]:
    return (row for row in read_documents(path) if row["text"].strip())


def rated(path: Path, key: str, good_from: float) -> Iterator[Example]:
    """The examples of a file with scores. Raises UserError if a row's score is missing or no number."""
    for number, row in enumerate(_texts(path), start=1):
        value = row.get(key, row["metadata"].get(key))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}, document {number} has no number as {key!r}: name the column with --score-key")
        yield row["text"], value >= good_from


def chosen(examples: Iterator[Example], most: int) -> list[Example]:
    """At most `most` examples of each kind, without repeated texts, in an order that depends on their texts alone.

    Raises UserError if a kind has fewer than 20, or a text is of both kinds.
    """
    kinds: dict[bool, dict[int, str]] = {True: {}, False: {}}
    for text, good in examples:
        kinds[good][_order(text)] = text[:LONGEST]
        if len(kinds[good]) >= 2 * most:
            kinds[good] = {key: kinds[good][key] for key in sorted(kinds[good])[:most]}
    both = kinds[True].keys() & kinds[False].keys()
    if both:
        shown = kinds[True][min(both)][:20]
        raise UserError(f"{len(both)} texts are both good and bad ({shown!r} …): take them out of one of the two")
    for good, found in kinds.items():
        if len(found) < 20:
            raise UserError(f"only {len(found)} {'good' if good else 'bad'} documents: give at least 20 of each kind")
    least = {good: sorted(found)[:most] for good, found in kinds.items()}
    every = [(key, kinds[good][key], good) for good, keys in least.items() for key in keys]
    return [(text, good) for _, text, good in sorted(every)]


def learn(examples: list[Example]) -> Model:
    """A model from examples, by stochastic gradient descent; both kinds weigh the same. Deterministic."""
    try:
        from scipy.sparse import csr_matrix
        from sklearn.linear_model import SGDClassifier
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: run `make env-train`") from None
    learner = SGDClassifier(loss="log_loss", alpha=1e-6, average=True, random_state=0)
    goods = sum(good for _, good in examples)
    weigh = {True: len(examples) / (2 * goods), False: len(examples) / (2 * (len(examples) - goods))}
    for epoch in range(EPOCHS):
        rows = iter(examples)
        while batch := list(islice(rows, BATCH)):
            buckets, counts = features([text for text, _ in batch])
            owners: np.ndarray = np.tile(np.arange(len(batch)), len(GRAMS)).repeat(counts.ravel())
            values = (1 / np.sqrt(np.maximum(counts.sum(axis=0), 1)))[owners]
            matrix = csr_matrix((values, (owners, buckets)), shape=(len(batch), BUCKETS))
            labels = np.array([good for _, good in batch])
            learner.partial_fit(matrix, labels, [False, True], [weigh[good] for good in labels.tolist()])
        print(f"progress {epoch + 1}/{EPOCHS} epochs", flush=True)
    return Model(learner.coef_[0].astype(np.float32), float(learner.intercept_[0]))


def agreement(model: Model, examples: list[Example]) -> dict[str, Any]:
    """How the model judges examples that it has not seen.

    `agrees`: of both kinds alike, the share at the right side of 0.5; `ranked`: how often a good text has a higher
    score than a bad one (the area under the ROC curve). Both are 0.5 for a model that knows nothing.
    """
    found = np.concatenate(
        [scores(model, [text for text, _ in examples[at : at + BATCH]]) for at in range(0, len(examples), BATCH)]
    )
    good = np.array([label for _, label in examples])
    right = (found >= 0.5) == good
    ranks: np.ndarray = np.argsort(np.argsort(found)) + 1
    goods, bads = int(good.sum()), int((~good).sum())
    above = (ranks[good].sum() - goods * (goods + 1) / 2) / (goods * bads)
    return {
        "good": goods,
        "bad": bads,
        "agrees_on_good": round(float(right[good].mean()), 4),
        "agrees_on_bad": round(float(right[~good].mean()), 4),
        "agrees": round(float(right[good].mean() + right[~good].mean()) / 2, 4),
        "ranked": round(float(above), 4),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("train",))
    parser.add_argument("--good", type=Path, action="append", default=[], help="good documents, .jsonl or .jsonl.zst")
    parser.add_argument("--bad", type=Path, action="append", default=[], help="bad documents; both are repeatable")
    parser.add_argument("--input", type=Path, help="instead of --good and --bad: documents with a score each")
    parser.add_argument("--score-key", default="score", help="with --input: the key of the score (default score)")
    parser.add_argument("--good-from", type=float, help="with --input: documents with this score or more are good")
    parser.add_argument("--most", type=int, default=20_000, help="documents of each kind to learn from (default 20000)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")


def files_of(arguments: argparse.Namespace) -> list[Path]:
    """The files of examples. Raises UserError unless they are given in one of the two ways."""
    pairs = bool(arguments.good) and bool(arguments.bad)
    if arguments.input and (arguments.good or arguments.bad or arguments.good_from is None):
        raise UserError("--input takes --good-from SCORE, and neither --good nor --bad")
    if not arguments.input and not pairs:
        raise UserError("give examples: --good FILE and --bad FILE, or --input FILE with --good-from SCORE")
    return [arguments.input] if arguments.input else [*arguments.good, *arguments.bad]


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    for path in files_of(arguments):
        ahead.wants(path)
    ahead.makes(arguments.output)


def run(arguments: argparse.Namespace) -> None:
    files_of(arguments)

    def examples() -> Iterator[Example]:
        if arguments.input:
            yield from rated(arguments.input, arguments.score_key, arguments.good_from)
        for path in arguments.good:
            yield from ((row["text"], True) for row in _texts(path))
        for path in arguments.bad:
            yield from ((row["text"], False) for row in _texts(path))

    every = chosen(examples(), arguments.most)
    held_out = [example for example in every if _order(example[0]) % HELD_OUT == 0]
    seen = [example for example in every if _order(example[0]) % HELD_OUT]
    if len({good for _, good in held_out}) < 2 or len({good for _, good in seen}) < 2:
        raise UserError(f"{len(every)} documents are too few to hold out a tenth of each kind: give more")
    model = learn(seen)
    found = agreement(model, held_out)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with atomic_file(arguments.output / "weights.npy") as aside, aside.open("wb") as stream:
        np.save(stream, model.weights)
    settings = {"grams": list(GRAMS), "bias": model.bias, "learnt_from": len(seen), "held_out": found}
    write_json(arguments.output / "quality.json", settings)
    print(
        f"of {len(held_out):,} held-out documents the model agrees on {found['agrees_on_good']:.1%} of the good and "
        f"{found['agrees_on_bad']:.1%} of the bad (by chance 50 %); a good one ranks above a bad one in "
        f"{found['ranked']:.1%} of pairs"
    )
    report_metrics(documents=len(seen), **{key: found[key] for key in ("agrees", "ranked")})


if __name__ == "__main__":
    main(__name__)
