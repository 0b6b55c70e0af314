"""Made-up poems as documents of a corpus."""

import random

CHARACTERS = "春风明月夜江山白云天人间花鸟雨雪山水长空秋色远寒松竹酒愁归客楼台草木清高深照流"


def poem(seed: int, length: int = 5, lines: int = 4) -> list[str]:
    rng = random.Random(seed)
    made = ["".join(rng.choices(CHARACTERS, k=length)) for _ in range(lines)]
    return [f"{made[i]}，{made[i + 1]}。" for i in range(0, lines, 2)]


def documents(count: int) -> list[dict]:
    return [
        {
            "id": f"poem-{i}",
            "text": "".join(poem(i, 5 + 2 * (i % 2), 4 + 4 * (i % 3 == 0))),
            "metadata": {"title": "詩", "author": "陆游", "dynasty": "song", "line_length": 5 + 2 * (i % 2)},
        }
        for i in range(count)
    ]
