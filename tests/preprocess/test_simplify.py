"""Simplification: Simplified text stays as it is, Traditional passages are converted, the user's phrases win."""

import json
import random
import re
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import read_jsonl, write_jsonl
from preprocess.cleaning.conversion import CONFIGS, convert_many, converter
from preprocess.cleaning.scripts import RARE, kinds_of
from preprocess.cleaning.simplify import read_phrases, simplify, simplify_many, simplify_rows

GB_2312 = [
    character for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF)
    if (character := bytes([row, cell]).decode("gb2312", "ignore"))
]  # fmt: skip
SIMPLIFIED = [
    "松原市乾安县位于吉林省，乾清宫在北京，乾隆年间重修。",
    "这句话是简体，旋乾转坤是成语，反覆二字今作反复。",
    "於潜是杭州的一个古县名，今属临安。",
    "宫商角徵羽是五声音阶，徵音不可写作征。",
    "麴院风荷又作曲院风荷，麴先生姓麴。",
    "那吒与哪吒是两种译法，李后主与後主写法不同。",
    "拚命不同于拼命，他捱过了冬天，折扇又写摺扇。",
    "规榘、菸草、葡萄醣、么麽、红袷袄、蒜薹都见于词典。",
    "毕昇发明活字，陞官图今写升官图，脩金即学费。",
    "毛坏了的砖坯，凭藉、慰藉、瞭望，他吃了三哩路，俱乐部。",
]
TRADITIONAL = [
    "看著窗外，他著有三部書，乾隆年間的瀋陽。",
    "乾淨的衣服曬乾了，後天再說。",
    "於是國家徵收糧食，夥計摺好帳單。",
    "車站旁的書店賣舊書，老闆姓陳。",
    "這項技術改變了人們交流的方式。",
]


def converted(text: str, config: str = "t2s", **more) -> str:
    return simplify_many([[text]], config, **more)[0][0]


@pytest.mark.parametrize("config", CONFIGS)
def test_simplified_text_stays_byte_for_byte(config: str) -> None:
    assert len(GB_2312) == 6763
    whole = "".join(GB_2312)
    assert converted(whole, config) == whole
    assert [row[0] for row in simplify_many([[one] for one in GB_2312], config)] == GB_2312
    assert simplify_many([SIMPLIFIED], config) == [SIMPLIFIED]
    rng = random.Random(1)
    prose = "\n".join("".join(rng.choices(GB_2312, k=30)) + "。" for _ in range(300))
    assert converted(prose, config) == prose


@pytest.mark.parametrize("config", CONFIGS)
def test_traditional_text_is_what_opencc_makes_of_it(config: str) -> None:
    rows = [[text] for text in (*TRADITIONAL, "\n".join(TRADITIONAL))]
    assert [text for (text,) in simplify_many(rows, config)] == convert_many([text for (text,) in rows], config)
    assert converted(TRADITIONAL[0], config).endswith("三部书，乾隆年间的沈阳。")
    assert converted("看著窗外的車。", config) == ("看着窗外的车。" if config == "tw2s" else "看著窗外的车。")


@pytest.mark.parametrize("between", ["\n", ""])
def test_a_mixed_page_is_decided_by_passage(between: str) -> None:
    rng = random.Random(2)
    for _ in range(200):
        passages = rng.choices(SIMPLIFIED + TRADITIONAL, k=rng.randint(2, 12))
        wanted = [convert_many([one], "t2s")[0] if one in TRADITIONAL else one for one in passages]
        assert converted(between.join(passages)) == between.join(wanted)


def test_a_passage_that_proves_nothing_is_as_what_is_around_it() -> None:
    assert converted("後天。車站很遠。宫里有县。") == "后天。车站很远。宫里有县。"
    assert converted("國語\n徵音。县城") == "国语\n征音。县城".replace("征音", "徵音"), "its line is Simplified"
    assert converted("國語，語言。\n徵。\n县") == "国语，语言。\n征。\n县", "its text is Traditional by 4 to 1"
    assert simplify_many([["歷史與國語。", "徵"], ["历史与国语。", "徵"], ["徵"]], "t2s") == [
        ["历史与国语。", "征"],
        ["历史与国语。", "徵"],
        ["徵"],
    ]
    # a Simplified sentence with a Traditional character: that is converted, what is right in both scripts stays
    assert converted("徵音的“徵”不写“征”，这与國语不同。") == "徵音的“徵”不写“征”，这与国语不同。"


@pytest.mark.parametrize("config", CONFIGS)
def test_the_light_configuration_gives_the_bytes_of_the_whole_one(config: str) -> None:
    rng = random.Random(3)
    pool = [chr(code) for first, stop in ((0x4E00, 0xA000), (0x3400, 0x4DC0)) for code in range(first, stop)]
    phrases = ["".join(rng.choices(pool, k=8)) for _ in range(3000)] + TRADITIONAL
    plain = [text for text, kinds in zip(phrases, kinds_of(phrases, config)) if RARE not in kinds]
    assert len(plain) > 1000
    assert convert_many(plain, config, light=True) == convert_many(plain, config)
    # those with rare ideographs go through the whole one
    text = "這\uf900與\u7207香。"
    assert converted(text, config) == convert_many([text], config)[0] != convert_many([text], config, light=True)[0]


@pytest.mark.parametrize("config", ["t2s", "tw2s"])
def test_many_are_converted_as_each(config: str) -> None:
    texts = ["頭髮與發展", "看著窗外的車", "", "甲\n乙", "後天的車", "含\x1e分隔\0與空"]
    each = [converted(text, config) for text in texts]
    assert [text for (text,) in simplify_many([[text] for text in texts], config)] == each
    assert each[0] == "头发与发展" and each[4] == "后天的车" and each[5] == "含\x1e分隔\0与空"


def test_the_users_phrases_win(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("# mine\n電腦\t计算机\n電腦病毒\t电脑病毒\n\n乾淨\t乾净\n裡\t裡\n", encoding="utf-8")
    phrases = read_phrases(file)
    assert converted("電腦壞了，電腦病毒，乾淨。", phrases=phrases) == "计算机坏了，电脑病毒，乾净。"
    assert converted("我们在這裡，这个乾净。", phrases=phrases) == "我们在这裡，这个乾净。"
    assert converted("我们在這裡，这个乾净。") == "我们在这里，这个乾净。"
    simplified = "软件\t软体"
    file.write_text(simplified, encoding="utf-8")
    assert converted("这是软件。", phrases=read_phrases(file)) == "这是软件。", "nothing is converted there"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("電腦 计算机", "line 1: '電腦 计算机' is not a phrase, one tab"),
        ("# a\n電腦\t", "line 2: '電腦\\t' is not a phrase"),
        ("甲\t乙\n甲\t丙", "line 2: 甲 becomes 乙 in an earlier line"),
        (b"\xff\xfe", "is not UTF-8"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_phrase_file_is_told(tmp_path: Path, content: str | bytes | None, told: str) -> None:
    file = tmp_path / "phrases.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(told)):
        read_phrases(file)


def test_an_unknown_configuration_is_named() -> None:
    with pytest.raises(UserError, match="tw2x is not one of"):
        converter("tw2x")


def test_rows_are_converted_with_their_metadata_in_any_number_of_processes(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "text": text, "metadata": {"title": "徵", "year": n, "url": "http://a"}}
        for n, text in enumerate([*TRADITIONAL, *SIMPLIFIED] * 200)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    wanted = json.loads(json.dumps(rows))
    simplify_rows(wanted, "t2s")
    assert list(simplify(tmp_path / "rows.jsonl", "t2s", (), 2)) == wanted != rows
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == rows
    assert {row["metadata"]["title"] for row in wanted[:5]} == {"征"}
    assert wanted[5:15] == rows[5:15]
