"""Look at every stage of a pipeline before the first one starts, and list what is missing or wrong.

    myllm check zh-0.5b                      # everything that can be known now; exit code 2 if something is missing
    myllm check zh-0.5b --from pretrain      # the stages that a machine will run
    myllm check my/pipeline.yaml --set vocab=8000

It parses every command with the parser that will read it, and asks each command's module what it needs
(`look_ahead`): files that no earlier stage makes, environments and packages, keys of recipes and of data, sets,
prompts, ports, disk. `myllm run` and `myllm submit` do the same before they start. What only running can show,
`myllm rehearse` shows.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import shlex
import shutil
from importlib.util import find_spec

from artifacts.ahead import Ahead, Needs
from artifacts.command import parser_of
from artifacts.errors import UserError, nearest
from artifacts.layout import REPOSITORY, Run
from artifacts.plugs import search_here
from launch.commands import COMMANDS, parser_for
from launch.pipeline.arguments import add_pipeline_arguments, read_pipeline
from launch.pipeline.definition import Pipeline, Stage
from launch.pipeline.runner import done_stages

GB = 1e9
OURS = ("artifacts", "preprocess", "converters", "launch")


def parse(words: list[str]) -> tuple[argparse.Namespace, str]:
    """The arguments of `myllm WORDS…` as its own parser reads them, and the module's name.

    Raises:
        UserError: there is no such command, or its parser refuses the arguments.
    """
    if not words or words[0] not in COMMANDS:
        name = words[0] if words else ""
        raise UserError(f"`myllm {name}` is not a command{nearest(name, COMMANDS)}: `myllm --help` lists them")
    return read(parser_for(words[0]), words), COMMANDS[words[0]].module


def read(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The arguments after the first word. Raises UserError if the parser refuses them."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return parser.parse_args(words[1:])
    except SystemExit:
        reason = told.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"{parser.prog} {shlex.join(words[1:])}: {reason}") from None


def files_only(arguments: argparse.Namespace, ahead: Ahead) -> None:
    """For a command without `look_ahead`: its --input must be there, its --output will be."""
    given = getattr(arguments, "input", None)
    for path in given if isinstance(given, list) else [given] if given else []:
        ahead.wants(path)
    for name in ("output", "output_folder"):
        if path := getattr(arguments, name, None):
            ahead.makes(path)


def is_module(name: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return find_spec(name) is not None
    return False


def look_at_module(words: list[str], ahead: Ahead) -> None:
    """Add what is known of `python -m WORDS…`: a module of this repository is asked, another judged by its options."""
    if not is_module(words[0]):
        ahead.problem(f"`python -m {words[0]}`: there is no such module: check its name, or install its package")
        return
    for option, value in zip(words, words[1:]):
        if option.startswith("--output"):
            ahead.makes(value)
    if words[0].partition(".")[0] in OURS:
        module = importlib.import_module(words[0])
        if hasattr(module, "look_ahead"):
            arguments = ahead.checks(read, parser_of(module, f"python -m {words[0]}"), words)
            if arguments is not None:
                ahead.checks(module.look_ahead, arguments, ahead)


def look_at(command: list[str], ahead: Ahead) -> None:
    """Add what is known of one command to `ahead`."""
    if command[0] == "myllm":
        parsed = ahead.checks(parse, command[1:])
        if parsed is not None:
            arguments, name = parsed
            look_ahead = getattr(importlib.import_module(name), "look_ahead", files_only)
            ahead.checks(look_ahead, arguments, ahead)
    elif command[0].rpartition("/")[2] == "python" and command[1:2] == ["-m"] and len(command) > 2:
        look_at_module(command[2:], ahead)
    elif not shutil.which(command[0]) and not (REPOSITORY / command[0]).exists():
        ahead.problem(f"{command[0]} is not a program: write `myllm COMMAND …` or `python -m MODULE …`")


def look(pipeline: Pipeline, stages: list[Stage], run: Run, quick: bool = False) -> Ahead:
    """What is known of the given stages. Stages before them, and those that are done, are looked at for what they make.

    Their problems are not counted. `quick` leaves out what takes seconds: Megatron's own check of a recipe.
    """
    ahead = Ahead(quick=quick)
    search_here()
    finished = done_stages(pipeline, run)
    with contextlib.chdir(REPOSITORY):  # where the commands will run
        for stage in pipeline.stages:
            ahead.stage, ahead.counts = stage.name, stage in stages and stage.name not in finished
            for command in stage.commands:
                look_at(command, ahead)
    check_disk(ahead, run)
    return ahead


def check_disk(ahead: Ahead, run: Run) -> None:
    """Note a problem if the stages together need more disk than the run's file system has left."""
    wanted = sum(needs.disk for needs in ahead.of_stage.values())
    folder = next(folder for folder in (run.folder, *run.folder.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if wanted > free:
        parts = sorted(ahead.of_stage.items(), key=lambda item: -item[1].disk)
        most = ", ".join(f"{stage} {needs.disk / GB:,.0f} GB" for stage, needs in parts[:3] if needs.disk)
        ahead.stage, ahead.counts = "disk", True
        ahead.machine(
            f"the stages need about {wanted / GB:,.0f} GB ({most}), but {folder} has {free / GB:,.0f} GB free: "
            "give --run-folder on a larger disk"
        )


def size(amount: float) -> str:
    return f"{amount / GB:,.1f} GB" if amount > GB / 10 else f"{amount / 1e6:,.0f} MB"


def shown(needs: Needs, price: float | None = None) -> str:
    """What a stage needs, on one line; `price` is that of a GPU-hour."""
    parts = []
    if needs.tokens:
        parts.append(f"{needs.tokens:.3g} tokens")
    if needs.hours:
        parts.append(f"{needs.hours:,.1f} h")
    if needs.gpu_hours:
        parts.append(f"{needs.gpu_hours:,.0f} GPU-hours")
        if price is not None:
            parts.append(f"cost {needs.gpu_hours * price:,.0f}")
    if needs.memory:
        parts.append(f"{size(needs.memory)} of memory{' of each GPU' if needs.gpus else ''}")
    if needs.disk:
        parts.append(f"{size(needs.disk)} of disk")
    return "; ".join([*parts, *needs.notes])


def refuse(ahead: Ahead, pipeline: Pipeline, here: bool = False) -> None:
    """Raise UserError with every problem, if there is one; those of this machine count if it runs `here`."""
    found = [*ahead.problems, *(ahead.elsewhere if here else [])]
    if found:
        lines = "\n".join(f"  {stage}: {text}" for stage, text in found)
        count = f"{len(found)} thing{'s' if len(found) > 1 else ''}"
        raise UserError(f"{pipeline.name} cannot run yet, {count} to mend:\n{lines}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)
    parser.add_argument("--price", type=float, help="price of a GPU-hour in any currency: also print the cost")


def run(given: argparse.Namespace) -> None:
    pipeline, folders, stages = read_pipeline(given)
    ahead = look(pipeline, stages, folders)
    wide = max(len(stage.name) for stage in stages)
    for stage in stages:
        if text := shown(ahead.of_stage.get(stage.name, Needs()), given.price):
            print(f"{stage.name:<{wide}}  {text}")
    if pipeline.notes:
        print(pipeline.notes)
    refuse(ahead, pipeline, here=True)
    print(f"{pipeline.name}: nothing is missing; `myllm rehearse {given.pipeline}` tries it in small")
