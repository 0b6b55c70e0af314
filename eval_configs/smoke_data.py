"""A tiny set in C-Eval's layout, for the smoke test of its stock config: original, trivially simple, by code.

Nothing is learnt from its score: a model of a few million parameters is expected at chance, 25 %.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

OPPOSITES = "大小 多少 上下 左右 前后 高低 长短 远近 快慢 冷热 新旧 轻重 早晚 开关 黑白 男女 胜负 古今".split()
PLACES = {
    "北京": "中国",
    "东京": "日本",
    "巴黎": "法国",
    "伦敦": "英国",
    "罗马": "意大利",
    "开罗": "埃及",
    "莫斯科": "俄罗斯",
    "首尔": "韩国",
    "柏林": "德国",
    "马德里": "西班牙",
    "雅典": "希腊",
    "曼谷": "泰国",
    "河内": "越南",
    "新德里": "印度",
    "渥太华": "加拿大",
    "堪培拉": "澳大利亚",
    "利马": "秘鲁",
    "奥斯陆": "挪威",
}
DEV, VAL = 5, 12  # rows of a subject: examples for the prompt, and questions

Question = tuple[str, str, list[str]]  # text, right answer, all answers of the subject


def language() -> list[Question]:
    words = [word[1] for word in OPPOSITES]
    return [(f"“{word[0]}”的反义词是哪个字？", word[1], words) for word in OPPOSITES]


def geography() -> list[Question]:
    return [(f"{city}是哪个国家的首都？", country, list(PLACES.values())) for city, country in PLACES.items()]


def mathematics() -> list[Question]:
    pairs = [(a, b) for a in range(2, 8) for b in range(a, a + 3)]
    return [(f"{a}加{b}等于多少？", str(a + b), [str(n) for n in range(3, 20)]) for a, b in pairs]


SUBJECTS = {
    "chinese_language_and_literature": language,
    "middle_school_geography": geography,
    "high_school_mathematics": mathematics,
}


def write_ceval_smoke(cache: Path, seed: int = 0) -> int:
    """Write `data/ceval/formal_ceval/{dev,val,test}/<subject>_<split>.csv` under `cache`.

    Returns the number of questions that count, those of the `val` splits. The same seed gives the same bytes.
    """
    for subject, questions in SUBJECTS.items():
        chance = random.Random(f"{seed} {subject}")
        rows = []
        for text, right, answers in chance.sample(questions(), DEV + VAL + 1):
            choices = [right, *chance.sample(sorted({*answers} - {right}), 3)]
            chance.shuffle(choices)
            rows.append([text, *choices, "ABCD"[choices.index(right)], ""])
        splits = {"dev": rows[:DEV], "val": rows[DEV : DEV + VAL], "test": rows[DEV + VAL :]}
        for split, part in splits.items():
            file = cache / "data" / "ceval" / "formal_ceval" / split / f"{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["id", "question", "A", "B", "C", "D", "answer", "explanation"])
                writer.writerows([number, *row] for number, row in enumerate(part))
    return VAL * len(SUBJECTS)
