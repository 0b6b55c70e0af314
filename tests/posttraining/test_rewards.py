"""Reward functions of a recipe: the one for arithmetic, and how one of the user's own is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.statistics import mean_interval
from launch.posttraining import rewards


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def judge(reward: rewards.Reward, request: str, text: str, **columns: list[str]) -> float | None:
    (value,) = reward(prompts=[ask(request)], completions=[answer(text)], **columns)
    return value


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("3 + 5 = 8", "8", 1.0),
        ("答案是 8。", "8", 1.0),
        ("8 或者 9", "8", 0.0),
        ("1,024.0", "1024", 1.0),
        ("-3", "3", 0.0),
        ("不知道", "3", 0.0),
        ("8", "王维", None),
    ],
)
def test_arithmetic_is_right_or_wrong(text: str, reference: str, value: float | None) -> None:
    assert judge(rewards.exact_answer, "3 + 5 = ?", text, answer=[reference]) == value


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'exact_answer'"):
        rewards.load("launch.posttraining.rewards.exact_answr")
    with pytest.raises(UserError, match="No module named 'no_such_module'"):
        rewards.load("no_such_module.reward")


def test_an_interval_holds_the_mean() -> None:
    mean, low, high = mean_interval([0.0, 1.0] * 50)
    assert mean == 0.5 and low == pytest.approx(0.5 - 1.959964 * 0.050252, abs=1e-5) and high == pytest.approx(1 - low)
    assert mean_interval([0.3]) == (0.3, 0.3, 0.3)


def test_a_reward_may_be_a_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_rewards.py").write_text("def polite(prompts, completions, **_):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    assert rewards.load("my_own_rewards.polite")(prompts=[], completions=[]) == [1.0]
    with pytest.raises(UserError, match="my_own_rewards has no function 'polit' .did you mean 'polite'"):
        rewards.load("my_own_rewards.polit")
    with pytest.raises(UserError, match="'polite' names no module. Write MODULE.FUNCTION"):
        rewards.load("polite")
