"""The chat page in a real browser (Chromium): key, typing, an input method, streaming, stop, reload, phone, dark."""

from __future__ import annotations
