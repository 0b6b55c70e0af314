"""Made-up rows of instruction and preference data in the published layouts, with faults that the real sets have.

To add a set, write a function and put it into ROWS under the set's name in `sources.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from preprocess.sources.made_up_text import dialogue

Row = dict[str, Any]


def alpaca(numbers: range) -> Iterator[Row]:
    """alpaca_gpt4_data_zh: some outputs are empty, one row is repeated."""
    for number in numbers:
        question, answer, _ = dialogue(number if number % 90 != 89 else number - 1)
        yield {"instruction": question, "input": "", "output": "" if number % 70 == 69 else answer}


def belle(numbers: range) -> Iterator[Row]:
    """Belle_open_source_1M: questions may begin or end with white space."""
    for number in numbers:
        question, answer, _ = dialogue(10_000 + number)
        yield {"instruction": question + (" \n" if number % 9 == 4 else ""), "input": "", "output": answer}


def dpo(numbers: range) -> Iterator[Row]:
    """DPO-En-Zh-20k: conversations with two answers, some after a system prompt."""
    for number in numbers:
        question, better, worse = dialogue(20_000 + number)
        turns = [{"from": "human", "value": question}]
        if number % 20 == 3:
            turns.insert(0, {"from": "system", "value": "你是一个有帮助的助手。"})
        yield {
            "conversations": turns,
            "chosen": {"from": "gpt", "value": better},
            "rejected": {"from": "gpt", "value": worse},
        }


def smoltalk(numbers: range) -> Iterator[Row]:
    """smoltalk-chinese: dialogues with the ratings of their instruction."""
    for number in numbers:
        question, answer, _ = dialogue(30_000 + number)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        if number % 3 == 0:
            more = dialogue(40_000 + number)
            turns += [{"from": "human", "value": more[0]}, {"from": "gpt", "value": more[1]}]
        yield {"id": f"{number}", "conversations": turns, "difficulty": "easy", "instruction_quality": 4}


def coig_cqia(numbers: range) -> Iterator[Row]:
    for number in numbers:
        question, answer, _ = dialogue(50_000 + number)
        yield {
            "instruction": question, "input": "", "output": answer, "domain": ["通用"],
            "task_type": {"major": ["问答"], "minor": ["百科问答"]}, "metadata": None, "answer_from": "human",
            "human_verified": True, "copyright": "暂无版权及作者信息",
        }  # fmt: skip


def infinity_instruct(numbers: range) -> Iterator[Row]:
    """Infinity-Instruct: `label` is an object, not KTO's; most rows are English."""
    for number in numbers:
        question, answer, _ = dialogue(60_000 + number)
        chinese = number % 3 == 0
        said = (question, answer) if chinese else (f"What is {number} plus 1?", f"It is {number + 1}.")
        yield {
            "id": number, "conversations": [{"from": "human", "value": said[0]}, {"from": "gpt", "value": said[1]}],
            "label": {"ability_zh": ["知识"], "ability_en": ["knowledge"]}, "langdetect": "zh-cn" if chinese else "en",
            "source": "made-up",
        }  # fmt: skip


def minimind(numbers: range) -> Iterator[Row]:
    """minimind's sft_t2t: some dialogues have thoughts, some tools; one tool call's arguments are no JSON."""
    for number in numbers:
        question, answer, _ = dialogue(70_000 + number)
        turns: list[Row] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if number % 10 == 4:
            turns[1]["reasoning_content"] = "先想一想。"
        if number % 10 == 7:
            tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
            arguments = '{"a": ' if number == 57 else json.dumps({"a": number, "b": 1})
            calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}]
            turns = [
                {"role": "system", "content": "", "tools": json.dumps([tool])}, turns[0],
                {"role": "assistant", "content": "", "tool_calls": json.dumps(calls)},
                {"role": "tool", "content": f"{number + 1}"}, turns[1],
            ]  # fmt: skip
        yield {"conversations": turns}


def minimind_dpo(numbers: range) -> Iterator[Row]:
    """minimind's dpo: two lists of messages that differ in the last."""
    for number in numbers:
        question, better, worse = dialogue(80_000 + number)
        asked = {"role": "user", "content": question}
        both = ([asked, {"role": "assistant", "content": text}] for text in (better, worse))
        yield dict(zip(("chosen", "rejected"), both, strict=True))


def r1_distill(numbers: range) -> Iterator[Row]:
    for number in numbers:
        question, answer, _ = dialogue(90_000 + number)
        yield {
            "input": question, "reasoning_content": f"题目是“{question}”，先回忆相关的事实。", "content": answer,
            "repo_name": "made-up", "score": 9,
        }  # fmt: skip


def ultrafeedback(numbers: range) -> Iterator[Row]:
    """UltraFeedback-chinese: scored answers; the answers of a row may be equally good."""
    for number in numbers:
        question, better, worse = dialogue(100_000 + number)
        scores = (3.0, 3.0) if number % 40 == 9 else (4.6, 1.4)
        answers = zip((better, worse), scores, strict=True)
        yield {
            "source": "made-up", "instruction": question,
            "completions": [
                {"model": f"m{place}", "response": text, "overall_score": score,
                 "annotations": {"helpfulness": {"Rating": f"{score:.0f}", "Rationale": "略"}}}
                for place, (text, score) in enumerate(answers)
            ],
        }  # fmt: skip


ROWS: dict[str, Callable[[range], Iterator[Row]]] = {
    "alpaca-zh": alpaca, "belle-1m": belle, "dpo-zh": dpo, "smoltalk-chinese": smoltalk, "coig-cqia": coig_cqia,
    "infinity-instruct": infinity_instruct, "minimind-sft": minimind, "minimind-dpo": minimind_dpo,
    "r1-distill-zh": r1_distill, "ultrafeedback-chinese": ultrafeedback,
}  # fmt: skip
LISTS = ("alpaca-zh", "dpo-zh")  # published as a JSON list; BELLE's `.json` has JSON lines
