"""Commands run inside the test's own process: what a command prints and how it exits, without a start of torch each."""

import contextlib
import importlib
import io
from pathlib import Path
from subprocess import CompletedProcess

from artifacts.command import run_command
from artifacts.errors import run_main

REPOSITORY = Path(__file__).resolve().parent.parent


def typed(module: str, *words: str | Path) -> CompletedProcess[str]:
    """The end of `python -m MODULE WORDS…`: its exit code, and what it wrote to its two streams."""
    code: object = 0
    command = importlib.import_module(module)
    with (
        contextlib.chdir(REPOSITORY),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            run_main(lambda: run_command(command, [str(word) for word in words]))
        except SystemExit as ended:
            code = ended.code
    return CompletedProcess([module, *words], int(str(code or 0)), out.getvalue(), err.getvalue())
