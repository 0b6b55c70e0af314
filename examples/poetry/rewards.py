"""Rewards for verse: GRPO trains on them, and `myllm answer-rewards` measures answers by them.

    reward_funcs: [examples.poetry.rewards.verse_format, examples.poetry.rewards.rhyme]   # in a recipe

`launch.posttraining.rewards` says what a reward function takes and returns. These three read what was asked for from
the request itself (`examples.poetry.verse.asked`). Rhyme follows 平水韵, the rhyme groups of Tang and Song verse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from examples.poetry.verse import FORM, Asked, asked, couplets, rhymes, verse_lines
from launch.posttraining.rewards import text_of


def _judge(
    prompts: list[Any], completions: list[Any], judge: Callable[[Asked, str], float | None]
) -> list[float | None]:
    """Judge every answer whose request asks for verse."""
    wanted = [asked(text_of(prompt)) for prompt in prompts]
    return [judge(want, text_of(done)) if want else None for want, done in zip(wanted, completions, strict=True)]


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
