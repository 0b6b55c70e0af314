"""Reward functions for GRPO, and how a recipe names them.

    reward_funcs: [launch.posttraining.rewards.exact_answer, my_rewards.politeness]   # in a recipe

A reward is a function as TRL defines it (`trl.GRPOTrainer`, `reward_funcs`): it takes `prompts` and `completions` as
lists of messages and every other column of the data as a keyword (`answer`). It returns a number from 0 to 1 for each
completion, or None where it does not apply; TRL ignores None. To add one, write such a function in any module: a .py
file in the current folder will do. examples/poetry/rewards.py holds three.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from artifacts.plugs import load_function

Messages = list[dict[str, str]]
Reward = Callable[..., list[float | None]]
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def text_of(turns: Messages | str) -> str:
    """The last message's text; a plain text is itself."""
    return turns if isinstance(turns, str) else turns[-1]["content"]


def last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def exact_answer(
    prompts: list[Any], completions: list[Any], answer: list[str] | None = None, **_: Any
) -> list[float | None]:
    """1 where the last number of the answer is that of the reference, for arithmetic; None where that has no number."""
    answers = answer or [""] * len(completions)
    wanted = [last_number(text) for text in answers]
    return [
        None if want is None else float(last_number(text_of(done)) == want)
        for want, done in zip(wanted, completions, strict=True)
    ]


def rewards_of_trl() -> list[str]:
    """Names of the rewards that TRL's own script knows, read from its source: an import would take ten seconds."""
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "scripts" / "grpo.py").read_text(encoding="utf-8"))
    return [
        str(ast.literal_eval(key))
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reward_funcs_registry"
        if isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if key is not None
    ]


def load(name: str) -> Reward:
    """The reward function with a dotted name; raises UserError when the module or the function does not exist."""
    return load_function(name, "reward_funcs")
