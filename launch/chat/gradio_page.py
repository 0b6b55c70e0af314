"""The chat page, made with Gradio: it sends a question to every model and streams the replies side by side.

`launch.chat.page` starts it in the environment `.venv-clients`; models and key are passed as environment variables:

    MYLLM_CHAT_MODELS='[{"label": "dpo", "url": "http://127.0.0.1:8000", "name": "dpo", "key": "…"}]' MYLLM_API_KEY=… \
        python -m launch.chat.gradio_page --host 127.0.0.1 --port 7860

Every request needs the key (`launch.serving.key`; the browser asks for it as a password). A Content-Security-Policy
forbids the page to load anything from other hosts. The browser stores the conversations, so they survive a reload.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from artifacts.errors import UserError, run_main
from launch.serving.client import Address, ContextFull, Messages, stream_fitting
from launch.serving.key import Application, Message, Receive, RequireKey, Send

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
# Allow the page's own origin only; Gradio's bundle needs inline scripts, inline styles and eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
# The input box stays visible below any number of columns; on a phone the columns are stacked and less high.
CSS = """
.gradio-container { max-width: 1400px !important; margin: 0 auto !important; }
.gradio-container main { padding: 0.75rem !important; }
.gradio-container, .gradio-container main, .gradio-container main > *, .column { overflow: visible !important; }
.gradio-container, .gradio-container .main { min-width: 0 !important; width: 100% !important; }
.models .message { overflow-wrap: anywhere; }
.ask { position: sticky; bottom: 0; z-index: 10; padding: 0.5rem 0; background: var(--body-background-fill); }
.ask button { min-height: 2.75rem; }
@media (max-width: 640px) { .models > .block { height: 17rem !important; } }
"""
TOGGLE = "() => { document.body.classList.toggle('dark') }"
# Texts of the page in the browser's language.
TEXTS = {
    "en": {
        "ask": "Ask …",
        "send": "Send",
        "stop": "Stop",
        "clear": "Clear",
        "theme": "Dark / light",
        "settings": "Settings",
        "system": "System prompt",
        "temperature": "Temperature",
        "top_p": "Top-p",
        "max_tokens": "Longest reply in tokens (0: the model's own)",
        "models": "Models",
    },
    "zh": {
        "ask": "说点什么……",
        "send": "发送",
        "stop": "停止",
        "clear": "清空",
        "theme": "深色／浅色",
        "settings": "设置",
        "system": "系统提示词",
        "temperature": "温度",
        "top_p": "Top-p",
        "max_tokens": "回复最长词元数（0：由模型决定）",
        "models": "模型",
    },
}


def text_of(content: Any) -> str:
    """The text of a Gradio message: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)


def plain(history: list[dict[str, Any]]) -> Messages:
    """The chatbot's messages for the API, without the page's own notes (those with a title)."""
    rows = [row for row in history or [] if not (row.get("metadata") or {}).get("title")]
    return [{"role": row["role"], "content": text_of(row["content"])} for row in rows]


def ask(text: str, chosen: list[str], *histories: list[dict[str, Any]], labels: list[str]) -> list[Any]:
    """Add the user's turn to the history of every chosen model, and empty the box."""
    turn = {"role": "user", "content": text.strip()}
    updated = [
        [*plain(history), turn] if turn["content"] and label in chosen else plain(history)
        for label, history in zip(labels, histories, strict=True)
    ]
    return ["", *updated, updated]


def reply(
    history: list[dict[str, Any]],
    system: str,
    temperature: float,
    top_p: float,
    longest: int,
    *,
    address: Address,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the history with the growing reply of the model at its end; an error becomes a note in it."""
    turns = plain(history)
    if not turns or turns[-1]["role"] != "user":
        yield history
        return
    sent: Messages = ([{"role": "system", "content": system}] if system and system.strip() else []) + list(turns)
    options = {"temperature": temperature, "top_p": top_p, **({"max_tokens": int(longest)} if longest else {})}
    answer = ""
    try:
        for piece in stream_fitting(address, sent, options):
            answer += piece
            yield [*turns, {"role": "assistant", "content": answer}]
        if not answer:
            yield [*turns, note("the reply is empty")]
    except ContextFull:
        yield [*turns, note("this turn alone is longer than the model's context: shorten it or the system prompt")]
    except UserError as error:
        partial_answer = [{"role": "assistant", "content": answer}] if answer else []
        yield [*turns, *partial_answer, note(str(error))]


def note(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "metadata": {"title": "⚠"}}


def build(models: dict[str, Address], key: str) -> Any:
    """Build the page: a chatbot for each model, one input box, buttons, settings."""
    import gradio as gr

    labels = list(models)
    words = gr.I18n(en=TEXTS["en"], zh=TEXTS["zh"], **{"zh-CN": TEXTS["zh"]})
    secret = hashlib.sha256(f"history {key}".encode()).hexdigest()
    look: dict[str, Any] = {"min_width": 260, "height": "max(24rem, calc(100vh - 17rem))", "latex_delimiters": []}
    look["buttons"] = ["copy"]
    with gr.Blocks(title="myllm chat", fill_width=True, analytics_enabled=False) as blocks:
        kept = gr.BrowserState([], storage_key="myllm-chat", secret=secret)
        with gr.Row(elem_classes="models", equal_height=True):
            bots = [gr.Chatbot(label=label, elem_id=f"bot-{number}", **look) for number, label in enumerate(labels)]
        with gr.Row(elem_classes="ask", equal_height=True):
            box = gr.Textbox(
                placeholder=words("ask"), show_label=False, max_lines=6, scale=8, min_width=240, elem_id="box"
            )
            send = gr.Button(words("send"), variant="primary", scale=1, min_width=72, elem_id="send")
            stop = gr.Button(words("stop"), variant="stop", scale=1, min_width=72, elem_id="stop")
        with gr.Row():
            clear = gr.Button(words("clear"), size="sm", min_width=72, elem_id="clear")
            theme = gr.Button(words("theme"), size="sm", min_width=72, elem_id="theme")
        with gr.Accordion(words("settings"), open=False, elem_id="settings"):
            chosen = gr.CheckboxGroup(labels, value=labels, label=words("models"), visible=len(labels) > 1)
            system = gr.Textbox("", label=words("system"), lines=2)
            temperature = gr.Slider(0, 2, 0.7, step=0.05, label=words("temperature"), elem_id="temperature")
            top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label=words("top_p"))
            longest = gr.Slider(0, 4096, 0, step=16, label=words("max_tokens"), elem_id="longest")

        submitted = gr.on(
            [box.submit, send.click], partial(ask, labels=labels), [box, chosen, *bots], [box, *bots, kept]
        )
        replies = []
        for bot, address in zip(bots, models.values(), strict=True):
            settings = [bot, system, temperature, top_p, longest]
            answer = submitted.then(partial(reply, address=address), settings, bot, show_progress="hidden")
            answer.then(keep, bots, kept, show_progress="hidden")
            replies.append(answer)
            bot.clear(keep, bots, kept, show_progress="hidden")
        # save after cancelling, when the last piece has arrived
        stop.click(lambda: None, None, None, cancels=replies).then(keep, bots, kept, show_progress="hidden")
        clear.click(lambda: [[]] * (len(bots) + 1), None, [*bots, kept], cancels=replies)
        theme.click(None, js=TOGGLE)
        blocks.load(partial(restore, count=len(bots)), kept, bots)
    return blocks.queue(default_concurrency_limit=64), words


def keep(*histories: list[dict[str, Any]]) -> list[Messages]:
    return [plain(history) for history in histories]


def restore(kept: list[Messages] | None, count: int) -> Any:
    """The conversations stored in the browser, for the page's present number of models."""
    found = [*(kept or []), *([[]] * count)][:count]
    return found if count > 1 else found[0]


def with_policy(app: Application) -> Application:
    """The application with security headers added to every response."""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await app(scope, receive, add)

    return answer


def application(models: dict[str, Address], key: str) -> Callable[..., Any]:
    """The page as an ASGI application that requires the key on every route but /health."""
    import gradio as gr
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.get("/health")(lambda: {})
    blocks, words = build(models, key)
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    look = {"theme": theme, "css": CSS, "i18n": words, "footer_links": []}
    app = gr.mount_gradio_app(app, blocks, path="/", ssr_mode=False, enable_monitoring=False, **look)
    return RequireKey(with_policy(app), key, browser=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.chat.gradio_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        rows, key = json.loads(os.environ["MYLLM_CHAT_MODELS"]), os.environ["MYLLM_API_KEY"]
    except (KeyError, ValueError):
        raise UserError("MYLLM_CHAT_MODELS and MYLLM_API_KEY are not set: run `myllm chat-page`") from None
    import uvicorn

    models = {row["label"]: Address(row["url"], row["name"], row["key"]) for row in rows}
    uvicorn.run(application(models, key), host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    run_main(main)
