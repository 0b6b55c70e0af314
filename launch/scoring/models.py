"""Check the models of `myllm eval` (model folders or a served model) before anything heavy starts.

Used by `launch.scoring.evaluate`; not a command. A folder's `identity` is a hash of its weights, tokenizer and chat
template. It is part of the results' names, so results of a changed checkpoint are never mixed with old ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, sha256

AGAIN = "export the model again"
LOGITS_BYTES = 1 << 30  # float32 logits of a batch at full length; determines the default batch size
# Greedy questions to a server: the replies identify its weights, which it does not show.
PROBES = ("床前明月光，下一句是什么？", "中国的首都是哪里？", "一加一等于几？", "写一句关于春天的诗。")
LOCAL = ("127.0.0.1", "localhost", "::1")
LARGEST_BATCH = 64  # texts; 32 to 128 differ little for a few million parameters on two cores


@dataclass(frozen=True)
class Model:
    """A model to score. `place` is a folder or a server's URL; `way` is plain, chat or api; `positions` are tokens."""

    name: str
    place: str
    identity: str
    positions: int
    vocabulary: int
    way: str
    served_name: str = ""

    @property
    def abbr(self) -> str:
        """OpenCompass's name of the model and of its results folder."""
        return f"{self.name}-{self.identity}"


def split_name(text: str) -> tuple[str, str]:
    """Split `NAME=PLACE`; without a name, the last part of the place is it. Raises UserError for an invalid name."""
    name, equals, place = text.partition("=")
    if not equals or "/" in name:
        place = text
        name = "served" if text.startswith("http") else Path(text).resolve().name
    if not re.fullmatch(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+)*", name):
        raise UserError(f"{text}: a model name may have only letters, digits, '_', '.' and '-': write NAME=FOLDER")
    return name, place


def read_model(name: str, folder: Path, way: str) -> Model:
    """Check that a folder can be scored, and hash its files. Raises UserError, naming file and mend, if it cannot."""
    if not folder.is_dir():
        raise UserError(f"the model folder {folder} does not exist: run the stage that makes it first")
    config = read_json(folder / "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder} holds no *.safetensors weights: {AGAIN}")
    files = [*weights, folder / "config.json", folder / "tokenizer.json", folder / "tokenizer_config.json"]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} does not exist: {AGAIN}")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        lacking = sorted({*read_json(index)["weight_map"].values()} - {file.name for file in weights})
        if lacking:
            raise UserError(f"{folder} lacks {lacking[0]}, which {index.name} names: {AGAIN}")
    settings = read_json(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "PreTrainedTokenizerFast" and "token_type_ids" in settings.get(
        "model_input_names", ["token_type_ids"]
    ):
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: this tokenizer class sends token_type_ids, which breaks generation: "
            'add "model_input_names": ["input_ids", "attention_mask"]'
        )
    for key in ("max_position_embeddings", "vocab_size"):
        if not isinstance(config.get(key), int):
            raise UserError(f"{folder / 'config.json'} lacks {key}: {AGAIN}")
    template = folder / "chat_template.jinja"
    if way == "chat" and not template.exists() and not settings.get("chat_template"):
        raise UserError(f"{folder} has no chat_template.jinja: {AGAIN}, or give --plain {name}")
    if ";" in str(folder.resolve()):
        raise UserError(f"{folder.resolve()}: OpenCompass cannot read a path with ';': move the model")
    files += [file for file in (template,) if file.exists()]
    digest = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()
    positions, vocabulary = int(config["max_position_embeddings"]), int(config["vocab_size"])
    return Model(name, str(folder.resolve()), digest[:12], positions, vocabulary, way)


def ask_server(url: str, route: str, key: str, body: dict[str, Any] | None = None) -> Any:
    """Send a GET, or a POST of `body`, and parse the JSON reply. Raises UserError with the server's message."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    # No proxy for this machine itself.
    here = (urllib.parse.urlsplit(url).hostname or "") in LOCAL
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
    try:
        with opener.open(urllib.request.Request(url + route, data, headers), timeout=60) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        message = error.read().decode(errors="replace")[:200]
        mend = "set MYLLM_API_KEY to its key" if error.code == 401 else "read the server's log"
        raise UserError(f"{url}{route} answers {error.code} {message}: {mend}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url} does not answer ({reason}): start it, for example with `myllm serve`") from None


def read_server(name: str, url: str, tokenizer: Path | None) -> Model:
    """Ask a server for its model, and check that it answers chats.

    A server does not show its weights. Its identity is the name of its model, the tokenizer's bytes, and its greedy
    replies to a few questions. If a reply changes, everything is scored again; old scores are never reused by mistake.

    Raises:
        UserError: the tokenizer is missing, or the server does not answer chats.
    """
    if tokenizer is None:
        raise UserError(f"{url}: give --tokenizer FOLDER of the served model; it is needed to measure the prompts")
    if not (tokenizer / "tokenizer.json").exists():
        raise UserError(
            f"{tokenizer / 'tokenizer.json'} does not exist: give the folder of the served model with --tokenizer"
        )
    key = os.environ.get("MYLLM_API_KEY", "none")
    url = url.rstrip("/").removesuffix("/v1") + "/v1"
    found = ask_server(url, "/models", key).get("data", [])
    if not found:
        raise UserError(f"{url}/models lists no model: start the server with a model")
    served = str(found[0]["id"])
    config = read_json(tokenizer / "config.json") if (tokenizer / "config.json").exists() else {}
    positions = int(found[0].get("max_model_len") or config.get("max_position_embeddings") or 0)
    if not positions:
        raise UserError(
            f"{url}/models does not say max_model_len, and {tokenizer} has no config.json: give the folder of the "
            "served model with --tokenizer, so that prompts are not cut without notice"
        )
    replies = []
    for question in PROBES:
        body = {
            "model": served,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 16,
            "temperature": 0,
        }
        try:
            replies.append(str(ask_server(url, "/chat/completions", key, body)["choices"][0]["message"]["content"]))
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{url}/chat/completions returns no choices: give the address of a chat server") from None
    parts = [served, sha256(tokenizer / "tokenizer.json"), *replies]
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return Model(name, url, identity, positions, int(config.get("vocab_size", 0)), "api", served)


def batch_of(models: list[Model]) -> int:
    """Number of texts in a batch whose logits take at most LOGITS_BYTES, for the largest of the models."""
    most = max((model.positions * model.vocabulary * 4 for model in models), default=1) or 1
    return max(1, min(LARGEST_BATCH, LOGITS_BYTES // most))
