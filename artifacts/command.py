"""A command is a module with `add_arguments(parser)` and `run(arguments)`: `myllm NAME …`, or `python -m MODULE …`.

    if __name__ == "__main__":
        main(__name__)

The module's docstring is what `--help` prints, so it shows an example. `run` may return an exit code.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from types import ModuleType
from typing import Any

from artifacts.errors import run_main


def parser_of(module: ModuleType | Any, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command's arguments; `prog` is the command as the user writes it."""
    made = argparse.ArgumentParser(
        prog=prog, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(made)
    return made


def run_command(module: ModuleType | Any, words: list[str] | None = None) -> int | None:
    """Parse `words` (default: the command line) and run the command; returns its exit code."""
    code: int | None = module.run(parser_of(module).parse_args(words))
    return code


def main(name: str) -> None:
    """Run the module `name` as a program, and exit."""
    run_main(partial(run_command, sys.modules[name]))
