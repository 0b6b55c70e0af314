"""Ask for the key on every route of a vLLM server but /health. vLLM's own check guards /v1 and a few prefixes alone:
with it, /invocations generated text for anybody, and /tokenize and /metrics were open.

Imported by the server (`--middleware launch.key_middleware.RequireKey`), in the serve environment.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = {"/health"}


class RequireKey:
    """ASGI middleware: 401 unless the request carries `Authorization: Bearer $VLLM_API_KEY`."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.key = os.environ.get("VLLM_API_KEY", "").encode()
        if not self.key:
            raise RuntimeError("VLLM_API_KEY is empty: the server would be open to everybody")

    def allowed(self, scope: Message) -> bool:
        if scope["path"].removeprefix(scope.get("root_path", "")) in OPEN_PATHS:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(key, self.key)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self.allowed(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
