"""Turn a row of each published format into turns and answers: one small function per format.

| shape | row | as in |
|---|---|---|
| alpaca | instruction, input, output; optional system and history | alpaca-zh, BELLE, COIG-CQIA |
| sharegpt | conversations: [{from, value}, …] or [{role, content}, …]; system | smoltalk-chinese, minimind |
| openai | messages: [{role, content}, …] | OpenAI, TRL |
| reasoning | input, reasoning_content, content | Chinese-DeepSeek-R1-Distill |
| ultrafeedback | instruction, completions: [{response, overall_score or annotations}, …] | UltraFeedback(-chinese) |
| dialogue pairs | chosen, rejected: lists of messages that differ in the last; prompt | minimind's dpo |
| prompt pairs | prompt, chosen, rejected: texts; optional system | TRL |
| question pairs | question, response_chosen, response_rejected; history, system | DPO-En-Zh-20k (shibing624) |

alpaca, sharegpt and openai rows may have `chosen` and `rejected` in place of the answer, or a `label`. A content is a
text or a list of text parts. Tool calls and thoughts become part of the text: see `launch.instructions.tools`.
To add a format, write a function and put it into SHAPES. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch.instructions.fault import Fault
from launch.instructions.tools import call_text, response_text, thought_text, tools_text

Row = dict[str, Any]
Turn = tuple[str, str]  # (role, text)

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system",
         "observation": "user", "tool": "user", "function_call": "assistant"}  # fmt: skip
TOOL_ROLES = ("observation", "tool")
MEDIA = {"image": "pictures", "images": "pictures", "video": "videos", "videos": "videos",
         "audio": "sound", "audios": "sound"}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A published format: `read(row, pairs)` gives the turns and, for pairs, the chosen and the rejected answer.

    Without pairs the last turn is the answer. `kind` is what such rows are always for; None if the columns decide.
    """

    read: Callable[[Row, bool], tuple[list[Turn], tuple[str, ...]]]
    known: Callable[[Row], bool]
    kind: str | None = None


def refuse_media(row: Row) -> None:
    """Raise Fault if a row comes with pictures, videos or sound."""
    for name, what in MEDIA.items():
        if row.get(name):
            raise Fault(f"has {what} (`{name}`); only text can be trained on")


def joined_parts(parts: list[Any], name: str) -> str:
    """The text of a content that is a list of parts: `{"type": "text", "text": …}`, or `value` in place of `text`."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part if isinstance(part, str) else None
        if isinstance(part, dict) and kind in ("text", "reasoning"):
            text = part.get("text", part.get("value"))
            text = thought_text(text) if kind == "reasoning" and isinstance(text, str) else text
        if not isinstance(text, str):
            what = next((what for word, what in MEDIA.items() if word in str(kind)), None)
            if what:
                raise Fault(f"`{name}` has {what} (a part of type {kind}); only text can be trained on")
            raise Fault(f"`{name}` has a part that is not text" + (f": type {kind}" if kind else ""))
        texts.append(text)
    return "".join(texts)


def text_of(row: Row, name: str, may_be_empty: bool = False) -> str:
    """The text of a field. Raises Fault if it is missing, not text, or empty."""
    if name not in row:
        raise Fault(f"`{name}` is missing")
    text = joined_parts(row[name], name) if isinstance(row[name], list) else row[name]
    if not isinstance(text, str):
        raise Fault(f"`{name}` is not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"`{name}` has half a character ({text[error.start]!r}) at place {error.start}") from None
    if not may_be_empty and not text.strip():
        raise Fault(f"`{name}` is empty")
    return text


def message(turn: Any, where: str) -> Turn:
    """(role, text) of one message, with its thoughts before the text and its tool calls after it."""
    if not isinstance(turn, dict):
        raise Fault(f"{where} is not an object")
    role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
    role = text_of(turn, role_key)
    if role not in ROLES:
        raise Fault(f"{where} is from {role!r}; known roles are {', '.join(sorted(ROLES))}")
    refuse_media(turn)
    if role == "function_call":
        return "assistant", call_text(text_of(turn, text_key), where)
    if role in TOOL_ROLES:
        return "user", response_text(text_of(turn, text_key))
    if ROLES[role] != "assistant":
        return ROLES[role], text_of(turn, text_key, may_be_empty=bool(turn.get("tools")))
    if turn.get("loss_weight") not in (None, 1):
        raise Fault(
            f"{where} has loss_weight {turn['loss_weight']}, but every answer is trained on: end the row before it"
        )
    calls = call_text(turn["tool_calls"], where) if turn.get("tool_calls") else ""
    thought = thought_text(text_of(turn, "reasoning_content")) if turn.get("reasoning_content") else ""
    said = "" if calls and not turn.get(text_key) else text_of(turn, text_key, may_be_empty=bool(calls))
    return "assistant", thought + "\n".join(part for part in (said, calls) if part)


def dialogue(turns: Any, name: str, row: Row) -> list[Turn]:
    """The turns of a list of messages, under the row's system text and tools; answers of several tools are one turn."""
    if not isinstance(turns, list) or not turns:
        raise Fault(f"`{name}` is not a list of turns, or is empty")
    said: list[Turn] = []
    tools = row.get("tools")
    after_tool = False
    for number, turn in enumerate(turns, start=1):
        role, text = message(turn, f"turn {number}")
        is_tool = turn.get("from", turn.get("role")) in TOOL_ROLES
        if is_tool and after_tool:
            said[-1] = (role, f"{said[-1][1]}\n{text}")
        else:
            said.append((role, text))
        after_tool = is_tool
        tools = tools or turn.get("tools")
    if row.get("system"):
        said.insert(0, ("system", text_of(row, "system")))
    if tools:
        system = said.pop(0)[1] if said[0][0] == "system" else ""
        said.insert(0, ("system", "\n\n".join(part for part in (system, tools_text(tools)) if part)))
    return said


def answer(row: Row, name: str) -> str:
    """`chosen` or `rejected`: a text, or a message of the assistant."""
    if isinstance(row.get(name), dict):
        role, text = message(row[name], f"`{name}`")
        if role != "assistant":
            raise Fault(f"`{name}` is from the {role}, not from the assistant")
        return text
    return text_of(row, name)


def history(row: Row) -> list[Turn]:
    """The system text and the earlier questions and answers of a row."""
    turns: list[Turn] = [("system", text_of(row, "system"))] if row.get("system") else []
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p.strip() for p in pair)):
            raise Fault("`history` is not a list of [question, answer] pairs")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    return turns


def alpaca(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    turns = history(row)
    question = text_of(row, "instruction")
    more = text_of(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    turns.append(("user", f"{question}\n{more}" if more else question))
    if pairs:
        return turns, (answer(row, "chosen"), answer(row, "rejected"))
    return [*turns, ("assistant", text_of(row, "output"))], ()


def sharegpt(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    turns = dialogue(row.get("conversations"), "conversations", row)
    return turns, (answer(row, "chosen"), answer(row, "rejected")) if pairs else ()


def openai(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    turns = dialogue(row.get("messages"), "messages", row)
    return turns, (answer(row, "chosen"), answer(row, "rejected")) if pairs else ()


def reasoning(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    said = message({**row, "role": "assistant"}, "the answer")
    return [("user", text_of(row, "input")), said], ()


def score_of(completion: Row, where: str) -> float:
    """UltraFeedback's `overall_score`, else the mean of the ratings in its `annotations`."""
    found = completion.get("overall_score")
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        return float(found)
    ratings = []
    for judged in (completion.get("annotations") or {}).values():
        try:
            ratings.append(float(judged["Rating"]))
        except (TypeError, ValueError, KeyError):
            continue  # not rated: None, "N/A"
    if not ratings:
        raise Fault(f"{where} has neither `overall_score` nor ratings")
    return sum(ratings) / len(ratings)


def ultrafeedback(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    """The best and the worst of several scored answers; of equal scores, the first."""
    answers = row.get("completions")
    if not isinstance(answers, list) or not all(isinstance(given, dict) for given in answers):
        raise Fault("`completions` is not a list of objects")
    scores = [score_of(given, f"answer {number} of `completions`") for number, given in enumerate(answers, start=1)]
    if len(set(scores)) < 2:
        raise Fault(f"`completions` has {len(scores)} answers and none is better than another")
    best, worst = (answers[scores.index(most(scores))] for most in (max, min))
    return [("user", text_of(row, "instruction"))], (text_of(best, "response"), text_of(worst, "response"))


def dialogue_pairs(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    for name in ("chosen", "rejected"):
        if not isinstance(row.get(name), list) or not row[name]:
            raise Fault(f"`{name}` is not a list of messages, or is empty")
    if row["chosen"][:-1] != row["rejected"][:-1]:
        raise Fault("`chosen` and `rejected` differ before their last message")
    before = row["chosen"][:-1] or row.get("prompt") or row.get("conversations") or row.get("messages")
    before = [{"role": "user", "content": before}] if isinstance(before, str) else before
    last = {name: row[name][-1] for name in ("chosen", "rejected")}
    return dialogue(before, "prompt", row), (answer(last, "chosen"), answer(last, "rejected"))


def prompt_pairs(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    turns = [*history(row), ("user", text_of(row, "prompt"))]
    return turns, (answer(row, "chosen"), answer(row, "rejected"))


def question_pairs(row: Row, pairs: bool) -> tuple[list[Turn], tuple[str, ...]]:
    turns = [*history(row), ("user", text_of(row, "question"))]
    return turns, (text_of(row, "response_chosen"), text_of(row, "response_rejected"))


def having(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def has_dialogues(row: Row) -> bool:
    return isinstance(row.get("chosen"), list) or isinstance(row.get("rejected"), list)


# the first shape that a row has is taken
SHAPES = {
    "ultrafeedback": Shape(ultrafeedback, having("instruction", "completions"), "pairs"),
    "dialogue pairs": Shape(dialogue_pairs, has_dialogues, "pairs"),
    "question pairs": Shape(question_pairs, having("question", "response_chosen"), "pairs"),
    "prompt pairs": Shape(prompt_pairs, having("prompt", "chosen"), "pairs"),
    "reasoning": Shape(reasoning, having("input", "reasoning_content", "content"), "sft"),
    "openai": Shape(openai, having("messages")),
    "sharegpt": Shape(sharegpt, having("conversations")),
    "alpaca": Shape(alpaca, having("instruction")),
}
