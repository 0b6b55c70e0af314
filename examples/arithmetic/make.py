"""Generate the corpus and the tasks of arithmetic-tiny: sums of two numbers, in Chinese.

    python -m examples.arithmetic.make --output runs/arithmetic-tiny

A sum and its mirror image (3 + 5, 5 + 3) are always in the same split (train, valid or test), so the test sums never
occur in training. Files in the output folder:

    corpus/{train,valid,test}.jsonl.zst   {"id", "text"}: eight sums per document
    tasks/sft_{train,valid}.json          {"instruction", "input", "output"}: a question and its answer
    tasks/rl_{train,valid}.json           the same; the reward `exact_answer` compares an answer with `output`
    tasks/sums.jsonl                      {"id", "context", "instruction", "choices", "answer"}: test sums with four
                                          choices of equal length
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from artifacts.errors import UserError, run_main
from artifacts.files import write_json, write_jsonl
from artifacts.stage import report_metrics

Pair = tuple[int, int]
LARGEST = 50  # largest number in a sum
SUMS_PER_DOCUMENT = 8
VALID, TEST = 0.05, 0.1  # shares of the sums
SAYINGS = (
    "{a}加{b}等于{c}。",
    "小明有{a}个苹果，又买了{b}个，一共有{c}个。",
    "车上有{a}人，上来{b}人，现在有{c}人。",
    "左边有{a}只鸟，右边有{b}只鸟，合起来是{c}只。",
    "书店上午卖出{a}本书，下午卖出{b}本书，全天卖出{c}本书。",
    "问：{a}加{b}是多少？答：是{c}。",
)


def split_sums(largest: int, seed: int) -> dict[str, list[Pair]]:
    """All pairs from 0 to `largest`, by split, in random order. (a, b) and (b, a) are in the same split."""
    pairs = [(a, b) for a in range(largest + 1) for b in range(a, largest + 1)]
    random.Random(f"{seed} split").shuffle(pairs)
    valid, test = round(VALID * len(pairs)), round(TEST * len(pairs))
    parts = {"valid": pairs[:valid], "test": pairs[valid : valid + test], "train": pairs[valid + test :]}
    both = {part: list(dict.fromkeys(p for a, b in found for p in ((a, b), (b, a)))) for part, found in parts.items()}
    for part, found in both.items():
        random.Random(f"{seed} {part}").shuffle(found)
    return both


def documents(pairs: list[Pair], count: int, rng: random.Random) -> list[dict[str, str]]:
    """`count` documents of `SUMS_PER_DOCUMENT` sums, each worded by one of the templates in SAYINGS."""
    made = []
    for number in range(count):
        sums = [
            rng.choice(SAYINGS).format(a=a, b=b, c=a + b)
            for a, b in (rng.choice(pairs) for _ in range(SUMS_PER_DOCUMENT))
        ]
        made.append({"id": f"sums-{number}", "text": "".join(sums)})
    return made


def question(a: int, b: int) -> str:
    return f"{a}加{b}等于多少？"


def instructions(pairs: list[Pair]) -> list[dict[str, str]]:
    return [{"instruction": question(a, b), "input": "", "output": f"{a + b}。"} for a, b in pairs]


def choices(pairs: list[Pair], rng: random.Random) -> list[dict[str, object]]:
    """Multiple-choice questions: the result and three wrong numbers within 11 of it, with the same number of digits."""
    rows: list[dict[str, object]] = []
    for a, b in pairs:
        near = [n for n in range(max(0, a + b - 11), a + b + 12) if n != a + b and len(str(n)) == len(str(a + b))]
        four = [a + b, *rng.sample(near, 3)]
        rng.shuffle(four)
        rows.append(
            {
                "id": f"{a}+{b}",
                "context": f"{a}加{b}等于",
                "instruction": question(a, b),
                "choices": [f"{n}。" for n in four],
                "answer": four.index(a + b),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the run; corpus/ and tasks/ are written to it"
    )
    parser.add_argument(
        "--documents", type=int, default=12000, help="documents in corpus/train.jsonl.zst (default 12000)"
    )
    parser.add_argument("--largest", type=int, default=LARGEST, help="largest number in a sum (default 50)")
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    if arguments.largest < 12 or arguments.documents < 100:
        raise UserError("--largest must be at least 12 and --documents at least 100, to fill every split")
    parts = split_sums(arguments.largest, arguments.seed)
    rng = random.Random(f"{arguments.seed} documents")
    for part, share in (("train", 1.0), ("valid", 0.05), ("test", 0.05)):
        rows = documents(parts[part], round(share * arguments.documents), rng)
        write_jsonl(arguments.output / "corpus" / f"{part}.jsonl.zst", rows)
    for name in ("sft", "rl"):
        for part in ("train", "valid"):
            write_json(arguments.output / "tasks" / f"{name}_{part}.json", instructions(parts[part]))
    write_jsonl(arguments.output / "tasks" / "sums.jsonl", choices(parts["test"], random.Random(arguments.seed)))
    report_metrics(**{f"{part}_sums": len(found) for part, found in parts.items()}, documents=arguments.documents)


if __name__ == "__main__":
    run_main(main)
