"""Chat with a model in the terminal: with a running server, or with a model folder, which is served while you chat.

    myllm chat runs/poetry-tiny/models/dpo
    myllm chat --server http://127.0.0.1:8000 --system 你是诗人。 --temperature 0.7
    echo 你好！ | myllm chat --server http://127.0.0.1:8000

Replies are streamed. Ctrl-C stops a reply and keeps its text; Ctrl-D or /exit leaves. If the conversation exceeds the
model's context, the oldest turns are removed, with a message. /help lists the commands. If the input is not a terminal,
each line is one turn and only the replies are printed.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError, nearest
from artifacts.files import write_json
from artifacts.processes import free_port
from launch.serving.client import Address, ContextFull, Messages, connect, stream_fitting
from launch.serving.serve import log_file, make_plan, running, wait_until_ready

# The sampling options by their API names, with types and defaults (None: the server's default).
OPTIONS: dict[str, tuple[type, Any]] = {
    "temperature": (float, 0.7),
    "top_p": (float, 0.9),
    "max_tokens": (int, None),
    "seed": (int, None),
}
HELP = """/system TEXT    set the system prompt; without TEXT, remove it
/set NAME VALUE set temperature, top_p, max_tokens or seed; without VALUE, use the server's default
/show           show the conversation
/again          ask the last question again
/undo           remove the last question and its reply
/clear          remove the conversation
/save FILE      save the conversation as JSON messages
/exit           leave (also Ctrl-D)
Ctrl-C stops a reply. A line that ends with \\ continues in the next line."""
COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")] + ["/help", "/quit"]


@dataclass
class Conversation:
    """The messages so far, and the sampling options of the next reply."""

    address: Address
    options: dict[str, Any]
    messages: Messages = field(default_factory=list)

    def set_system(self, text: str) -> None:
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest


def set_option(options: dict[str, Any], name: str, text: str) -> None:
    """Set a sampling option from its text. Raises UserError if the option is unknown or the text is not a number."""
    if name not in OPTIONS:
        raise UserError(f"/set: unknown option {name!r}{nearest(name, OPTIONS)}; valid are {', '.join(OPTIONS)}")
    kind = OPTIONS[name][0]
    try:
        value = kind(text) if text else None
    except ValueError:
        raise UserError(f"/set {name} {text}: write {'a whole number' if kind is int else 'a number'}") from None
    options.pop(name, None)
    if value is not None:
        options[name] = value


def say(conversation: Conversation, text: str, notes: bool) -> None:
    """Send one turn and print the streamed reply; a turn without any reply is removed from the conversation."""
    conversation.messages.append({"role": "user", "content": text})
    before, answer = len(conversation.messages), ""
    try:
        with closing(stream_fitting(conversation.address, conversation.messages, conversation.options)) as pieces:
            for piece in pieces:
                answer += piece
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if notes:
            print(" [stopped]", end="")
    except ContextFull:
        conversation.messages.pop()
        raise UserError("this turn alone is longer than the model's context: shorten it, or shorten /system") from None
    except UserError:
        if not answer:
            conversation.messages.pop()
        raise
    finally:
        if answer:
            print()
            conversation.messages.append({"role": "assistant", "content": answer})
    if forgotten := before + bool(answer) - len(conversation.messages):
        print(f"[the model's context is full: the oldest {forgotten} messages were removed]", file=sys.stderr)
    if not answer and conversation.messages[-1]["role"] == "user":
        conversation.messages.pop()
        print("[no reply]" if notes else "")


def obey(conversation: Conversation, line: str) -> bool:
    """Run a line that begins with /; returns False to leave."""
    command, _, rest = line.partition(" ")
    rest, messages = rest.strip(), conversation.messages
    if command in ("/exit", "/quit"):
        return False
    if command == "/help":
        print(HELP)
    elif command == "/system":
        conversation.set_system(rest)
    elif command == "/set":
        name, _, value = rest.partition(" ")
        set_option(conversation.options, name, value.strip())
        print(
            " ".join(f"{key}={value}" for key, value in conversation.options.items())
            or "all options: the server's defaults"
        )
    elif command == "/show":
        for message in messages:
            print(f"{message['role']}: {message['content']}")
    elif command in ("/again", "/undo"):
        last = next((n for n in range(len(messages) - 1, -1, -1) if messages[n]["role"] == "user"), None)
        if last is None:
            raise UserError(f"{command}: there is no question yet")
        question = messages[last]["content"]
        del messages[last:]
        if command == "/again":
            say(conversation, question, notes=True)
    elif command == "/clear":
        conversation.messages = [message for message in messages if message["role"] == "system"]
    elif command == "/save":
        if not rest:
            raise UserError("/save: give a file, /save FILE")
        write_json(Path(rest).expanduser(), messages)
        print(f"{len(messages)} messages in {rest}")
    else:
        raise UserError(f"there is no command {command}{nearest(command, COMMANDS)}; /help lists them")
    return True


def lines(prompt: str) -> Iterator[str]:
    """The user's turns, edited with readline (wide characters too); a line that ends with \\ continues."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  # input() uses it once it is imported
    while True:
        text = ""
        try:
            while True:
                text += input(("… " if text else prompt) if terminal else "")
                if not text.endswith("\\"):
                    break
                text = text[:-1] + "\n"
        except EOFError:
            if text:
                yield text
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if text.strip():
            yield text.strip()


def talk(conversation: Conversation) -> int:
    """Run the conversation until the input ends. An error is printed in one line; in a pipe the exit code is then 2."""
    notes = sys.stdin.isatty()
    if notes:
        print(f"{conversation.address.name} at {conversation.address.url}; /help for commands, Ctrl-D to leave")
    failed = False
    for line in lines("> "):
        try:
            if not line.startswith("/"):
                say(conversation, line, notes)
            elif not obey(conversation, line):
                break
        except UserError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    return 2 if failed and not notes else 0


@contextmanager
def served(folder: Path) -> Iterator[Address]:
    """Serve this folder on a free port with a new key; the server ends with the block."""
    plan = make_plan(folder, free_port())
    log = log_file(plan)
    with redirect_stdout(sys.stderr):  # standard output is for the replies
        print(f"serving {folder} (log: {log}); to avoid this wait, use `myllm serve` and --server", flush=True)
        with running(plan, secrets.token_urlsafe(32), log) as (address, server):
            wait_until_ready(server, address, log)
            with redirect_stdout(sys.__stdout__):
                yield address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, nargs="?", help="model folder to serve while you chat")
    parser.add_argument("--server", metavar="URL", help="use a running server instead, with the key in $MYLLM_API_KEY")
    parser.add_argument("--name", help="name of the server's model (default: its first)")
    parser.add_argument("--system", default="", help="system prompt (default: none)")
    for name, (kind, default) in OPTIONS.items():
        text = "the server's own" if default is None else default
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default: {text}")


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.model) == bool(arguments.server):
        raise UserError("give either a model folder or --server URL")
    options = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}

    def chat(address: Address) -> int:
        conversation = Conversation(address, options)
        conversation.set_system(arguments.system)
        return talk(conversation)

    if arguments.server:
        return chat(connect(arguments.server, arguments.name))
    with served(arguments.model) as address:
        return chat(address)


if __name__ == "__main__":
    main(__name__)
