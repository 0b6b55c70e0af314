"""Build a chat model from raw text: one command for each step, or for the whole pipeline.

myllm run poetry-tiny                         # run the whole pipeline; run it again to resume
myllm run poetry-tiny --from sft --to score   # run some of its stages
myllm run poetry-tiny --dry-run               # print the commands, run nothing
myllm submit poetry-tiny --site mine          # run the same stages as a chain of Slurm jobs

`myllm COMMAND --help` explains a command and gives an example.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.layout import REPOSITORY, Run


@dataclass(frozen=True)
class Command:
    """A subcommand. `module` defines `add_arguments(parser)` and `run(arguments)`; without it, they are given here."""

    help: str
    module: str | None = None
    parses: bool = False  # the module has a `main()` that parses sys.argv itself
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None
    run: Callable[[argparse.Namespace], int | None] | None = None
    example: str = ""  # shown by --help when there is no module; else the module's docstring is shown


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", help="name of a file in launch/pipelines/, without .yaml")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="first stage to run (default: the first)")
    parser.add_argument("--to", dest="last", metavar="STAGE", help="last stage to run (default: the last)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace one of the pipeline's `values`; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--run-folder", type=Path, help="folder of the run (default runs/<pipeline>)")


def own_modules(pipeline: str) -> None:
    """Let the stages of a pipeline that was given by its path import the modules beside it."""
    if pipeline.endswith((".yaml", ".yml")):
        beside = str(Path(pipeline).resolve().parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [beside, os.environ.get("PYTHONPATH")]))


def run_here(given: argparse.Namespace) -> None:
    from launch.pipeline.definition import load_pipeline
    from launch.pipeline.gpu_notice import notice
    from launch.pipeline.runner import run_pipeline

    run = Run(given.run_folder or REPOSITORY / "runs" / Path(given.pipeline).stem)
    pipeline = load_pipeline(given.pipeline, run.folder, given.set)
    own_modules(given.pipeline)
    stages = pipeline.between(given.first, given.last)
    if not given.dry_run and (line := notice(pipeline, stages)):
        print(line, flush=True)
    run_pipeline(pipeline, run, stages, given.dry_run)


def add_submit_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)
    parser.add_argument(
        "--site",
        required=True,
        help="site file with partition, account and limits: a name in site/, or a path that ends in .sh",
    )
    parser.add_argument(
        "--after",
        action="append",
        type=int,
        default=[],
        metavar="JOB",
        help="start only after this job has succeeded; repeatable",
    )


def submit(given: argparse.Namespace) -> None:
    from launch.pipeline.definition import load_pipeline
    from launch.slurm.site import read_site
    from launch.slurm.submit import submit_pipeline

    run = Run(given.run_folder or REPOSITORY / "runs" / Path(given.pipeline).stem)
    pipeline = load_pipeline(given.pipeline, run.folder, given.set)
    own_modules(given.pipeline)
    stages = pipeline.between(given.first, given.last)
    jobs = submit_pipeline(pipeline, run, stages, read_site(given.site), given.after, given.dry_run)
    if jobs:
        print(f"{len(jobs)} jobs: see them with `myllm status {run.folder}`, cancel: `myllm cancel {run.folder}`")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="name of a run in runs/, or its folder")


def find_run(name: str) -> Run:
    """A run by name or folder. Raises UserError, which names the nearest run, if it does not exist."""
    from artifacts.errors import nearest

    for folder in (REPOSITORY / "runs" / name, Path(name)):
        if (folder / "pipeline.json").exists():
            return Run(folder)
    known = [p.parent.name for p in (REPOSITORY / "runs").glob("*/pipeline.json")]
    raise UserError(f"there is no run {name!r}{nearest(name, known)}; runs/ holds {', '.join(known) or 'none'}")


def show_status(given: argparse.Namespace) -> None:
    from artifacts.files import read_json
    from launch.pipeline.runner import read_manifest
    from launch.slurm.submit import describe, states

    run = find_run(given.run)
    jobs, unknown = {}, ""
    try:
        jobs = states(run)
    except UserError as error:  # away from the cluster, still show which stages are done
        unknown = str(error)
    for stage in read_json(run.folder / "pipeline.json")["stages"]:
        manifest = read_manifest(run, stage)
        if manifest is None:
            line = f"{stage:<12} not done"
        else:
            line = f"{stage:<12} {manifest.status:<7} {manifest.seconds:7.1f} s  {manifest.peak_memory_mb:7.0f} MB"
        print(f"{line:<44} {describe(*jobs[stage])}" if stage in jobs else line)
    if unknown:
        print(f"Slurm states unknown: {unknown}")


def cancel(given: argparse.Namespace) -> None:
    from launch.slurm.submit import cancel_run

    ended = cancel_run(find_run(given.run))
    print(f"cancelled {', '.join(map(str, ended))}" if ended else "this run has no pending or running job")


def report(given: argparse.Namespace) -> None:
    from launch.report.report import write_report

    write_report(find_run(given.run))


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the data file: a JSON list or JSON lines")
    parser.add_argument(
        "--output-folder", type=Path, required=True, help="folder for NAME_train.json and NAME_valid.json"
    )
    parser.add_argument("--share", type=float, default=0.02, help="share of the questions to hold out (default 0.02)")
    parser.add_argument(
        "--drop-faulty", action="store_true", help="drop faulty and repeated rows, and list them in NAME_dropped.json"
    )


def split_data(given: argparse.Namespace) -> None:
    from launch.instructions.lint import split

    train, valid, dropped = split(given.file, given.output_folder, given.share, given.drop_faulty)
    name = f"{given.output_folder}/{given.file.stem}"
    print(f"{name}_train.json: {train:,} rows, _valid.json: {valid:,} rows")
    if dropped:
        print(f"{name}_dropped.json: {dropped:,} dropped rows, each with its fault")


GROUPS: dict[str, dict[str, Command]] = {
    "a whole run": {
        "run": Command(
            "run the stages of a pipeline",
            add_arguments=add_pipeline_arguments,
            run=run_here,
            example="myllm run poetry-tiny --to sft",
        ),
        "submit": Command(
            "submit the stages of a pipeline to Slurm",
            add_arguments=add_submit_arguments,
            run=submit,
            example="myllm submit poetry-tiny --site mine --from pretrain",
        ),
        "status": Command(
            "show which stages of a run are done, and its Slurm jobs",
            add_arguments=add_run_argument,
            run=show_status,
            example="myllm status poetry-tiny",
        ),
        "cancel": Command(
            "cancel the Slurm jobs of a run",
            add_arguments=add_run_argument,
            run=cancel,
            example="myllm cancel poetry-tiny",
        ),
        "samples": Command("let each model of a run answer the same prompts", "launch.report.samples", parses=True),
        "report": Command(
            "write report.html and report.json of a run",
            add_arguments=add_run_argument,
            run=report,
            example="myllm report poetry-tiny",
        ),
    },
    "text": {
        "download": Command("download a corpus or an evaluation set", "preprocess.sources.download", parses=True),
        "extract-wiki": Command("extract documents from a MediaWiki dump", "preprocess.wiki.extract", parses=True),
        "corpora": Command(
            "turn raw files into clean, deduplicated shards", "preprocess.corpora.pipeline", parses=True
        ),
        "simplify": Command(
            "convert Traditional Chinese to Simplified Chinese", "preprocess.cleaning.simplify", parses=True
        ),
        "clean": Command("drop documents of low quality", "preprocess.cleaning.clean", parses=True),
        "mask": Command("mask mail addresses, phone and identity numbers", "preprocess.cleaning.privacy", parses=True),
        "deduplicate": Command("drop duplicate documents", "preprocess.deduplication.deduplicate", parses=True),
        "decontaminate": Command(
            "drop documents that contain evaluation questions", "preprocess.deduplication.decontaminate", parses=True
        ),
        "split": Command("split documents into train, valid and test", "preprocess.dataset.split", parses=True),
        "data-card": Command("write a page on what the corpus steps did", "preprocess.corpora.data_card", parses=True),
    },
    "tokenizer and datasets": {
        "tokenizer": Command(
            "train a tokenizer, and check it in every later tool", "preprocess.tokenizer.train", parses=True
        ),
        "tokenizer-gate": Command("check a tokenizer in every later tool", "preprocess.tokenizer.probe", parses=True),
        "binning": Command(
            "convert documents to a Megatron indexed dataset", "preprocess.dataset.binning", parses=True
        ),
        "blend": Command(
            "choose the pretraining datasets and the share of each", "preprocess.dataset.blend", parses=True
        ),
    },
    "pretraining": {
        "estimate": Command(
            "estimate parameters, memory, hours and cost of pretraining", "launch.pretraining.estimate"
        ),
        "pretrain": Command("pretrain with Megatron-LM from a recipe", "launch.pretraining.pretrain", parses=True),
        "export": Command("convert a Megatron checkpoint to a Hugging Face folder", "converters.export", parses=True),
        "import": Command(
            "convert a Hugging Face folder to a Megatron checkpoint", "converters.import_hf", parses=True
        ),
    },
    "post-training": {
        "lint-data": Command("check instruction, preference or KTO data", "launch.instructions.lint"),
        "split-data": Command(
            "split a data file into training and held-out rows",
            add_arguments=add_split_arguments,
            run=split_data,
            example="myllm split-data alpaca_zh.json --output-folder data --share 0.02",
        ),
        "posttrain": Command("run SFT, reward model, DPO, KTO, PPO, GRPO or merge", "launch.posttraining.posttrain"),
        "pair-accuracy": Command(
            "measure how often a model prefers the chosen answer", "launch.preferences.pair_accuracy", parses=True
        ),
        "answer-rewards": Command(
            "measure the rewards of a model's answers", "launch.preferences.answer_rewards", parses=True
        ),
        "judged-pairs": Command(
            "make preference pairs from a model's own answers", "launch.preferences.judged_pairs", parses=True
        ),
    },
    "serving": {
        "serve": Command("serve a model folder with vLLM or LMDeploy", "launch.serving.serve"),
        "serve-gate": Command(
            "check that the served model gives Hugging Face's tokens", "launch.serving.gate", parses=True
        ),
        "chat": Command("chat in the terminal, with a server or a model folder", "launch.chat.terminal"),
        "chat-page": Command("chat in the browser, with several models side by side", "launch.chat.page"),
    },
    "scoring": {
        "eval": Command("score models with OpenCompass", "launch.scoring.evaluate", parses=True),
        "bits-per-byte": Command(
            "measure perplexity of held-out text per byte, for any tokenizer", "launch.scoring.bits_per_byte"
        ),
        "calibrate": Command("score the same questions with a second harness", "launch.scoring.calibrate"),
        "compare": Command("compare models, with paired significance", "launch.scoring.compare"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def overview() -> str:
    """The commands by group, one line each."""
    lines = []
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<15} {command.help}" for name, command in commands.items()), ""]
    return "\n".join(lines)


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of `myllm`. Only the chosen subcommand's module is imported, and only its arguments are added."""
    top = argparse.ArgumentParser(
        prog="myllm",
        description=__doc__,
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="myllm COMMAND [options]",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        made = commands.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, prog=f"myllm {name}")
        if name != chosen or command.parses:
            continue
        made.description = f"Example: {command.example}"
        add_arguments: Any = command.add_arguments
        if command.module:
            module = importlib.import_module(command.module)
            made.description, add_arguments = module.__doc__, module.add_arguments
        add_arguments(made)
    return top


def main() -> int | None:
    chosen = sys.argv[1] if len(sys.argv) > 1 else None
    if chosen is None:
        parser().print_help()
        return 0
    command = COMMANDS.get(chosen)
    if command and command.module and command.parses:
        sys.argv = [f"myllm {chosen}", *sys.argv[2:]]
        module: Any = importlib.import_module(command.module)
        code: int | None = module.main()
        return code
    given = parser(chosen).parse_args()
    command = COMMANDS[given.command]
    run: Any = importlib.import_module(command.module).run if command.module else command.run
    return run(given)


def entry() -> None:
    run_main(main)


if __name__ == "__main__":
    entry()
