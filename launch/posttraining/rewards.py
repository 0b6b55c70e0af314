"""Rewards that can be checked: what GRPO learns from, and what answers are measured by.

    reward_funcs: [launch.posttraining.rewards.verse_format, launch.posttraining.rewards.rhyme]   # in grpo.yaml

Each is a function of TRL's own kind (`trl.GRPOTrainer`, `reward_funcs`): it gets `prompts` and `completions` as lists
of messages, and every other column of the data as a keyword (`answer`), and gives a number from 0 to 1 for each, or
None where it has nothing to judge; TRL leaves None out. A reward of your own is one more function, in any module that
Python finds: `my_rewards.politeness`.

What is asked is read from the request itself (`artifacts.verse.asked`); rhyme is that of 平水韵, by which Tang and Song
verse was written. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from artifacts.verse import FORM, Asked, asked, couplets, rhymes, verse_lines

Messages = list[dict[str, str]]
Reward = Callable[..., list[float | None]]
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def _text(turns: Messages | str) -> str:
    """The last message's text; a plain text is itself."""
    return turns if isinstance(turns, str) else turns[-1]["content"]


def _judge(
    prompts: list[Any], completions: list[Any], judge: Callable[[Asked, str], float | None]
) -> list[float | None]:
    """Judge every answer whose request asks for verse."""
    wanted = [asked(_text(prompt)) for prompt in prompts]
    return [judge(want, _text(done)) if want else None for want, done in zip(wanted, completions, strict=True)]


def format_of(want: Asked, answer: str) -> float:
    """Half for the number of lines that the form has, half for setting them as `line，line。`, nothing else around.

    A line that stands twice counts once, so that repeating one is no way to the right number.
    """
    lines = verse_lines(answer)
    if not lines:
        return 0.0
    count = want.lines is None or len(set(lines)) == len(lines) == want.lines
    # the single line that follows an odd number of lines closes a couplet
    closing = len(lines) == 1 and len(want.given) % 2 == 1
    whole = FORM.sub("", answer, count=1) if want.titled else answer
    return 0.5 * count + 0.5 * (whole.strip() == (f"{lines[0]}。" if closing else couplets(lines)))


def length_of(want: Asked, answer: str) -> float:
    """The share of lines with the number of characters asked for; without lines, 0."""
    lines = verse_lines(answer)
    return sum(len(line) == want.line_length for line in lines) / len(lines) if lines else 0.0


def rhyme_of(want: Asked, answer: str) -> float | None:
    """The share of couplets that rhyme with the first one: their last characters, by 平水韵, none of them used twice.

    None where the request wants no second couplet; 0 when it does and the answer has none.
    """
    if len(want.given) % 2 or (want.lines is not None and len(want.given) + want.lines < 4):
        return None
    ends = [line[-1] for line in (*want.given, *verse_lines(answer))[1::2]]
    if len(ends) < 2:
        return 0.0
    fits = [rhymes(ends[0], end) and end not in ends[:place] for place, end in enumerate(ends)][1:]
    return sum(fits) / len(fits)


def verse_format(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
    """See `format_of`; None for a request that asks for no verse."""
    return _judge(prompts, completions, format_of)


def line_length(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
    """See `length_of`; None for a request that asks for no verse."""
    return _judge(prompts, completions, length_of)


def rhyme(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
    """See `rhyme_of`; None for a request that asks for no verse, or for a couplet only."""
    return _judge(prompts, completions, rhyme_of)


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
        None if want is None else float(last_number(_text(done)) == want)
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
    """The reward function with a dotted name.

    Raises:
        UserError: there is no such module or function; names the nearest of the module's.
    """
    import importlib

    from artifacts.errors import UserError, nearest

    module_name, _, function = name.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        raise UserError(
            f"reward_funcs: {name}: {error}; write module.function, e.g. launch.posttraining.rewards.rhyme"
        ) from None
    found = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)] if module else []
        where = module_name or "a reward"
        raise UserError(f"reward_funcs: {name}: {where} has no function {function!r}{nearest(function, known)}")
    return found
