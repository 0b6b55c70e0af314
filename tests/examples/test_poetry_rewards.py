"""Rewards: what verse is asked for is read from the request, and an answer gets no more than it has earned."""

from __future__ import annotations

import random

import pytest

from examples.poetry import rewards, tasks, verse
from launch.posttraining.rewards import Reward

QUATRAIN = "五绝：白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
REGULATED = "五律：国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。烽火连三月，家书抵万金。白头搔更短，浑欲不胜簪。"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def judge(reward: Reward, request: str, text: str, **columns: list[str]) -> float | None:
    (value,) = reward(prompts=[ask(request)], completions=[answer(text)], **columns)
    return value


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ("写一首五绝。", verse.Asked(5, 4, (), True)),
        ("写一首七律。", verse.Asked(7, 8, (), True)),
        ("写一首五古。", verse.Asked(5, None, (), True)),
        ("写一联七古。", verse.Asked(7, 2, (), True)),
        (
            "补全这首诗：五绝：白日依山尽，黄河入海流。",
            verse.Asked(5, 2, ("白日依山尽", "黄河入海流"), False),
        ),
        ("续写下一句：五绝：白日依山尽，", verse.Asked(5, 1, ("白日依山尽",), False)),
        ("这首诗是谁写的？五绝：白日依山尽，", None),
        ("你好", None),
    ],
)
def test_a_request_is_read(request_: str, wanted: verse.Asked | None) -> None:
    assert verse.asked(request_) == wanted


@pytest.mark.parametrize(
    ("text", "format_", "length", "rhyme"),
    [
        (QUATRAIN, 1.0, 1.0, 1.0),
        (QUATRAIN[3:], 1.0, 1.0, 1.0),  # without its title
        (REGULATED, 0.5, 1.0, 1.0),  # twice as many lines as asked for
        ("白日依山尽，黄河入海流，欲穷千里目，更上一层楼", 0.5, 1.0, 1.0),  # set wrongly
        ("好的。白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", 0.0, 0.8, 0.0),
        ("白日依山尽，黄河入海流。白日依山尽，黄河入海流。", 0.5, 1.0, 0.0),  # the same couplet twice
        ("白日依山尽，黄河入海流。欲穷千里目，更上一重天。", 1.0, 1.0, 0.0),
        ("白日依山尽，黄河流。欲穷千里目，更上楼。", 1.0, 0.5, 1.0),
        ("黄河入海流。", 0.0, 1.0, 0.0),
        ("", 0.0, 0.0, 0.0),
        ("，。，。", 0.0, 0.0, 0.0),
    ],
)
def test_a_quatrain_is_judged(text: str, format_: float, length: float, rhyme: float) -> None:
    found = [
        judge(reward, "写一首五绝。", text) for reward in (rewards.verse_format, rewards.line_length, rewards.rhyme)
    ]
    assert found == [format_, length, rhyme]


def test_what_is_given_decides_the_rhyme() -> None:
    request = "补全这首诗：五绝：白日依山尽，黄河入海流。"
    assert judge(rewards.rhyme, request, "欲穷千里目，更上一层楼。") == 1.0
    assert judge(rewards.rhyme, request, "欲穷千里目，更上一重天。") == 0.0
    assert judge(rewards.rhyme, request, "欲穷千里目，更上一重流。") == 0.0  # the character itself is no rhyme
    assert judge(rewards.verse_format, request, "欲穷千里目，更上一层楼。") == 1.0
    assert judge(rewards.verse_format, "续写下一句：五绝：白日依山尽，", "黄河入海流。") == 1.0


@pytest.mark.parametrize("reward", [rewards.verse_format, rewards.line_length, rewards.rhyme])
def test_what_asks_for_no_verse_is_not_judged(reward: Reward) -> None:
    assert reward(prompts=[ask("你好"), ask("写一首五绝。")], completions=[answer("好"), answer(QUATRAIN)]) == [
        None,
        1.0,
    ]


def test_a_couplet_has_no_rhyme_to_judge() -> None:
    assert judge(rewards.rhyme, "写一联五绝。", "五绝：白日依山尽，黄河入海流。") is None
    assert judge(rewards.verse_format, "写一联五绝。", "五绝：白日依山尽，黄河入海流。") == 1.0


def test_rhymes_are_those_of_the_book() -> None:
    assert len({group for groups in verse.rhyme_groups().values() for group in groups}) == 106
    assert verse.rhymes("流", "楼") and verse.rhymes("深", "心") and verse.rhymes("斜", "家")  # 斜 in no modern reading
    assert not verse.rhymes("东", "冬") and not verse.rhymes("流", "流") and not verse.rhymes("流", "ß")


def test_every_task_that_is_made_can_be_judged_and_its_own_answer_is_right() -> None:
    """The wording of the tasks and the reading of the rewards are one fact."""
    poems = [
        {"id": str(i), "text": text, "metadata": {"author": "杜甫"}} for i, text in enumerate((QUATRAIN, REGULATED))
    ]
    rows = tasks.checkable(poems, 4, random.Random(0))
    assert {row["instruction"][:3] for row in rows} == {"补全这", "写一首"}
    for row in rows:
        for reward in (rewards.verse_format, rewards.line_length, rewards.rhyme):
            assert judge(reward, row["instruction"], row["output"]) == 1.0, (row, reward)
    for maker in (tasks.what_follows, tasks.begin_verse):
        row = maker(poems[1], random.Random(0))
        assert judge(rewards.verse_format, row["instruction"], row["output"]) == 1.0
