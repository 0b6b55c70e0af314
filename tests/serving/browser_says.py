"""Use the chat page as a person does, in a real Chromium, and tell what was seen, as JSON. Run in `.venv-clients`:

MYLLM_API_KEY=… python tests/serving/browser_says.py http://127.0.0.1:7860 FOLDER_FOR_SCREENSHOTS [CHROMIUM] [--stop]

With --stop replies are stopped, instead of all else that is done on the page. The models are then ones whose replies
do not end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

# Notes every length that the first column's text takes: a reply that comes at once takes two, one that streams many.
WATCH = """() => {
  window.lengths = new Set();
  const bot = document.querySelector('#bot-0');
  const note = () => window.lengths.add(bot.innerText.length);
  new MutationObserver(note).observe(bot, {subtree: true, childList: true, characterData: true});
}"""
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1200, "height": 800}


def until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for a true value; the last value, true or not."""
    deadline = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def said(page: Page, bot: int, role: str = "bot") -> list[str]:
    """What stands in a column, by role (user or bot)."""
    return [text.strip() for text in page.locator(f"#bot-{bot} .message.{role}").all_inner_texts()]


def wide(page: Page) -> bool:
    """Whether the page is wider than its window, so that one would have to scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1"))


def use(page: Page, folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    box = page.locator("#box textarea")
    box.wait_for()
    columns = page.locator(".models [id^=bot-]").count()
    seen["columns"] = columns

    # Words typed, sent with Enter, and the reply grows.
    page.evaluate(WATCH)
    box.fill("写一首五绝。")
    box.press("Enter")
    seen["emptied"] = until(lambda: box.input_value() == "")
    seen["streams"] = until(lambda: page.evaluate("window.lengths.size") > 3)
    seen["replies"] = until(lambda: all(said(page, bot) for bot in range(columns)))
    settled(page, columns)
    seen["asked"] = [said(page, bot, "user") for bot in range(columns)]

    # An input method: Enter that chooses a word must not send what is not finished.
    session = page.context.new_cdp_session(page)
    box.click()
    session.send("Input.imeSetComposition", {"text": "chunfeng", "selectionStart": 8, "selectionEnd": 8})
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    session.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
    session.send("Input.insertText", {"text": "春风"})
    session.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})
    time.sleep(0.5)
    seen["composed"] = [box.input_value(), len(said(page, 0, "user"))]
    box.press("Enter")
    seen["sent_after_composing"] = until(lambda: said(page, 0, "user")[-1:] == ["春风"])
    settled(page, columns)
    page.screenshot(path=str(folder / "light.png"))

    # A reload keeps the conversation; the switch to dark; a phone.
    before = [said(page, bot) for bot in range(columns)]
    page.reload()
    box.wait_for()
    seen["kept"] = until(lambda: [said(page, bot) for bot in range(columns)] == before)
    seen["after_reload"] = [[said(page, bot) for bot in range(columns)], before]
    dark = page.evaluate("document.body.classList.contains('dark')")
    page.locator("#theme").click()
    seen["switched"] = until(lambda: page.evaluate("document.body.classList.contains('dark')") != dark)
    page.screenshot(path=str(folder / "dark.png"))
    seen["wide"] = wide(page)
    page.set_viewport_size(PHONE)
    time.sleep(0.5)
    page.screenshot(path=str(folder / "phone.png"))
    seen["wide_on_a_phone"] = wide(page)
    found = box.bounding_box() or {"y": -1, "height": 0}
    seen["box_in_sight_on_a_phone"] = 0 <= found["y"] <= PHONE["height"] - found["height"]
    page.set_viewport_size(DESK)

    # Temperature 0 and a length: two columns of the same model say the same.
    page.locator("#clear").click()
    until(lambda: not said(page, 0))
    page.locator("#settings button").first.click()
    for setting, value in (("temperature", "0"), ("longest", "16")):
        put(page, setting, value)
    box.fill("春风")
    box.press("Enter")
    until(lambda: all(said(page, bot) for bot in range(columns)))
    settled(page, columns)
    seen["greedy"] = [said(page, bot) for bot in range(columns)]

    page.locator("#clear").click()
    seen["cleared"] = until(lambda: not any(said(page, bot) for bot in range(columns)))
    page.reload()
    box.wait_for()
    time.sleep(1)
    seen["cleared_after_reload"] = not any(said(page, bot) for bot in range(columns))
    return seen


def stop(page: Page, folder: Path) -> dict[str, Any]:
    """Replies under way are stopped, stay as they were, and are there after a reload."""
    seen: dict[str, Any] = {}
    box = page.locator("#box textarea")
    box.wait_for()
    columns = page.locator(".models [id^=bot-]").count()
    box.fill("长")
    page.locator("#send").click()
    seen["streams"] = until(lambda: all(len("".join(said(page, bot))) > 10 for bot in range(columns)))
    page.locator("#stop").click()
    seen["stopped"], seen["stopped_by"] = settled(page, columns, 2), time.time()
    seen["before"] = [said(page, bot) for bot in range(columns)]
    page.screenshot(path=str(folder / "stopped.png"))
    page.reload()
    box.wait_for()
    seen["kept"] = until(lambda: [said(page, bot) for bot in range(columns)] == seen["before"])
    seen["after"] = [said(page, bot) for bot in range(columns)]
    return seen


def put(page: Page, setting: str, value: str) -> None:
    """Fill a setting. One that is filled while it is still being drawn falls back to its default: then again."""
    number = page.locator(f"#{setting} input[type=number]")

    def holds() -> bool:
        number.fill(value)
        number.press("Tab")
        time.sleep(0.3)
        return bool(number.input_value() == value)

    until(holds)


def settled(page: Page, columns: int, seconds: float = 1) -> bool:
    """Wait until no column has changed for so long; whether that came."""
    last: Any = None
    for _ in range(60):
        now = [said(page, bot) for bot in range(columns)]
        if now == last:
            return True
        last = now
        time.sleep(seconds)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("chromium", nargs="?")
    parser.add_argument("--stop", action="store_true")
    arguments = parser.parse_args()
    url, folder = arguments.url, arguments.folder
    key = os.environ["MYLLM_API_KEY"]
    foreign: list[str] = []
    errors: list[str] = []
    with sync_playwright() as playwright:
        options = {"executable_path": arguments.chromium, "args": ["--no-sandbox"], "timeout": 120_000}
        browser = playwright.chromium.launch(**options)
        wrong = browser.new_context(http_credentials={"username": "me", "password": "wrong"})
        refused = wrong.new_page().goto(url)
        context = browser.new_context(
            http_credentials={"username": "me", "password": key}, viewport=DESK, locale="zh-CN", color_scheme="light"
        )
        page = context.new_page()
        page.on(
            "request",
            lambda asked: foreign.append(asked.url) if not asked.url.startswith((url, "data:", "blob:")) else None,
        )
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        seen = (stop if arguments.stop else use)(page, folder)
        seen["refused"] = refused.status if refused else 0
        preferring = browser.new_context(
            http_credentials={"username": "me", "password": key}, viewport=DESK, locale="en-GB", color_scheme="dark"
        )
        night = preferring.new_page()
        night.goto(url)
        night.locator("#box textarea").wait_for()
        seen["dark_where_preferred"] = until(lambda: night.evaluate("document.body.classList.contains('dark')"), 5)
        seen["english"] = night.locator("#send").inner_text()
        seen["chinese"] = page.locator("#send").inner_text()
        browser.close()
    print("SAYS " + json.dumps({**seen, "foreign": foreign, "errors": errors}, ensure_ascii=False))


if __name__ == "__main__":
    main()
