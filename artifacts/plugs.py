"""Load the user's own functions, which settings name as `module.function`: cleaning rules, rewards.

keep = load_function("my_rules.keep", "--rules")     # my_rules.py in the current folder, or any installed module
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.layout import REPOSITORY


def search_here() -> None:
    """Let modules be found in the current folder and in the repository too, after those of Python's path."""
    for folder in (str(Path.cwd()), str(REPOSITORY)):
        if folder not in sys.path:
            sys.path.append(folder)


def load_function(name: str, setting: str) -> Callable[..., Any]:
    """Import the function `module.function`.

    Modules are searched in Python's path, then in the current folder, then in the repository.

    Args:
        name: dotted name of the function.
        setting: the option or key that has this value, for error messages.

    Raises:
        UserError: the module or the function does not exist.
    """
    search_here()
    module_name, _, function = name.rpartition(".")
    if not module_name:
        raise UserError(f"{setting}: {name!r} names no module. Write MODULE.FUNCTION, e.g. my_module.{name}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{setting}: {name}: {error}. Write MODULE.FUNCTION; the module may be a .py file in the current folder"
        ) from None
    found = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{setting}: {name}: {module_name} has no function {function!r}{nearest(function, known)}")
    return found
