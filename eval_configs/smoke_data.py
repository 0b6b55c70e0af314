"""Generate tiny, trivially simple sets in the formats of the real ones, to check that the evaluation runs.

    .venv/bin/python -m eval_configs.smoke_data --output /tmp/smoke            # the five subjects of `smoke_cpu`
    .venv-eval/bin/python -m eval_configs.smoke_data --output /tmp/smoke --whole   # every set of the suites, in small

Set $COMPASS_DATA_CACHE to the folder. A score on these sets says nothing about a model: `myllm eval` marks it as smoke
if the file SMOKE is beside the sets. The output is deterministic.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main

MARK = "SMOKE"
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
DEV, VAL = 5, 12  # rows per subject: examples for the prompt, and questions
WHOLE_VAL = 2  # questions per subject with --whole

Question = tuple[str, str, list[str]]  # text, right answer, all answers of the subject


def language() -> list[Question]:
    words = [word[1] for word in OPPOSITES]
    return [(f"“{word[0]}”的反义词是哪个字？", word[1], words) for word in OPPOSITES]


def geography() -> list[Question]:
    return [(f"{city}是哪个国家的首都？", country, list(PLACES.values())) for city, country in PLACES.items()]


def mathematics() -> list[Question]:
    pairs = [(a, b) for a in range(2, 8) for b in range(a, a + 3)]
    return [(f"{a}加{b}等于多少？", str(a + b), [str(n) for n in range(3, 20)]) for a, b in pairs]


def longer(kind: Callable[[], list[Question]]) -> Callable[[], list[Question]]:
    """The same questions in a longer sentence, which decontamination can look for."""
    return lambda: [(f"请阅读下面的题目并选出正确的答案：{text}", *rest) for text, *rest in kind()]  # type: ignore[misc]


# As in eval_configs/smoke_cpu.py.
CEVAL: dict[str, Callable[[], list[Question]]] = {
    "chinese_language_and_literature": language,
    "middle_school_geography": geography,
    "high_school_mathematics": mathematics,
}
CMMLU: dict[str, Callable[[], list[Question]]] = {
    "chinese_literature": language,
    "elementary_mathematics": mathematics,
}
IDIOMS = {
    "守株待兔": "不去劳动，只等好运来，就是{}。",
    "画蛇添足": "文章已经写完了，再加一段就是{}。",
    "亡羊补牢": "出了错就马上改，{}还不算晚。",
    "井底之蛙": "只看见一小块天就说天小，真是{}。",
    "掩耳盗铃": "捂住自己的耳朵去偷东西，叫作{}。",
    "刻舟求剑": "船已经走远，还在原处找，等于{}。",
    "对牛弹琴": "他听不懂音乐，给他讲乐理是{}。",
}
ANSWERS = "ABCD"


def write_table(file: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([number, *row] for number, row in enumerate(rows))


def exam_rows(questions: list[Question], count: int, seed: str) -> list[list[str]]:
    """`count` rows: question, four choices, the letter of the correct choice."""
    chance = random.Random(seed)
    rows = []
    for text, right, answers in chance.sample(questions, count):
        choices = [right, *chance.sample(sorted({*answers} - {right}), 3)]
        chance.shuffle(choices)
        rows.append([text, *choices, ANSWERS[choices.index(right)]])
    return rows


def write_ceval(root: Path, subjects: dict[str, Callable[[], list[Question]]], val: int = VAL) -> int:
    """Write `data/ceval/formal_ceval/{dev,val,test}/<subject>_<split>.csv`. Returns the number of scored questions."""
    for subject, questions in subjects.items():
        rows = [[*row, ""] for row in exam_rows(questions(), DEV + val + 1, f"0 {subject}")]
        splits = {"dev": rows[:DEV], "val": rows[DEV : DEV + val], "test": rows[DEV + val :]}
        for split, part in splits.items():
            file = root / "data" / "ceval" / "formal_ceval" / split / f"{subject}_{split}.csv"
            write_table(file, ["id", "question", "A", "B", "C", "D", "answer", "explanation"], part)
    return val * len(subjects)


def write_cmmlu(root: Path, subjects: dict[str, Callable[[], list[Question]]], val: int = VAL) -> int:
    """Write `data/cmmlu/{dev,test}/<subject>.csv`, seven columns. Returns the number of scored questions."""
    for subject, questions in subjects.items():
        rows = exam_rows(questions(), DEV + val, f"1 {subject}")
        for split, part in {"dev": rows[:DEV], "test": rows[DEV:]}.items():
            write_table(
                root / "data" / "cmmlu" / split / f"{subject}.csv", ["", "Question", "A", "B", "C", "D", "Answer"], part
            )
    return val * len(subjects)


def write_c3(root: Path) -> int:
    """Write `data/CLUE/C3/dev_0.json`: dialogues with two to four choices, as in C3."""
    chance = random.Random("c3")
    rows: list[Any] = []
    for number, (city, country) in enumerate(PLACES.items()):
        others = chance.sample(sorted({*PLACES} - {city}), 1 + number % 3)
        choices = [city, *others]
        chance.shuffle(choices)
        talk = [f"女：你去过{country}吗？", f"男：去过，我在{city}住了一年。"]
        rows.append([talk, [{"question": "男的在哪里住过？", "choice": choices, "answer": city}], str(number)])
    file = root / "data" / "CLUE" / "C3" / "dev_0.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return len(rows)


def write_chid(root: Path) -> int:
    """Write `data/FewCLUE/chid/{dev_few_all,test_public}.json`: JSON lines, seven idioms each."""
    chance = random.Random("chid")
    lines = []
    for number, (idiom, sentence) in enumerate(IDIOMS.items()):
        candidates = sorted(IDIOMS)
        chance.shuffle(candidates)
        row = {"id": number, "content": sentence.format("#idiom#"), "candidates": candidates}
        lines.append(json.dumps({**row, "answer": candidates.index(idiom)}, ensure_ascii=False) + "\n")
    for name in ("dev_few_all", "test_public"):
        file = root / "data" / "FewCLUE" / "chid" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def write_xstory_cloze(root: Path) -> int:
    """Write `data/xstory_cloze/zh_{train,eval}.jsonl`: four sentences, two endings."""
    chance = random.Random("story")
    lines = []
    for number, (city, country) in enumerate(PLACES.items()):
        right, wrong = f"他很高兴自己来到了{city}。", "鱼在树上唱歌。"
        answer = chance.choice([1, 2])
        story = [f"小明想去{country}。", "他买了一张机票。", "飞机飞了很久。", f"最后他到了{city}。"]
        endings = [right, wrong] if answer == 1 else [wrong, right]
        row: dict[str, Any] = {"story_id": str(number)}
        row |= {f"input_sentence_{place}": text for place, text in enumerate(story, start=1)}
        row |= {"sentence_quiz1": endings[0], "sentence_quiz2": endings[1], "answer_right_ending": answer}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    for name, part in {"train": lines[:6], "eval": lines[6:]}.items():
        file = root / "data" / "xstory_cloze" / f"zh_{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(part), encoding="utf-8")
    return len(lines)


def mark(root: Path) -> None:
    """Write the file SMOKE beside the sets. Raises UserError if the folder has real sets."""
    if (root / "data").exists() and not (root / MARK).exists():
        raise UserError(f"{root / 'data'} has sets that are not smoke: give another folder with --output")
    root.mkdir(parents=True, exist_ok=True)
    (root / MARK).write_text("Made by eval_configs.smoke_data. Scores on these sets say nothing about a model.\n")


def write_smoke(root: Path) -> int:
    """Write the five subjects of `smoke_cpu`. Returns the number of scored questions."""
    mark(root)
    return write_ceval(root, CEVAL) + write_cmmlu(root, CMMLU)


def write_whole(root: Path) -> int:
    """Write every set of the suites, with all subjects of the exams. Needs mmengine and OpenCompass's configs."""
    from mmengine.config import Config

    mark(root)
    total = write_c3(root) + write_chid(root) + write_xstory_cloze(root)
    kinds = [longer(language), longer(geography), longer(mathematics)]
    for name, write in (("ceval", write_ceval), ("cmmlu", write_cmmlu)):
        import importlib.util

        spec = importlib.util.find_spec("opencompass")
        assert spec is not None and spec.origin is not None
        stock = Path(spec.origin).parent / "configs" / "datasets" / name / f"{name}_ppl.py"
        config = Config.fromfile(stock, format_python_code=False)
        subjects = [dataset["name"] for dataset in config[f"{name}_datasets"]]
        total += write(root, {s: kinds[number % 3] for number, s in enumerate(subjects)}, WHOLE_VAL)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; set $COMPASS_DATA_CACHE to it")
    parser.add_argument(
        "--whole", action="store_true", help="write every set of the suites (needs .venv-eval/bin/python)"
    )
    arguments = parser.parse_args()
    count = write_whole(arguments.output) if arguments.whole else write_smoke(arguments.output)
    print(f"{arguments.output}: {count:,} questions, smoke")


if __name__ == "__main__":
    run_main(main)
