"""Require the key on every route of a server but /health, and let running replies finish before the server stops.

vLLM's own check protects only /v1 and a few prefixes: /invocations generated text without the key, and /tokenize and
/metrics were open. LMDeploy's check leaves /health, /docs, /redoc and /nodes open. So this ASGI middleware wraps both
servers (`--middleware launch.serving.key.RequireKey`, `launch.serving.lmdeploy_closed`) and the chat page. Standard
library only: it is imported in three environments.

After `POST /drain` with the key, the server refuses new requests (503); the call returns when the last reply is sent.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATH, DRAIN_PATH = "/health", "/drain"


class RequireKey:
    """Answer 401 unless the request has `Authorization: Bearer KEY`. The default for KEY is $VLLM_API_KEY.

    With `browser`, the key is also accepted as the password of HTTP Basic, for which browsers show a dialogue. Requests
    from pages of other sites are then refused, because browsers would send the password with them.
    """

    def __init__(self, app: Application, key: str | None = None, browser: bool = False) -> None:
        self.app = app
        self.key = (key or os.environ.get("VLLM_API_KEY", "")).encode()
        if not self.key:
            raise RuntimeError("VLLM_API_KEY is empty: the server would be open to everyone")
        self.browser = browser
        self.running = 0
        self.draining = False

    def allowed(self, given: bytes) -> bool:
        scheme, _, word = given.partition(b" ")
        if self.browser and scheme.lower() == b"basic":
            try:
                word = base64.b64decode(word, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return secrets.compare_digest(word, self.key)

    def foreign(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a page of another site sent the request: the header Origin names another host than Host."""
        origin = headers.get(b"origin")
        return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        path, headers = scope["path"].removeprefix(scope.get("root_path", "")), dict(scope["headers"])
        if path == OPEN_PATH:
            return await self.app(scope, receive, send)
        if not self.allowed(headers.get(b"authorization", b"")):
            return await refuse(scope, send, 401, "Unauthorized", self.browser)
        if self.browser and self.foreign(headers):
            return await refuse(scope, send, 403, "Forbidden: the request comes from another site")
        if path == DRAIN_PATH:
            return await self.drain(send)
        if self.draining:
            return await refuse(scope, send, 503, "the server is stopping")
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1

    async def drain(self, send: Send) -> None:
        self.draining = True
        while self.running:
            await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def refuse(scope: Message, send: Send, status: int, reason: str, browser: bool = False) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        scheme = b'Basic realm="the key is the password, any user name", charset="UTF-8"' if browser else b"Bearer"
        headers.append((b"www-authenticate", scheme))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"error": "' + reason.encode() + b'"}'})
