"""Client of an OpenAI-compatible server: plain requests and streamed replies. Standard library only.

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
# what a refusal of too long a conversation contains: vLLM's and LMDeploy's words, and the error code of OpenAI's API
CONTEXT_FULL = (b"context length", b"context_length_exceeded")


@dataclass(frozen=True)
class Address:
    """URL of a server (`http://127.0.0.1:8000`, no path), name of its model, and its key."""

    url: str
    name: str
    key: str


class ContextFull(UserError):
    """The conversation is longer than the model's context."""


def request(address: Address, route: str, body: dict[str, Any] | None = None, timeout: float = 120.0) -> Any:
    """POST `body` (or GET if it is None) with the key and parse the JSON reply. Raises urllib's errors."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {address.key}", "Content-Type": "application/json"}
    # Without a proxy: one in the environment cannot reach 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(address.url + route, data, headers), timeout=timeout) as reply:
        text = reply.read()
    return json.loads(text) if text else None


def key_file(port: int) -> Any:
    """The file in which `myllm serve` keeps the key of the server on this port (mode 0600)."""
    return cache_folder() / "keys" / f"{port}.key"


def find_key(url: str) -> str:
    """The key of a server: $MYLLM_API_KEY, or the key file of `myllm serve` for that port on this machine."""
    given = os.environ.get("MYLLM_API_KEY")
    if given:
        return given
    parts = urlsplit(url)
    file = key_file(parts.port or 0)
    if parts.hostname in LOCAL and file.exists():
        return str(file.read_text().strip())
    return ""


def connect(url: str, name: str | None = None) -> Address:
    """The address of a running server, after asking it for its models.

    Raises:
        UserError: the URL is wrong, no server answers, it refuses the key, or it does not have the model.
    """
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
        raise UserError(f"no server answers at {url} ({error}): start one with `myllm serve MODEL`") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url} is not an OpenAI-compatible server: check the address") from None
    if name and name not in models:
        raise UserError(f"{url} does not serve {name!r}{nearest(name, models)}; it serves {', '.join(models)}")
    return Address(url, name or models[0], address.key)


def refusal(address: Address, status: int, body: bytes) -> str:
    """One line that describes a reply whose status is not 200."""
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
    """Stream the reply to a conversation in pieces (server-sent events); `usage` receives the token counts.

    Closing the iterator closes the connection, and the server stops generating.

    Raises:
        ContextFull: the conversation is longer than the model's context.
        UserError: the server refuses the request, sends an error, or ends the connection.
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
            if reply.status == 400 and any(words in text for words in CONTEXT_FULL):
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
        raise UserError(f"{address.url} stopped in the middle of a reply: read the server's log")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"the connection to {address.url} failed ({error or type(error).__name__}): read the server's log"
        ) from None
    finally:
        if reply:
            reply.close()  # the reply holds the socket: else the server would not notice that the client is gone
        connection.close()


def stream_fitting(address: Address, messages: Messages, options: dict[str, Any]) -> Generator[str, None, None]:
    """Like `stream_reply`, but remove the oldest turns from `messages` (in place) until the conversation fits.

    The system prompt and the last turn stay. Raises ContextFull if these alone are too long.
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
