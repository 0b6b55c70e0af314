"""Talk to an OpenAI-compatible server: plain requests, and replies that stream. Standard library only.

    from launch.serving.client import Address, stream_reply
    for piece in stream_reply(Address("http://127.0.0.1:8000", "dpo", key), messages, {"temperature": 0.7}): ...

Used by the readiness check, the gate, the chat in the terminal, the chat page (in its own environment) and benchmarks.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from artifacts.errors import UserError, nearest
from artifacts.layout import cache_folder

Messages = list[dict[str, str]]
LOCAL = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Address:
    """Where a server is (`http://127.0.0.1:8000`, no path), what it calls its model, and its key."""

    url: str
    name: str
    key: str


class ContextFull(UserError):
    """The conversation has no room left in the model's context."""


def request(address: Address, route: str, body: dict[str, Any] | None = None, timeout: float = 120.0) -> Any:
    """POST `body` (GET without one) with the key and parse the JSON reply; raises urllib's errors."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {address.key}", "Content-Type": "application/json"}
    # Straight to the server: a proxy of the machine's environment is not for 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(address.url + route, data, headers), timeout=timeout) as reply:
        text = reply.read()
    return json.loads(text) if text else None


def key_file(port: int) -> Any:
    """Where `myllm serve` keeps the key that it made for the server on this port (mode 0600)."""
    return cache_folder() / "keys" / f"{port}.key"


def find_key(url: str) -> str:
    """The key for a server: $MYLLM_API_KEY, or the file that `myllm serve` left for that port on this machine."""
    given = os.environ.get("MYLLM_API_KEY")
    if given:
        return given
    parts = urlsplit(url)
    file = key_file(parts.port or 0)
    if parts.hostname in LOCAL and file.exists():
        return str(file.read_text().strip())
    return ""


def connect(url: str, name: str | None = None) -> Address:
    """The address of a running server, asked for its models; raises UserError in one line when that fails."""
    url = url.rstrip("/").removesuffix("/v1")
    url = url if "://" in url else f"http://{url}"
    try:
        port = urlsplit(url).port
    except ValueError:
        port = None
    if not urlsplit(url).hostname or port is None:
        raise UserError(f"--server {url}: write an address with its port, http://127.0.0.1:8000")
    address = Address(url, name or "", find_key(url))
    try:
        models = [row["id"] for row in request(address, "/v1/models", timeout=10)["data"]]
    except urllib.error.HTTPError as error:
        raise UserError(refusal(address, error.code, error.read())) from None
    except OSError as error:
        raise UserError(f"no server answers at {url} ({error}): start one, `myllm serve MODEL`") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"what answers at {url} is no OpenAI-compatible server: check the address") from None
    if name and name not in models:
        raise UserError(f"{url} serves {', '.join(models)}, not {name!r}{nearest(name, models)}")
    return Address(url, name or models[0], address.key)


def refusal(address: Address, status: int, body: bytes) -> str:
    """One line for a reply that is not 200."""
    if status == 401:
        return f"{address.url} refuses the key: set MYLLM_API_KEY to the key of that server"
    try:
        error = json.loads(body)
        error = error.get("error", error) if isinstance(error, dict) else error
        message = error.get("message") or str(error) if isinstance(error, dict) else str(error)
    except ValueError:
        message = body.decode(errors="replace")
    return f"{address.url} answers {status}: {' '.join(message.split())[:300]}"


def stream_reply(
    address: Address, messages: Messages, options: dict[str, Any], usage: dict[str, int] | None = None
) -> Generator[str, None, None]:
    """Pieces of the reply to a conversation as they come (server-sent events); `usage` gets the token counts.

    Closing the iterator hangs up, and the server stops generating. Raises UserError for whatever goes wrong,
    ContextFull when the conversation is too long.
    """
    parts = urlsplit(address.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=300)
    counted = {} if usage is None else {"stream_options": {"include_usage": True}}
    body = json.dumps({"model": address.name, "messages": messages, "stream": True, **counted, **options})
    headers = {"Authorization": f"Bearer {address.key}", "Content-Type": "application/json"}
    reply = None
    try:
        connection.request("POST", "/v1/chat/completions", body.encode(), headers)
        reply = connection.getresponse()
        if reply.status != 200:
            text = reply.read()
            if reply.status == 400 and b"context length" in text:
                raise ContextFull(refusal(address, reply.status, text))
            raise UserError(refusal(address, reply.status, text))
        for line in reply:
            if not line.startswith(b"data:"):
                continue
            event = line[5:].strip()
            if event == b"[DONE]":
                return
            chunk = json.loads(event)
            if "error" in chunk:
                raise UserError(refusal(address, 500, event))
            if usage is not None:
                usage.update(chunk.get("usage") or {})
            for choice in chunk.get("choices", []):
                piece = choice.get("delta", {}).get("content")
                if piece:
                    yield piece
        raise UserError(f"{address.url} ended in the middle of a reply: look at the server's log")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{address.url} is gone ({error or type(error).__name__}): look at the server's log") from None
    finally:
        if reply:
            reply.close()  # it holds the socket: without this the server would not see the hang-up
        connection.close()


def stream_fitting(address: Address, messages: Messages, options: dict[str, Any]) -> Generator[str, None, None]:
    """`stream_reply`, forgetting the oldest turns (in `messages`, in place) while the conversation is too long.

    The system prompt and the last turn stay; raises ContextFull when those alone are too long.
    """
    while True:
        try:
            yield from stream_reply(address, messages, options)
            return
        except ContextFull:
            first = 1 if messages and messages[0]["role"] == "system" else 0
            if len(messages) - first < 3:
                raise
            del messages[first : first + 2]
