"""Tool calls and thoughts as text, as Qwen 2.5 and 3 write them, so that any trainer and template can use them.

    <tool_call>                              an answer that calls a tool: one such block for each call
    {"name": "weather", "arguments": {"city": "北京"}}
    </tool_call>

    <tool_response>                          the user's turn after it: what the tool returned
    晴，12 度
    </tool_response>

    <think>                                  before an answer: `reasoning_content`
    先看天气。
    </think>

The tools that a row offers are described at the end of its system text (`tools_text`). A client that wants the trained
model to call tools sends the same system text. vLLM's tool parser `hermes` finds the calls in the answers.
"""

from __future__ import annotations

import json
from typing import Any

from launch.instructions.fault import Fault

OFFER = """可以使用的工具，每行一个：
<tools>
{tools}
</tools>
需要时这样调用：
<tool_call>
{{"name": 工具名, "arguments": {{参数}}}}
</tool_call>"""


def parsed(given: Any, what: str) -> Any:
    """A value that may be given as JSON text. Raises Fault if the text is not JSON."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise Fault(f"{what}: not JSON ({error.msg} at character {error.pos})") from None


def call_text(given: Any, where: str) -> str:
    """The blocks of one or several calls: `{"name", "arguments"}`, alone or under `function`, as JSON text or not.

    Raises:
        Fault: a call has no name, or its arguments are not a JSON object.
    """
    calls = parsed(given, f"the tool call of {where}")
    blocks = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
            raise Fault(f"the tool call of {where} has no name")
        arguments = parsed(call.get("arguments", {}), f"the arguments of {call['name']} in {where}")
        if not isinstance(arguments, dict):
            raise Fault(f"the arguments of {call['name']} in {where} are not a JSON object")
        said = json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False)
        blocks.append(f"<tool_call>\n{said}\n</tool_call>")
    return "\n".join(blocks)


def response_text(text: str) -> str:
    return f"<tool_response>\n{text}\n</tool_response>"


def thought_text(text: str) -> str:
    return f"<think>\n{text.strip()}\n</think>\n\n"


def tools_text(given: Any) -> str:
    """The description of the tools, a list of JSON schemas or its JSON text, for the end of a system text."""
    tools = parsed(given, "`tools`")
    tools = tools if isinstance(tools, list) else [tools]
    if not tools or not all(isinstance(tool, dict) for tool in tools):
        raise Fault("`tools` is not a list of objects")
    return OFFER.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
