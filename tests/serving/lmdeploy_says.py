"""What the real LMDeploy says of a model, as JSON, without a GPU. Run in `.venv-lmdeploy`:

    python tests/serving/lmdeploy_says.py MODEL 'ARGUMENTS OF launch.serving.lmdeploy_closed, AS JSON'

Parses the arguments with LMDeploy's own command and has it build its own server around an engine that is not there;
uvicorn is not started: the application that it would get is asked on every route, without a key and with a wrong one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from launch.serving import lmdeploy_closed

CHAT = [{"role": "user", "content": "写一首五绝。"}]


class NoEngine:
    """Stands for the engine, which needs CUDA; the server is built around it and never asks it anything here."""

    model_name = "tiny"
    is_sleeping = False

    def __init__(self, **_settings: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return NoEngine()

    def __call__(self, *_arguments: Any, **_settings: Any) -> Any:
        return None


def routes_of(app: Any) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        if hasattr(route, "original_router"):  # FastAPI's note of a router that was included
            found += routes_of(route.original_router)
            continue
        found += [(route.path, method) for method in sorted(getattr(route, "methods", None) or {"GET"})]
    return found


async def status(app: Any, path: str, method: str, key: str | None) -> int:
    """The application's answer; 0 when it raised (it got through to the missing engine)."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    headers = [(b"content-type", b"application/json"), *([(b"authorization", f"Bearer {key}".encode())] if key else [])]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": headers}
    scope |= {"query_string": b"", "root_path": "", "scheme": "http", "server": ("here", 1), "client": ("here", 2)}
    try:
        await app(scope, receive, send)
    except Exception:  # noqa: BLE001  # the engine is not there
        return 0
    return int(sent[0]["status"])


def main() -> None:
    model, words = sys.argv[1], json.loads(sys.argv[2])
    import uvicorn

    given: dict[str, Any] = {}
    uvicorn.run = lambda app, **settings: given.update(app=app, **settings)
    lmdeploy_closed.close()
    from lmdeploy.cli.utils import get_chat_template
    from lmdeploy.model import get_chat_template as guess_chat_template
    from lmdeploy.serve.openai import api_server
    from lmdeploy.tokenizer import Tokenizer
    from lmdeploy.turbomind import supported_models

    api_server.get_task = lambda *_arguments, **_settings: (None, NoEngine)
    import lmdeploy.cli.serve as command

    command.get_max_batch_size = lambda _device: 8  # asks the device
    sys.argv = ["lmdeploy", *words]
    from lmdeploy.cli import run

    run()
    app = given["app"]
    routes = routes_of(app.app)
    refused = {
        f"{method} {path}": [asyncio.run(status(app, path, method, key)) for key in (None, "wrong")]
        for path, method in [*routes, ("/docs", "GET"), ("/openapi.json", "GET"), ("/nodes/status", "GET")]
    }
    template = get_chat_template("hf", model).chat_template()
    said = {
        "supported": bool(supported_models.is_supported(model)),
        "architectures": sorted(supported_models.SUPPORTED_ARCHS),
        "prompt": template.messages2prompt(CHAT),
        "guessed_prompt": guess_chat_template(model).messages2prompt(CHAT),
        "ids": Tokenizer(model).encode("床前明月光，疑是地上霜。", add_bos=False),
        "host": given["host"],
        "port": given["port"],
        "refused": refused,
        "with_key": asyncio.run(status(app, "/openapi.json", "GET", os.environ["VLLM_API_KEY"])),
    }
    print("SAYS " + json.dumps(said, ensure_ascii=False))


if __name__ == "__main__":
    main()
