"""The `myllm` command: run a pipeline, look at a run.

myllm run poetry-tiny                         # here, every stage; again: only what is missing
myllm run poetry-tiny --from sft --to score   # some stages
myllm run poetry-tiny --dry-run               # print the commands, run nothing
myllm status poetry-tiny
myllm estimate qwen2-0.5b --hardware node-8   # memory, hours, cost of a pretraining, before it starts
myllm lint-data alpaca_zh.json --tokenizer DIR  # every bad row of instruction or preference data, before a training
myllm split-data alpaca_zh.json --output-folder data --share 0.02
myllm report poetry-tiny
myllm download ceval                          # a corpus or an evaluation set, into the cache
myllm eval runs/poetry-tiny/models/base --suite next_line   # scores with chance, interval and protocol
myllm bits-per-byte runs/poetry-tiny/models/base --text poems=poems.jsonl.zst
myllm calibrate runs/poetry-tiny/models/base --suite next_line   # do two harnesses agree?
myllm compare poetry-tiny                     # models side by side, with significance
"""

from __future__ import annotations

import argparse
from pathlib import Path

from artifacts.errors import UserError, run_main
from artifacts.layout import REPOSITORY, Run


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="myllm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="run a pipeline's stages", description="Example: myllm run poetry-tiny --to convert"
    )
    run.add_argument("pipeline", help="a file of launch/pipelines/")
    run.add_argument("--from", dest="first", metavar="STAGE", help="first stage")
    run.add_argument("--to", dest="last", metavar="STAGE", help="last stage")
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="replace one of the pipeline's values"
    )
    run.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    run.add_argument("--run-folder", type=Path, help="by default runs/<pipeline>")
    from launch.estimate import add_arguments

    add_arguments(
        commands.add_parser(
            "estimate",
            help="parameters, memory, hours and cost of a pretraining",
            description="Example: myllm estimate qwen2-0.5b --hardware node-8 --tokens 10B --price 2.5",
        )
    )
    from launch import lint_data

    lint_data.add_arguments(
        commands.add_parser(
            "lint-data",
            help="check instruction, preference or KTO data",
            description="Example: myllm lint-data alpaca_zh.json --tokenizer runs/mine/models/base --cutoff-len 1024",
        )
    )
    split = commands.add_parser(
        "split-data",
        help="divide a data file into train and held out",
        description="Example: myllm split-data alpaca_zh.json --output-folder data --share 0.02",
    )
    split.add_argument("file", type=Path, help="JSON list or JSON lines")
    split.add_argument("--output-folder", type=Path, required=True, help="gets NAME_train.json and NAME_valid.json")
    split.add_argument("--share", type=float, default=0.02, help="of the questions that are held out (default 0.02)")
    from launch import bits_per_byte, calibrate, compare, evaluate

    for module, name, text in (
        (evaluate, "eval", "score models with OpenCompass"),
        (bits_per_byte, "bits-per-byte", "perplexity of held-out text, whatever the tokenizer"),
        (calibrate, "calibrate", "the same questions by a second harness"),
        (compare, "compare", "models side by side, with paired significance"),
    ):
        module.add_arguments(
            commands.add_parser(
                name,
                help=text,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    download = commands.add_parser(
        "download", help="fetch a source or an evaluation set", description="Example: myllm download ceval cmmlu"
    )
    download.add_argument("source", nargs="+", help="names of preprocess/sources.yaml")
    download.add_argument("--from-file", type=Path, help="take this file or folder instead (one source only)")
    for name, text in (("status", "what is done of a run"), ("report", "write report.html and report.json")):
        command = commands.add_parser(name, help=text, description=f"Example: myllm {name} poetry-tiny")
        command.add_argument("run", help="name under runs/, or a folder")
    return top


def find_run(name: str) -> Run:
    """A run by name or folder; raises UserError, naming the nearest, when there is none."""
    from artifacts.errors import nearest

    for folder in (REPOSITORY / "runs" / name, Path(name)):
        if (folder / "pipeline.json").exists():
            return Run(folder)
    known = [p.parent.name for p in (REPOSITORY / "runs").glob("*/pipeline.json")]
    raise UserError(f"there is no run {name!r}{nearest(name, known)}; runs/ holds {', '.join(known) or 'none'}")


def show_status(run: Run) -> None:
    from artifacts.files import read_json
    from launch.runner import read_manifest

    for stage in read_json(run.folder / "pipeline.json")["stages"]:
        manifest = read_manifest(run, stage)
        if manifest is None:
            print(f"{stage:<12} not done")
        else:
            print(f"{stage:<12} {manifest.status:<7} {manifest.seconds:7.1f} s  {manifest.peak_memory_mb:7.0f} MB")


def main() -> int | None:
    arguments = parser().parse_args()
    if arguments.command == "run":
        from launch.pipeline import load_pipeline
        from launch.runner import run_pipeline

        run = Run(arguments.run_folder or REPOSITORY / "runs" / arguments.pipeline)
        pipeline = load_pipeline(arguments.pipeline, run.folder, arguments.set)
        run_pipeline(pipeline, run, pipeline.between(arguments.first, arguments.last), arguments.dry_run)
    elif arguments.command == "estimate":
        from launch.estimate import run as run_estimate

        run_estimate(arguments)
    elif arguments.command == "lint-data":
        from launch.lint_data import run as run_lint

        run_lint(arguments)
    elif arguments.command == "split-data":
        from launch.lint_data import split

        train, valid = split(arguments.file, arguments.output_folder, arguments.share)
        print(
            f"{arguments.output_folder}/{arguments.file.stem}_train.json: {train:,} rows, _valid.json: {valid:,} rows"
        )
    elif arguments.command in ("eval", "bits-per-byte", "calibrate", "compare"):
        import importlib

        names = {"eval": "evaluate", "bits-per-byte": "bits_per_byte"}
        module = importlib.import_module(f"launch.{names.get(arguments.command, arguments.command)}")
        return int(module.run(arguments))
    elif arguments.command == "download":
        import subprocess
        import sys

        words = [word for name in arguments.source for word in ("--source", name)]
        words += ["--from-file", str(arguments.from_file.resolve())] if arguments.from_file else []
        return subprocess.run([sys.executable, "-m", "preprocess.download", *words], cwd=REPOSITORY).returncode
    elif arguments.command == "status":
        show_status(find_run(arguments.run))
    else:
        from launch.report import write_report

        write_report(find_run(arguments.run))
    return None


def entry() -> None:
    run_main(main)


if __name__ == "__main__":
    entry()
