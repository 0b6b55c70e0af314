"""What a rehearsal changes in each command of a pipeline. Every other word of the file is run as it is.

    download        the beginning of what is downloaded, else made-up files in the published layout
    extract-wiki, simplify, corpora, binning, split-data      two processes, two shards a source, larger held-out shares
    tokenizer       a small vocabulary
    pretrain        a small model with the same flags, a few steps (`launch.rehearsal.model`), this machine's hardware
    posttrain       a few steps, small batches, this machine's hardware
    eval, bits-per-byte      a few questions, subjects or documents, this machine's device

A pipeline's own programs (`python -m …`) cannot be made smaller from here: its key `rehearsal` names smaller values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.layout import ENVIRONMENTS
from launch.pipeline.check import parse
from launch.pipeline.definition import Pipeline, Stage, is_myllm
from launch.pretraining.recipe import load_recipe, whole
from launch.rehearsal.model import rehearsal_keys

VOCABULARY = 1024
WORKERS, SHARDS = 2, 2
HELD_OUT = 0.05  # of the documents, for valid and for test
POSTTRAIN_STEPS = 3
QUESTIONS, SUBJECTS, DOCUMENTS = 1, 8, 8
MADE_SETS = "made-sets"

Words = list[str]


@dataclass(frozen=True)
class Place:
    """Where a rehearsal runs: hardware file, device, caches, and the longest training of the pipeline."""

    run: Path
    downloads: Path
    hardware: str = "cpu"
    full_size: bool = False
    longest: int = 1
    vocab: int | None = None

    @property
    def cache(self) -> Path:
        return self.run / "cache"

    @property
    def device(self) -> str:
        return "cpu" if self.hardware == "cpu" else "cuda"


def value_of(words: Words, option: str) -> str | None:
    """The last value of an option, written as `--option VALUE` or `--option=VALUE`."""
    found = None
    for place, word in enumerate(words):
        if word == option and place + 1 < len(words):
            found = words[place + 1]
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def put(words: Words, option: str, value: object) -> Words:
    """The words with an option set to a value, whether it was given or not."""
    kept: Words = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return [*kept, option, str(value)]


def at_most(words: Words, option: str, most: int) -> Words:
    """The words with a number that is given lowered to `most`; unchanged if it is not given."""
    given = value_of(words, option)
    return words if given is None else put(words, option, min(int(float(given)), most))


def download(words: Words, place: Place) -> list[Words]:
    arguments, _ = parse(words[1:])
    names = ["--from", str(place.downloads), "--into", str(place.cache), "--made-sets", str(place.cache / MADE_SETS)]
    filled = ["python", "-m", "preprocess.sources.rehearsal", *arguments.source, *names]
    sets = [f"{ENVIRONMENTS['eval']}/bin/python", "-m", "eval_configs.smoke_data", "--whole"]
    return [[*sets, "--output", str(place.cache / MADE_SETS)], filled]


def extract_wiki(words: Words, place: Place) -> list[Words]:
    return [put(words, "--processes", WORKERS)]


def simplify(words: Words, place: Place) -> list[Words]:
    return [put(words, "--processes", 1)]


def corpora(words: Words, place: Place) -> list[Words]:
    return [put(put(words, "--tasks", SHARDS), "--workers", WORKERS)]


def tokenizer(words: Words, place: Place) -> list[Words]:
    return [at_most(words, "--vocab-size", VOCABULARY)]


def binning(words: Words, place: Place) -> list[Words]:
    words = put(words, "--workers", WORKERS)
    if "--sources" in words or "--split" in words:
        words = put(put(words, "--valid", HELD_OUT), "--test", HELD_OUT)
    return [words]


def split_data(words: Words, place: Place) -> list[Words]:
    return [put(words, "--share", HELD_OUT)]


def pretrain(words: Words, place: Place) -> list[Words]:
    words = put(words, "--hardware", place.hardware)
    arguments, _ = parse(words[1:])
    keys = rehearsal_keys(
        arguments.model, arguments.training, place.hardware, arguments.set, place.longest, place.full_size, place.vocab
    )
    return [[*words, *(word for key in keys for word in ("--set", key))]]


def posttrain(words: Words, place: Place) -> list[Words]:
    from launch.posttraining.job import TRL
    from launch.posttraining.recipe import tool_of

    words, recipe = put(words, "--hardware", place.hardware), words[2]
    if Path(recipe).stem == "merge":
        return [words]
    keys = {"max_steps": POSTTRAIN_STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    if tool_of(recipe) == TRL:
        keys |= {"num_generations": 2, "per_device_eval_batch_size": 2}
    else:
        keys |= {"max_samples": 64}
    return [[*words, *(word for key, value in keys.items() for word in ("--set", f"{key}={value}"))]]


def evaluate(words: Words, place: Place) -> list[Words]:
    words = put(put(words, "--limit", QUESTIONS), "--subjects", SUBJECTS)
    return [put(words, "--device", place.device)]


def bits_per_byte(words: Words, place: Place) -> list[Words]:
    return [put(put(words, "--documents", DOCUMENTS), "--device", place.device)]


def blend(words: Words, place: Place) -> list[Words]:
    return [words if value_of(words, "--train-tokens") is None else put(words, "--train-tokens", "1e6")]


CHANGED: dict[str, Callable[[Words, Place], list[Words]]] = {
    "download": download,
    "extract-wiki": extract_wiki,
    "simplify": simplify,
    "corpora": corpora,
    "tokenizer": tokenizer,
    "binning": binning,
    "blend": blend,
    "pretrain": pretrain,
    "split-data": split_data,
    "posttrain": posttrain,
    "eval": evaluate,
    "bits-per-byte": bits_per_byte,
}


def longest_training(pipeline: Pipeline) -> int:
    """The last iteration of the pipeline's longest training, at its own size; 1 if it has none."""
    found = [1]
    for stage in pipeline.stages:
        for command in stage.commands:
            if is_myllm(command, "pretrain"):
                arguments, _ = parse(command[1:])
                recipe = load_recipe(arguments.model, arguments.training, arguments.hardware, arguments.set)
                found.append(whole(recipe, "train-iters"))
    return max(found)


def vocabulary(pipeline: Pipeline) -> int | None:
    """The vocabulary that the pipeline trains, at its own size; None if it trains none."""
    for stage in pipeline.stages:
        for command in stage.commands:
            if is_myllm(command, "tokenizer"):
                return int(parse(command[1:])[0].vocab_size)
    return None


def rehearsed(pipeline: Pipeline, place: Place) -> Pipeline:
    """The pipeline with every command made small.

    Raises:
        UserError: a command of the pipeline is wrong.
    """
    stages: list[Stage] = []
    for stage in pipeline.stages:
        commands: list[Words] = []
        for command in stage.commands:
            change = CHANGED.get(command[1]) if is_myllm(command, *CHANGED) else None
            commands += change(command, place) if change else [command]
        stages.append(replace(stage, commands=commands))
    return replace(pipeline, stages=stages)
