"""Start a chat page in the browser for one or more models, on this machine only and with a key.

    myllm chat-page base=runs/poetry-tiny/models/base sft=runs/poetry-tiny/models/sft dpo=runs/poetry-tiny/models/dpo
    myllm chat-page dpo=http://127.0.0.1:8000 --port 7860

Each model is a folder, which is served while the page runs, or the address of a running server. The browser asks for a
user name and a password: any name works, the password is the key ($MYLLM_API_KEY, or the one in the file that the
command prints). Ctrl-C stops the page and the servers that it started. Run `make env-clients` first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from artifacts.command import main
from artifacts.errors import UserError
from artifacts.guard import Guarded
from artifacts.layout import REPOSITORY, cache_folder, environment
from artifacts.processes import free_port
from launch.serving.client import Address, connect, request
from launch.serving.machine import check_port
from launch.serving.serve import EVERYWHERE, HERE, last_error, log_file, make_plan, running, take_key, wait_until_ready

PAGE_SECONDS = 120.0


def split(model: str) -> tuple[str, str]:
    """Split `LABEL=FOLDER` or `LABEL=URL`; without a label, the last part of the path is the label."""
    label, equals, where = model.partition("=")
    if equals and label and where and "/" not in label:
        return label, where
    return model.rstrip("/").rpartition("/")[2], model


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def page_environment(models: dict[str, Address], key: str) -> dict[str, str]:
    """The page's environment. Keys are passed here and never on a command line."""
    rows = [{"label": label, "url": at.url, "name": at.name, "key": at.key} for label, at in models.items()]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        "MYLLM_CHAT_MODELS": json.dumps(rows),
        "MYLLM_API_KEY": key,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }


def wait_for_page(page: Guarded, port: int, log: Path) -> None:
    deadline = time.monotonic() + PAGE_SECONDS
    while True:
        if page.poll() is not None:
            raise UserError(f"the page ended with status {page.poll()}: read {log}{last_error(log)}")
        try:
            request(Address(f"http://{HERE}:{port}", "", ""), "/health", timeout=5)
            return
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise UserError(f"the page was not ready after {PAGE_SECONDS:.0f} s: read {log}") from None
            time.sleep(0.25)


def serve_page(pairs: dict[str, str], port: int, lan: bool) -> None:
    """Start the servers, then the page, and wait for Ctrl-C. Raises UserError if one of them fails."""
    host = EVERYWHERE if lan else HERE
    check_port(host, port)
    python = environment("clients") / "bin" / "python"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    models = {label: connect(where) for label, where in pairs.items() if is_url(where)}
    plans = {label: make_plan(Path(where), free_port()) for label, where in pairs.items() if not is_url(where)}
    key, file = take_key(port)
    log = cache_folder() / "logs" / f"chat-page-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with ExitStack() as stack:
        if file:
            stack.callback(file.unlink, missing_ok=True)
        # One after another: two parallel starts on two cores take as long, and the memory check must see the first.
        for label, plan in plans.items():
            address, server = stack.enter_context(running(plan, key, log_file(plan)))
            wait_until_ready(server, address, log_file(plan))
            models[label] = address
        models = {label: models[label] for label in pairs}
        command = [str(python), "-m", "launch.chat.gradio_page", "--host", host, "--port", str(port)]
        page = stack.enter_context(Guarded(command, env=page_environment(models, key), cwd=REPOSITORY, log=log))
        wait_for_page(page, port, log)
        where = f"the key in {file}" if file else "$MYLLM_API_KEY"
        print(f"ready: http://{HERE}:{port} shows {', '.join(models)}; any user name, password {where}", flush=True)
        if lan:
            print("open to the network, unencrypted: put it behind TLS unless you trust the network", flush=True)
        raise UserError(f"the page ended by itself with status {page.wait()}: read {log}{last_error(log)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="[LABEL=]MODEL", help="a model folder, or the URL of a server")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: %(default)s)")
    parser.add_argument("--lan", action="store_true", help="listen on every interface, not only on 127.0.0.1")


def run(arguments: argparse.Namespace) -> int:
    pairs = dict(map(split, arguments.models))
    if len(pairs) < len(arguments.models):
        raise UserError("two models have the same label: give each its own as LABEL=MODEL")
    try:
        serve_page(pairs, arguments.port, arguments.lan)
    except KeyboardInterrupt:
        print("the page has stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main(__name__)
