"""Characters in arrays, the quality rules, privacy."""

import random
from collections import Counter

import numpy as np
import pytest

from artifacts.errors import UserError
from preprocess.cleaning import characters, clean, privacy, quality
from preprocess.cleaning.characters import Characters

PROSE = (
    "唐代是中国诗歌的黄金时代。诗人们游历四方，以五言和七言写下山川、离别与战乱，后人把这些作品编成选集，代代传诵。\n"
    "到了宋代，词成为新的体裁，句子长短不一，便于歌唱；苏轼打破了题材的界限，开创了豪放的风格。"
)


def test_windows_are_those_of_each_text_alone():
    rng = random.Random(1)
    texts = ["".join(rng.choices("甲乙丙 \n", k=rng.randint(0, 30))) for _ in range(60)]
    solid = Characters.of(texts).without_space()
    for size in (1, 2, 5, 13):
        hashes = characters.window_hashes(solid.codes, size)[solid.window_starts(size)]
        expected = [
            w for t in texts for s in ["".join(t.split())] for w in (s[i : i + size] for i in range(len(s) - size + 1))
        ]
        assert len(hashes) == len(expected) == solid.window_counts(size).sum()
        by_hash: dict[int, set] = {}
        for value, window in zip(hashes.tolist(), expected):
            by_hash.setdefault(value, set()).add(window)
        assert all(len(windows) == 1 for windows in by_hash.values())
        assert len(by_hash) == len(set(expected))


def test_counts_are_those_of_plain_python():
    texts = ["春风 abc，12。\n", "", "Ã©", "𠀀锛"]
    counts = Characters.of(texts).counts()
    assert counts[0].tolist()[:7] == [0, 2, 1, 1, 3, 2, 2]
    assert counts[1].sum() == 0
    assert counts[2, characters.LATIN] == 2
    assert counts[3, characters.CHINESE] == 1 and counts[3, characters.GARBLED] == 1


def test_repetition_is_the_share_that_stands_before():
    text = "".join(chr(0x4E00 + i) for i in range(50))
    solid = Characters.of([text, text * 2, text * 4]).without_space()
    shares = quality.repeated_windows(solid, 13)
    assert np.allclose(shares, [0, 38 / 88, 138 / 188])


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (None, PROSE),
        ("too short", "点击查看"),
        ("mojibake", PROSE.encode().decode("latin-1")),
        ("mojibake", PROSE.encode().decode("gbk", "ignore")),
        ("mojibake", "锟斤拷锟斤拷，这一页的内容读不出来。" + PROSE[:40] + "烫烫烫"),
        ("not mostly Chinese", "Buy cheap watches online, best price, free shipping worldwide! 手表"),
        ("mostly digits", "中奖号码：" + "0123456789，" * 5 + "以上号码请核对本期结果，过期不再兑付，请妥善保管。"),
        ("repeated lines", "\n".join(["今天天气很好，我们去公园。", "明天下雨，在家看书。"] * 4)),
        ("repeated passages", "买一送一，数量有限，先到先得，欢迎光临本店选购商品。" * 20),
        ("advert", "本公司代开发票，量大从优，加微信 abc123，免费咨询，当天放款，诚招代理，欢迎来电。"),
        ("page furniture", "首页 关于我们 联系我们 网站地图 版权所有 京ICP备12345号 技术支持 友情链接，设为首页。"),
        ("no sentences", "首页\n新闻\n财经\n体育\n娱乐\n汽车\n房产\n科技\n手机\n数码\n教育\n健康\n旅游\n时尚"),
    ],
)
def test_each_rule(reason, text):
    assert quality.judge([quality.normalised(text)]) == [reason]


def test_judging_many_is_judging_each():
    rng = random.Random(2)
    texts = [
        PROSE,
        "",
        "\n",
        PROSE * 9,
        "a" * 50,
        *("".join(rng.choices(PROSE, k=rng.randint(0, 90))) for _ in range(200)),
    ]
    texts = [quality.normalised(text) for text in texts]
    assert quality.judge(texts) == [quality.judge([text])[0] for text in texts]


def test_thresholds_are_set_by_name():
    thresholds = clean.thresholds_of(["min_characters=500", "max_digits=0.5"])
    assert quality.judge([PROSE], thresholds) == ["too short"]
    with pytest.raises(UserError, match="did you mean 'min_characters'"):
        clean.thresholds_of(["min_character=5"])
    with pytest.raises(UserError, match="must be an integer"):
        clean.thresholds_of(["min_characters=five"])


def test_normalising_removes_what_no_model_should_learn():
    assert quality.normalised("甲\r\n乙\u200b\x00丙  \n\n\n\n丁┌──┐==========") == "甲\n乙丙\n\n丁==="
    many = [{"text": "甲 \n乙"}, {"text": " e\u0301 "}]
    quality.normalise_rows(many)
    assert [row["text"] for row in many] == ["甲\n乙", "é"]


def test_privacy_masks_what_identifies_and_nothing_else():
    counts: Counter = Counter()
    text = "信箱 zhang.san@mail.example.com.cn，手机13812345678或+86 139-1234-5678，证号11010519491231002X。"
    assert privacy.mask(text, counts) == "信箱 [邮箱]，手机[电话]或[电话]，证号[身份证号]。"
    assert counts == {"mail addresses": 1, "phone numbers": 2, "identity numbers": 1}
    for kept in ("证号110105194912310021", "订单201381234567890", "圆周率3.1415926535897", "@微博", "第12812345678号"):
        assert privacy.mask(kept, counts) == kept
    rows = [{"text": "甲\x1e乙 13812345678"}, {"text": "丙"}]  # the separator itself in a text
    assert privacy.mask_rows(rows) == {"phone numbers": 1}
    assert [row["text"] for row in rows] == ["甲\x1e乙 [电话]", "丙"]


def test_the_check_digit_decides():
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]  # as GB 11643-1999 prints them
    rng = random.Random(3)
    for _ in range(200):
        digits = [rng.randrange(10) for _ in range(17)]
        check = "10X98765432"[sum(d * w for d, w in zip(digits, weights)) % 11]
        number = "".join(map(str, digits))
        assert privacy.valid_identity(number + check)
        assert not any(privacy.valid_identity(number + other) for other in "0123456789X" if other != check)
