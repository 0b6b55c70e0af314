"""Build a chat model from raw text: one command for each step, or for the whole pipeline.

myllm run poetry-tiny                         # run the whole pipeline; run it again to resume
myllm run poetry-tiny --from sft --to score   # run some of its stages
myllm run poetry-tiny --dry-run               # print the commands, run nothing
myllm submit poetry-tiny --site mine          # run the same stages as a chain of Slurm jobs

`myllm COMMAND --help` explains a command and gives an example.
"""

from __future__ import annotations

import sys

from artifacts.errors import UserError, nearest, run_main
from launch.commands import COMMANDS, overview, parser_for


def main() -> int | None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"usage: myllm COMMAND [options]\n\n{__doc__}\n{overview()}".rstrip())
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{nearest(name, COMMANDS)}: `myllm --help` lists them")
    code: int | None = COMMANDS[name].load().run(parser_for(name).parse_args(sys.argv[2:]))
    return code


def entry() -> None:
    run_main(main)


if __name__ == "__main__":
    entry()
