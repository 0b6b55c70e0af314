"""Errors that the user can fix: one line that names the file and the fix, without a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

EXIT_USER_ERROR = 2


class UserError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, in which file, what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the closest valid name, or an empty string if none is close."""
    close = get_close_matches(name, [str(v) for v in valid], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and exit. A `UserError` or a full disk prints one line on stderr and exits with 2.

    Ctrl-C exits with 130. Any other exception is a bug and prints its traceback.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = error.filename or "the output folder"
        print(
            f"error: disk full while writing {where}: free some space and run the same command again", file=sys.stderr
        )
        sys.exit(EXIT_USER_ERROR)
