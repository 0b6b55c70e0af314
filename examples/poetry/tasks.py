"""Generate instructions, preference pairs and questions from the poems, so that answers can be checked by code.

    python -m examples.poetry.tasks --corpus corpus/poems --output tasks --sft-examples 7000 --dpo-pairs 1200 \\
        --questions 1000 --rl-prompts 1200

Training data comes from the training split, validation data from the validation split, questions from the test split.

    sft_train.json, sft_valid.json   {"instruction", "input", "output"}: which line follows, complete the poem, write a
                                     verse, begin a verse, who wrote it
    dpo_train.json, dpo_valid.json   {"instruction", "input", "chosen", "rejected"}: chosen is the line that follows,
                                     rejected a line of the same length from another poem; in training also verse in
                                     the requested form against verse in another form
    kto_train.json, kto_valid.json   {"instruction", "input", "output", "label"}: the same answers as single rows;
                                     label is true for the chosen ones
    rl_train.json, rl_valid.json     {"instruction", "input", "output"}: complete the poem, write a verse; code can
                                     check form, length and rhyme of the answer (`examples.poetry.verse`)
    next_line.jsonl                  {"id", "context", "instruction", "choices", "answer"}: the poem so far, and four
                                     lines of equal length that end couplets; one is its last line
    verse_prompts.json               {"id", "messages", "form", "line_length"}: prompts of the score `form`
    gate_prompts.json                {"completions", "chats"}: prompts of `myllm serve-gate`
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_jsonl, write_json, write_jsonl
from artifacts.stage import report_metrics
from examples.poetry.verse import (
    FORMS,
    NUMERALS,
    complete_request,
    couplet_request,
    couplets,
    follow_request,
    verse_form,
    verse_lines,
    verse_request,
)
from preprocess.cleaning.clean import Document

CHOICES = 4
VALID_ROWS = 400
RL_VALID_ROWS = 128  # few, because each gets several answers
VERSE_PROMPTS = 100
FORM_PAIR_SHARE = 0.2  # share of `form_pairs` in the training pairs
GATE_PROMPTS = 10
AUTHORS = ("陆游", "白居易", "杨万里", "苏轼", "杜甫", "李白")


def beginning(lines: list[str], count: int) -> str:
    """The first `count` lines of a poem in the corpus's format: `五绝：line，line。line，`"""
    return f"{verse_form(lines)}：{couplets(lines[:count])}"


def follow_instruction(lines: list[str], count: int) -> str:
    """The request for the line after the first `count`. Training, pairs and questions use the same wording."""
    return follow_request(beginning(lines, count))


def what_follows(poem: Document, rng: random.Random) -> dict[str, str]:
    lines = verse_lines(poem["text"])
    asked = rng.randrange(1, len(lines), 2)
    return {"instruction": follow_instruction(lines, asked), "input": "", "output": lines[asked] + "。"}


def complete_poem(poem: Document, rng: random.Random) -> dict[str, str]:
    lines = verse_lines(poem["text"])
    return {"instruction": complete_request(beginning(lines, 2)), "input": "", "output": couplets(lines[2:])}


def write_verse(poem: Document, rng: random.Random) -> dict[str, str]:
    return {"instruction": verse_request(form_of(poem)), "input": "", "output": poem["text"]}


def begin_verse(poem: Document, rng: random.Random) -> dict[str, str]:
    """A row that asks for one couplet: in short answers, the requested form is a large part."""
    lines = verse_lines(poem["text"])
    return {"instruction": couplet_request(verse_form(lines)), "input": "", "output": beginning(lines, 2)}


def form_of(poem: Document) -> str:
    return verse_form(verse_lines(poem["text"]))


def poems_by_form(poems: list[Document]) -> dict[str, list[Document]]:
    """Poems by form, for the forms that requests name: 五绝, 五律, 七绝, 七律."""
    found: dict[str, list[Document]] = {}
    for poem in poems:
        if len(verse_lines(poem["text"])) in FORMS:
            found.setdefault(form_of(poem), []).append(poem)
    return dict(sorted(found.items()))


def who_wrote(poem: Document, rng: random.Random) -> dict[str, str] | None:
    author = poem["metadata"]["author"]
    if author not in AUTHORS:
        return None
    lines = verse_lines(poem["text"])
    return {"instruction": f"这首诗是谁写的？{beginning(lines, 4)}", "input": "", "output": f"{author}。"}


MAKERS: tuple[tuple[int, Callable[[Document, random.Random], dict[str, str] | None]], ...] = (
    (30, what_follows),
    (5, complete_poem),
    (30, write_verse),
    (30, begin_verse),
    (5, who_wrote),
)


def instructions(poems: list[Document], count: int, rng: random.Random) -> list[dict[str, str]]:
    """At most `count` different instructions, with kinds in the shares of MAKERS. Fewer if the poems run out.

    Every form of verse is requested equally often: 五绝 is rare in the corpus, and a model that sees it in one request
    of fourteen answers with another form.
    """
    makers = [maker for share, maker in MAKERS for _ in range(share)]
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    order = rng.sample(poems, len(poems))
    forms = list(poems_by_form(order).values())
    while len(rows) < count and order:
        maker = rng.choice(makers)
        poem = order.pop()
        if maker in (write_verse, begin_verse) and forms:
            poem = rng.choice(rng.choice(forms))
        row = maker(poem, rng) or what_follows(poem, rng)
        if row["instruction"] + row["output"] not in seen:
            seen.add(row["instruction"] + row["output"])
            rows.append(row)
    return rows


def checkable(poems: list[Document], count: int, rng: random.Random) -> list[dict[str, str]]:
    """`count` requests for verse of at least two couplets, every form equally often. Three of four give the beginning.

    Form, length and rhyme of the answer can be checked by code.
    """
    forms = list(poems_by_form(poems).values())
    rows: dict[str, dict[str, str]] = {}
    for place in range(20 * count if forms else 0):
        poem = rng.choice(forms[place % len(forms)])
        row = (complete_poem if rng.random() < 0.75 else write_verse)(poem, rng)
        rows.setdefault(row["instruction"] + row["output"], row)
        if len(rows) == count:
            break
    return list(rows.values())


def labelled(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Both answers of each pair as rows for KTO, without duplicates."""
    rows: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        for name, label in (("chosen", True), ("rejected", False)):
            row = {"instruction": pair["instruction"], "input": "", "output": pair[name], "label": label}
            rows.setdefault(pair["instruction"] + pair[name], row)
    return list(rows.values())


def closing_lines(poems: list[Document]) -> dict[int, list[str]]:
    """Lines that end a couplet, by length. Wrong answers are drawn from them."""
    lines: dict[int, list[str]] = {}
    for poem in poems:
        found = verse_lines(poem["text"])
        lines.setdefault(len(found[0]), []).extend(found[1::2])
    return lines


def wrong_lines(lines: list[str], pool: list[str], count: int, rng: random.Random) -> list[str]:
    """`count` different lines from `pool` that are not in this poem. Raises UserError if there are too few."""
    chosen: list[str] = []
    for _ in range(1000):
        line = rng.choice(pool)
        if line not in lines and line not in chosen:
            chosen.append(line)
        if len(chosen) == count:
            return chosen
    raise UserError("there are too few poems for wrong answers: extract more of them (raise --limit)")


def preference_pairs(poems: list[Document], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Pairs for DPO: the line that follows against a line of the same length from another poem.

    The lengths are equal because a sum of log-probabilities favours the shorter answer.
    """
    pool = closing_lines(poems)
    rows = []
    for poem in rng.sample(poems, min(count, len(poems))):
        lines = verse_lines(poem["text"])
        asked = rng.randrange(1, len(lines), 2)
        other = wrong_lines(lines, pool[len(lines[0])], 1, rng)[0]
        instruction = follow_instruction(lines, asked)
        rows.append({"instruction": instruction, "input": "", "chosen": lines[asked] + "。", "rejected": other + "。"})
    return rows


def form_pairs(poems: list[Document], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Pairs for DPO: verse in the requested form against verse in another form, with every form equally often.

    They preserve what SFT taught: a tiny model that learns from `preference_pairs` alone forgets the forms.
    """
    forms = poems_by_form(poems)
    rows = []
    for _ in range(count if len(forms) > 1 else 0):
        asked, other = rng.sample(list(forms), 2)
        chosen, rejected = rng.choice(forms[asked])["text"], rng.choice(forms[other])["text"]
        rows.append({"instruction": verse_request(asked), "input": "", "chosen": chosen, "rejected": rejected})
    return rows


def next_line_questions(poems: list[Document], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Questions for the last line of a poem, given the lines before. The choices have its length and end couplets."""
    pool = closing_lines(poems)
    rows = []
    for poem in rng.sample(poems, min(count, len(poems))):
        lines = verse_lines(poem["text"])
        wrong = wrong_lines(lines, pool[len(lines[0])], CHOICES - 1, rng)
        answer = rng.randrange(CHOICES)
        choices = [line + "。" for line in (*wrong[:answer], lines[-1], *wrong[answer:])]
        rows.append(
            {
                "id": poem["id"],
                "context": beginning(lines, len(lines) - 1),
                "instruction": follow_instruction(lines, len(lines) - 1),
                "choices": choices,
                "answer": answer,
            }
        )
    return rows


def verse_prompts(count: int) -> list[dict[str, Any]]:
    forms = [(length, numeral + form) for length, numeral in NUMERALS.items() for form in FORMS.values()]
    rows = []
    for index in range(count):
        length, form = forms[index % len(forms)]
        messages = [{"role": "user", "content": verse_request(form)}]
        rows.append({"id": f"verse-{index:03d}", "messages": messages, "form": form, "line_length": length})
    return rows


def gate_prompts(poems: list[Document], count: int, rng: random.Random) -> dict[str, list[Any]]:
    chosen = [verse_lines(poem["text"]) for poem in rng.sample(poems, min(2 * count, len(poems)))]
    chats = [[{"role": "user", "content": follow_instruction(lines, 3)}] for lines in chosen[count:]]
    return {"completions": [beginning(lines, 1) for lines in chosen[:count]], "chats": chats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train, valid and test .jsonl.zst")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--sft-examples", type=int, default=7000)
    parser.add_argument("--dpo-pairs", type=int, default=1500)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--rl-prompts", type=int, default=1200, help="rows of rl_train.json (default 1200)")
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    train, valid, test = (list(read_jsonl(arguments.corpus / f"{s}.jsonl.zst")) for s in ("train", "valid", "test"))

    def rng(purpose: str) -> random.Random:
        """A separate generator for each purpose, so that changing one count does not change the other files."""
        return random.Random(f"{arguments.seed} {purpose}")

    form_count = round(FORM_PAIR_SHARE * arguments.dpo_pairs)
    dpo_train = preference_pairs(train, arguments.dpo_pairs - form_count, rng("dpo train"))
    dpo_train += form_pairs(train, form_count, rng("form pairs"))
    dpo_valid = preference_pairs(valid, VALID_ROWS, rng("dpo valid"))
    held_out = instructions(valid, VALID_ROWS, rng("sft valid"))
    made = {
        "sft_train": instructions(train, arguments.sft_examples, rng("sft train")),
        "sft_valid": held_out,
        "dpo_train": dpo_train,
        "dpo_valid": dpo_valid,
        "kto_train": labelled(dpo_train),
        "kto_valid": labelled(dpo_valid),
        "rl_train": checkable(train, arguments.rl_prompts, rng("rl train")),
        "rl_valid": checkable(valid, RL_VALID_ROWS, rng("rl valid")),
        "verse_prompts": verse_prompts(VERSE_PROMPTS),
        "gate_prompts": gate_prompts(test, GATE_PROMPTS, rng("gate")),
    }
    for name, rows in made.items():
        write_json(arguments.output / f"{name}.json", rows)
    questions = next_line_questions(test, arguments.questions, rng("questions"))
    write_jsonl(arguments.output / "next_line.jsonl", questions)
    counts = {name: len(rows) for name, rows in made.items() if isinstance(rows, list)}
    report_metrics(**counts, questions=len(questions), chance=100 / CHOICES)


if __name__ == "__main__":
    run_main(main)
