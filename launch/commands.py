"""The commands of `myllm`, by group. A command is a module with `add_arguments(parser)` and `run(arguments)`."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Any

from artifacts.command import parser_of


@dataclass(frozen=True)
class Command:
    """One line on what it does, and the module that does it."""

    help: str
    module: str

    def load(self) -> Any:
        return importlib.import_module(self.module)


GROUPS: dict[str, dict[str, Command]] = {
    "a whole run": {
        "run": Command("run the stages of a pipeline", "launch.pipeline.run"),
        "submit": Command("submit the stages of a pipeline to Slurm", "launch.slurm.submit"),
        "check": Command("list what a pipeline is missing, before it starts", "launch.pipeline.check"),
        "rehearse": Command("run a whole pipeline in small, with every gate", "launch.rehearsal.rehearse"),
        "status": Command("show which stages of a run are done, and its Slurm jobs", "launch.slurm.status"),
        "cancel": Command("cancel the Slurm jobs of a run", "launch.slurm.cancel"),
        "doctor": Command("look at this machine: what is wrong, and what mends it", "launch.doctor"),
        "samples": Command("let each model of a run answer the same prompts", "launch.report.samples"),
        "report": Command("write report.html and report.json of a run", "launch.report.report"),
    },
    "text": {
        "download": Command("download a corpus or an evaluation set", "preprocess.sources.download"),
        "extract-wiki": Command("extract documents from a MediaWiki dump", "preprocess.wiki.extract"),
        "corpora": Command("turn raw files into clean, deduplicated shards", "preprocess.corpora.pipeline"),
        "simplify": Command("convert Traditional Chinese to Simplified Chinese", "preprocess.cleaning.simplify"),
        "clean": Command("drop documents of low quality", "preprocess.cleaning.clean"),
        "quality": Command("learn what good text is from examples of your own", "preprocess.cleaning.quality_model"),
        "mask": Command("mask mail addresses, phone and identity numbers", "preprocess.cleaning.privacy"),
        "deduplicate": Command("drop duplicate documents", "preprocess.deduplication.deduplicate"),
        "decontaminate": Command(
            "drop documents that contain evaluation questions", "preprocess.deduplication.decontaminate"
        ),
        "split": Command("split documents into train, valid and test", "preprocess.dataset.split"),
        "data-card": Command("write a page on what the corpus steps did", "preprocess.corpora.data_card"),
    },
    "tokenizer and datasets": {
        "tokenizer": Command("train a tokenizer, and check it in every later tool", "preprocess.tokenizer.train"),
        "tokenizer-gate": Command("check a tokenizer in every later tool", "preprocess.tokenizer.probe"),
        "binning": Command("convert documents to a Megatron indexed dataset", "preprocess.dataset.binning"),
        "blend": Command("choose the pretraining datasets and the share of each", "preprocess.dataset.blend"),
    },
    "pretraining": {
        "estimate": Command(
            "estimate parameters, memory, hours and cost of pretraining", "launch.pretraining.estimate"
        ),
        "pretrain": Command("pretrain with Megatron-LM from a recipe", "launch.pretraining.pretrain"),
        "export": Command("convert a Megatron checkpoint to a Hugging Face folder", "converters.export"),
        "import": Command("convert a Hugging Face folder to a Megatron checkpoint", "converters.import_hf"),
    },
    "post-training": {
        "lint-data": Command("check instruction, preference or KTO data", "launch.instructions.lint"),
        "split-data": Command("split a data file into training and held-out rows", "launch.instructions.split"),
        "posttrain": Command("run SFT, reward model, DPO, KTO, PPO, GRPO or merge", "launch.posttraining.posttrain"),
        "pair-accuracy": Command(
            "measure how often a model prefers the chosen answer", "launch.preferences.pair_accuracy"
        ),
        "answer-rewards": Command("measure the rewards of a model's answers", "launch.preferences.answer_rewards"),
        "judged-pairs": Command("make preference pairs from a model's own answers", "launch.preferences.judged_pairs"),
    },
    "serving": {
        "serve": Command("serve a model folder with vLLM or LMDeploy", "launch.serving.serve"),
        "serve-gate": Command("check that the served model gives Hugging Face's tokens", "launch.serving.gate"),
        "chat": Command("chat in the terminal, with a server or a model folder", "launch.chat.terminal"),
        "chat-page": Command("chat in the browser, with several models side by side", "launch.chat.page"),
    },
    "scoring": {
        "eval": Command("score models with OpenCompass", "launch.scoring.evaluate"),
        "bits-per-byte": Command(
            "measure perplexity of held-out text per byte, for any tokenizer", "launch.scoring.bits_per_byte"
        ),
        "calibrate": Command("score the same questions with a second harness", "launch.scoring.calibrate"),
        "compare": Command("compare models, with paired significance", "launch.scoring.compare"),
    },
}

COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def parser_for(name: str) -> argparse.ArgumentParser:
    """The parser of `myllm NAME`; only its module is imported."""
    return parser_of(COMMANDS[name].load(), f"myllm {name}")


def overview() -> str:
    """The commands by group, one line each."""
    lines = []
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<15} {command.help}" for name, command in commands.items()), ""]
    return "\n".join(lines)
