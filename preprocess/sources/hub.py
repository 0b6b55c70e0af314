"""Datasets of the Hugging Face hub, or of the mirror in $HF_ENDPOINT: addresses, digests, lists of files, access.

Used by `preprocess.sources.download`; not a command. A token is needed only for gated datasets: $HF_TOKEN, or that of
`hf auth login`. The list of a dataset's files is kept in the cache, so that a later call needs no network for it.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from artifacts.errors import UserError
from artifacts.files import read_json, write_json
from preprocess.sources.http import Wanted, asked

SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def address(repository: str, file: str) -> str:
    """URL of a dataset's file. Raises UserError if HF_HUB_OFFLINE is set."""
    if is_offline():
        raise UserError(
            f"{repository}/{file} is not in the cache and HF_HUB_OFFLINE is set: unset it, or pass --from-file"
        )
    return f"{endpoint()}/datasets/{repository}/resolve/main/{quote(file)}"


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


def wanted(repository: str, file: str) -> Wanted:
    """URL, size and sha256 of a large file, from the headers of the hub's redirect (X-Linked-Size, X-Linked-Etag)."""
    url, known = address(repository, file), token()
    try:
        answer: Any = urllib.request.build_opener(_Stay).open(asked(url, known, method="HEAD"), timeout=60)
        headers = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers  # of a redirect, too; if the hub refuses, the download reports it
    except OSError:
        headers = {}
    size, digest = headers.get("X-Linked-Size", ""), SHA256.fullmatch(headers.get("X-Linked-Etag", ""))
    return Wanted((url,), int(size) if size.isdigit() else None, f"sha256:{digest[1]}" if digest else None, known)


def how_to_enter(repository: str) -> str:
    """The mend if the hub refuses a gated dataset."""
    return (
        f"accept its terms on https://huggingface.co/datasets/{repository} and set HF_TOKEN to a token of that account "
        "(`hf auth login` works too), or pass your copy with --from-file"
    )


def is_pattern(file: str) -> bool:
    return "*" in file


def list_files(repository: str, patterns: list[str], kept: Path) -> dict[str, int]:
    """The files of a dataset that match a pattern, with their sizes in bytes, in the order of the patterns.

    The hub's answer is written to the file `kept`; offline, that of an earlier call is used.

    Raises:
        UserError: the hub cannot be reached or refuses, or no file matches.
    """
    if is_offline():
        if not kept.exists():
            raise UserError(f"the files of {repository} are not known and HF_HUB_OFFLINE is set: unset it")
        every = read_json(kept)
    else:
        every = {}
        for prefix in sorted({pattern.partition("*")[0].rpartition("/")[0] for pattern in patterns}):
            every |= _tree(repository, prefix)
        write_json(kept, every)
    found = {name: every[name] for pattern in patterns for name in sorted(every) if fnmatchcase(name, pattern)}
    if not found:
        raise UserError(
            f"{repository} has no file {' or '.join(patterns)}; it has {', '.join(list(every)[:5]) or 'none'}"
        )
    return found


def _tree(repository: str, folder: str) -> dict[str, int]:
    """Every file below a folder of a dataset, with its size, page by page; none if there is no such folder."""
    url = f"{endpoint()}/api/datasets/{repository}/tree/main/{quote(folder)}".rstrip("/") + "?recursive=true"
    found: dict[str, int] = {}
    while url:
        try:
            with urllib.request.urlopen(asked(url, token()), timeout=60) as response:
                page = json.load(response)
                following = NEXT.search(response.headers.get("Link", ""))
        except urllib.error.HTTPError as error:
            if error.code == 404 and folder:
                return {}
            mend = how_to_enter(repository) if error.code in (401, 403) else "try later"
            raise UserError(f"the hub does not list {repository} (HTTP {error.code} {error.reason}): {mend}") from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"the hub does not list {repository} ({error}): check the network and HF_ENDPOINT"
            ) from None
        found |= {item["path"]: int(item.get("size") or 0) for item in page if item.get("type") == "file"}
        rest = urlsplit(following[1]) if following else None  # of a mirror, it may name the hub itself
        url = f"{endpoint()}{rest.path}?{rest.query}" if rest else ""
    return found
