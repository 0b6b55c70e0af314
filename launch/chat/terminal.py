"""Chat with a model in the terminal: a running server, or a model folder, which is served while you chat.

    myllm chat runs/poetry-tiny/models/dpo
    myllm chat --server http://127.0.0.1:8000 --system 你是诗人。 --temperature 0.7
    echo 你好！ | myllm chat --server http://127.0.0.1:8000

Replies stream. Ctrl-C stops a reply and keeps what was said; Ctrl-D or /exit leaves. A conversation that outgrows the
model's context forgets its oldest turns and says so. /help lists the commands. Where the input is not a terminal every
line of it is one turn, and only the replies are printed.
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

from artifacts.errors import UserError, nearest, run_main
from artifacts.files import write_json
from artifacts.processes import free_port
from launch.serving.client import Address, ContextFull, Messages, connect, stream_fitting
from launch.serving.serve import log_file, make_plan, running, wait_until_ready

# The sampling options, named as the API names them, with their types and defaults (None: the server's own).
OPTIONS: dict[str, tuple[type, Any]] = {
    "temperature": (float, 0.7),
    "top_p": (float, 0.9),
    "max_tokens": (int, None),
    "seed": (int, None),
}
HELP = """/system TEXT    another system prompt; without TEXT none
/set NAME VALUE temperature, top_p, max_tokens or seed; without VALUE the server's own
/show           the conversation so far
/again          the last question again
/undo           forget the last question and its reply
/clear          forget the conversation
/save FILE      the conversation as JSON messages
/exit           leave (Ctrl-D too)
Ctrl-C stops a reply. A line that ends with \\ goes on in the next one."""
COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")] + ["/help", "/quit"]


@dataclass
class Conversation:
    """What was said, and how the next reply is sampled."""

    address: Address
    options: dict[str, Any]
    messages: Messages = field(default_factory=list)

    def set_system(self, text: str) -> None:
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest


def set_option(options: dict[str, Any], name: str, text: str) -> None:
    """Set a sampling option from its text; raises UserError when there is no such option, or the text is no number."""
    if name not in OPTIONS:
        raise UserError(f"there is no option {name!r}{nearest(name, OPTIONS)}; there are {', '.join(OPTIONS)}")
    kind = OPTIONS[name][0]
    try:
        value = kind(text) if text else None
    except ValueError:
        raise UserError(f"{name} {text}: not {'a whole number' if kind is int else 'a number'}") from None
    options.pop(name, None)
    if value is not None:
        options[name] = value


def say(conversation: Conversation, text: str, notes: bool) -> None:
    """Send one turn and print the reply as it comes; what was not answered at all is taken back."""
    conversation.messages.append({"role": "user", "content": text})
    before, said = len(conversation.messages), ""
    try:
        with closing(stream_fitting(conversation.address, conversation.messages, conversation.options)) as pieces:
            for piece in pieces:
                said += piece
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if notes:
            print(" [stopped]", end="")
    except ContextFull:
        conversation.messages.pop()
        raise UserError("this turn alone is longer than the model's context: say less, or shorten /system") from None
    except UserError:
        if not said:
            conversation.messages.pop()
        raise
    finally:
        if said:
            print()
            conversation.messages.append({"role": "assistant", "content": said})
    if forgotten := before + bool(said) - len(conversation.messages):
        print(f"[the model's context is full: the oldest {forgotten} messages are forgotten]", file=sys.stderr)
    if not said and conversation.messages[-1]["role"] == "user":
        conversation.messages.pop()
        print("[no reply]" if notes else "")


def obey(conversation: Conversation, line: str) -> bool:
    """Do what a line that begins with / says; False to leave."""
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
        print(" ".join(f"{key}={value}" for key, value in conversation.options.items()) or "all as the server has it")
    elif command == "/show":
        for message in messages:
            print(f"{message['role']}: {message['content']}")
    elif command in ("/again", "/undo"):
        last = next((n for n in range(len(messages) - 1, -1, -1) if messages[n]["role"] == "user"), None)
        if last is None:
            raise UserError("nothing was asked yet")
        question = messages[last]["content"]
        del messages[last:]
        if command == "/again":
            say(conversation, question, notes=True)
    elif command == "/clear":
        conversation.messages = [message for message in messages if message["role"] == "system"]
    elif command == "/save":
        if not rest:
            raise UserError("/save FILE: name a file")
        write_json(Path(rest).expanduser(), messages)
        print(f"{len(messages)} messages in {rest}")
    else:
        raise UserError(f"there is no command {command}{nearest(command, COMMANDS)}; /help lists them")
    return True


def lines(prompt: str) -> Iterator[str]:
    """The user's turns. readline edits them (wide characters too) and remembers them; a trailing \\ goes on."""
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
    """Turn after turn, until the input ends; what goes wrong is one line. In a pipe it also ends with exit code 2."""
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
    """A server for this folder, on a free port with a key of its own, that ends with the block."""
    plan = make_plan(folder, free_port())
    log = log_file(plan)
    with redirect_stdout(sys.stderr):  # standard output is for the replies
        print(f"serving {folder} (log: {log}); `myllm serve` and --server spare this wait", flush=True)
        with running(plan, secrets.token_urlsafe(32), log) as (address, server):
            wait_until_ready(server, address, log)
            with redirect_stdout(sys.__stdout__):
                yield address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, nargs="?", help="a model folder, served while you chat")
    parser.add_argument("--server", metavar="URL", help="a running server instead, with the key in $MYLLM_API_KEY")
    parser.add_argument("--name", help="which of the server's models (default: its first)")
    parser.add_argument("--system", default="", help="system prompt")
    for name, (kind, default) in OPTIONS.items():
        text = "the server's own" if default is None else default
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default: {text}")


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.model) == bool(arguments.server):
        raise UserError("name a model folder or --server URL, one of the two")
    options = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}

    def chat(address: Address) -> int:
        conversation = Conversation(address, options)
        conversation.set_system(arguments.system)
        return talk(conversation)

    if arguments.server:
        return chat(connect(arguments.server, arguments.name))
    with served(arguments.model) as address:
        return chat(address)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    run_main(main)
