"""AutoGen with the served model: a poet and an editor take turns.

    myllm serve runs/poetry-tiny/models/dpo &                        # another terminal
    .venv-clients/bin/python examples/autogen_team.py --server http://127.0.0.1:8000 写一首诗。

The key comes from $MYLLM_API_KEY or the key file of `myllm serve`. Each agent sees the last two messages, because the
context of a tiny model is short. Needs `make env-clients`.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from server import Address, parser, reach, run_main

ROLES = {"poet": "你是诗人。", "editor": "你是编辑，续写下一句。"}
# AutoGen knows the abilities of its vendors' models only; for other models they must be given.
MODEL_INFO = {
    "vision": False,
    "function_calling": False,
    "json_output": False,
    "structured_output": False,
    "family": "unknown",
}


def client(address: Address, tokens: int) -> Any:
    """AutoGen's OpenAI client, connected to the local server."""
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    return OpenAIChatCompletionClient(
        model=address.name,
        base_url=f"{address.url}/v1",
        api_key=address.key,
        model_info=MODEL_INFO,
        temperature=0.7,
        max_tokens=tokens,
        include_name_in_message=False,
    )


async def discuss(address: Address, task: str, turns: int, tokens: int) -> list[tuple[str, str]]:
    """Run the team on a task for `turns` messages. Returns (speaker, text) of every message."""
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import RoundRobinGroupChat
    from autogen_core.model_context import BufferedChatCompletionContext

    model = client(address, tokens)
    agents: list[Any] = [
        AssistantAgent(name, model, system_message=role, model_context=BufferedChatCompletionContext(buffer_size=2))
        for name, role in ROLES.items()
    ]
    team = RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(turns + 1))
    said = []
    try:
        async for message in team.run_stream(task=task):
            content = getattr(message, "content", None)
            if isinstance(content, str):
                said.append((str(message.source), content))
                print(f"{message.source}: {content}", flush=True)
    finally:
        await model.close()
    return said


def talk(arguments: argparse.Namespace) -> None:
    asyncio.run(discuss(reach(arguments), arguments.task, arguments.turns, arguments.max_tokens))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("task", help="first message to the team")
    made.add_argument("--turns", type=int, default=4, help="number of messages from the agents (default: %(default)s)")
    made.add_argument("--max-tokens", type=int, default=48, help="most tokens of a message (default: %(default)s)")
    talk(made.parse_args())


if __name__ == "__main__":
    run_main(main)
