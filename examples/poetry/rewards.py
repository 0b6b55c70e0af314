"""Reward functions for verse: GRPO trains with them, and `myllm answer-rewards` scores answers with them.

    reward_funcs: [examples.poetry.rewards.verse_format, examples.poetry.rewards.rhyme]   # in a recipe

`launch.posttraining.rewards` documents what a reward function takes and returns. These three parse the request
(`examples.poetry.verse.asked`) for the requested form. Rhyme follows 平水韵, the rhyme groups of Tang and Song verse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from examples.poetry.verse import FORM, Asked, asked, couplets, rhymes, verse_lines
from launch.posttraining.rewards import text_of


def _judge(
    prompts: list[Any], completions: list[Any], judge: Callable[[Asked, str], float | None]
) -> list[float | None]:
    """Score every answer whose request asks for verse; None for the others."""
    wanted = [asked(text_of(prompt)) for prompt in prompts]
    return [judge(want, text_of(done)) if want else None for want, done in zip(wanted, completions, strict=True)]


def format_of(want: Asked, answer: str) -> float:
    """0.5 for the form's number of lines, and 0.5 if the answer is only lines punctuated as `line，line。`.

    Lines must be different, so that repeating a line does not reach the right number.
    """
    lines = verse_lines(answer)
    if not lines:
        return 0.0
    count = want.lines is None or len(set(lines)) == len(lines) == want.lines
    # a single line after an odd number of given lines completes a couplet
    closing = len(lines) == 1 and len(want.given) % 2 == 1
    whole = FORM.sub("", answer, count=1) if want.titled else answer
    return 0.5 * count + 0.5 * (whole.strip() == (f"{lines[0]}。" if closing else couplets(lines)))


def length_of(want: Asked, answer: str) -> float:
    """The share of lines with the requested number of characters; 0 if there are no lines."""
    lines = verse_lines(answer)
    return sum(len(line) == want.line_length for line in lines) / len(lines) if lines else 0.0


def rhyme_of(want: Asked, answer: str) -> float | None:
    """The share of couplets that rhyme with the first, by 平水韵 of their last characters; no character counts twice.

    None if the request needs no second couplet; 0 if it does and the answer has none.
    """
    if len(want.given) % 2 or (want.lines is not None and len(want.given) + want.lines < 4):
        return None
    ends = [line[-1] for line in (*want.given, *verse_lines(answer))[1::2]]
    if len(ends) < 2:
        return 0.0
    fits = [rhymes(ends[0], end) and end not in ends[:place] for place, end in enumerate(ends)][1:]
    return sum(fits) / len(fits)


def verse_format(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
    """See `format_of`; None for a request that does not ask for verse."""
    return _judge(prompts, completions, format_of)


def line_length(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
    """See `length_of`; None for a request that does not ask for verse."""
    return _judge(prompts, completions, length_of)


def rhyme(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
    """See `rhyme_of`; None for a request that does not ask for verse, or asks for one couplet only."""
    return _judge(prompts, completions, rhyme_of)
