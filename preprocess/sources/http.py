"""Download one file over HTTP and check it. Interrupted downloads resume by range; failures are retried with backoff.

Used by `preprocess.sources.download`; not a command. Standard library only; proxies are taken from the environment.
A partial download lies beside the target as `.NAME.download`; `.NAME.download.json` records its URL and validator.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import hold_lock, write_json

CHUNK = 1 << 18
RETRIED = {408, 425, 429, 500, 502, 503, 504}  # any other error status ends the attempts on this URL
LONGEST_PAUSE = 60.0  # seconds between tries
LONGEST_ASKED = 600.0  # seconds; a longer Retry-After ends the attempts on this URL
AGENT = "myllm-download"


@dataclass(frozen=True)
class Wanted:
    """A file's expected `size` in bytes and `digest`, `sha256:<hex>` (or sha1, md5, sha512); None if unknown.

    `token` is sent to the hosts of `urls` only, not to where they redirect.
    """

    urls: tuple[str, ...]
    size: int | None = None
    digest: str | None = None
    token: str | None = None


class Again(Exception):
    """A temporary failure: another try may succeed. `pause` is the server's Retry-After, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Refused(Exception):
    """A final failure: this URL is not tried again."""


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (seconds or a date: RFC 9110, 10.2.3); None if missing or invalid."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def digest_of(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check(path: Path, wanted: Wanted) -> None:
    """Raise UserError if a file's size or digest differs from the expected one."""
    size = path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        raise UserError(
            f"{path} has {size:,} bytes, not the published {wanted.size:,}: it is truncated or another version; "
            "delete it and download it again"
        )
    if wanted.digest is not None:
        algorithm, _, expected = wanted.digest.partition(":")
        found = digest_of(path, algorithm)
        if found != expected:
            raise UserError(
                f"{path} differs from the published file ({algorithm} {found}, published {expected}): "
                "delete it and download it again"
            )


class Progress:
    """Print lines `progress 12/340 MB, 3.1 MB/s, ETA 1:46` to standard output, at most one per second."""

    def __init__(self, have: int) -> None:
        self.began, self.first, self.shown = time.monotonic(), have, 0.0

    def show(self, have: int, total: int | None, last: bool = False) -> None:
        now = time.monotonic()
        if now - self.shown < 1.0 and not last:
            return
        self.shown = now
        rate = (have - self.first) / max(now - self.began, 1e-3)
        left = int((total - have) / rate) if total and rate > 0 else None
        ending = "" if left is None else f", ETA {left // 60}:{left % 60:02d}"
        whole = max(1, (total or have) // 1_000_000)
        print(f"progress {min(have // 1_000_000, whole)}/{whole} MB, {rate / 1e6:.1f} MB/s{ending}", flush=True)


def total_of(response: Any, have: int) -> int | None:
    """Size of the whole file, from the response headers. Raises Again if a 206 does not begin at byte `have`."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return int(length) if length and length.isdigit() else None
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    given, _, total = rest.partition("/")
    if unit != "bytes" or given.split("-")[0] != str(have):
        raise Again(f"the server sent the range {rest or 'of nothing'}, not one that begins at byte {have}")
    return int(total) if total.isdigit() else None


def asked(
    url: str, token: str | None = None, headers: dict[str, str] | None = None, method: str | None = None
) -> urllib.request.Request:
    """A request; the token is not sent on to another host after a redirect."""
    request = urllib.request.Request(url, headers={"User-Agent": AGENT, **(headers or {})}, method=method)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def one_try(url: str, partial: Path, wanted: Wanted, timeout: float) -> None:
    """Request the missing rest of `partial` once and append it; returns if the file seems complete.

    Raises Again or Refused.
    """
    note = partial.with_name(partial.name + ".json")
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        known = {}
    have = partial.stat().st_size if partial.exists() else 0
    same = known.get("url") == url
    # bytes from another URL are kept only if a digest can verify the result
    if have and not (same and known.get("validator")) and not wanted.digest:
        have = 0
    if wanted.size is not None and have == wanted.size:
        return
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if same and known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        response = urllib.request.urlopen(asked(url, wanted.token, headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # the partial file is complete, or the file on the server has changed
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return
                partial.unlink(missing_ok=True)
                raise Again("the file has changed on the server") from None
            reason = f"HTTP {error.code} {error.reason}"
            if error.code in RETRIED:
                raise Again(reason, retry_after(error.headers.get("Retry-After"), time.time())) from None
            raise Refused(reason) from None
    except (OSError, HTTPException) as error:
        raise Again(str(getattr(error, "reason", error)) or type(error).__name__) from None
    with response:
        total = total_of(response, have)
        if wanted.size is not None and total is not None and total != wanted.size:
            raise Refused(f"the server offers {total:,} bytes, not the published {wanted.size:,}")
        if response.status != 206:
            have = 0  # the server ignores ranges, or the file has changed: start over
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        write_json(note, {"url": url, "validator": "" if validator.startswith("W/") else validator, "total": total})
        progress = Progress(have)
        with partial.open("r+b" if have else "wb") as stream:
            stream.seek(have)
            try:
                while piece := response.read(CHUNK):
                    stream.write(piece)
                    have += len(piece)
                    progress.show(have, total)
            except (TimeoutError, ConnectionError, HTTPException, urllib.error.URLError) as error:
                raise Again(f"the connection broke at {have:,} bytes ({error or type(error).__name__})") from None
        progress.show(have, total, last=True)
        if total is not None and have < total:
            raise Again(f"the connection ended at {have:,} of {total:,} bytes")


def from_address(
    url: str, partial: Path, wanted: Wanted, tries: int, timeout: float, sleep: Callable[[float], None]
) -> None:
    """Try one URL until the file is complete. Raises Refused after `tries` tries in a row that brought no bytes."""
    failed = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            return one_try(url, partial, wanted, timeout)
        except Again as error:
            after = partial.stat().st_size if partial.exists() else 0
            failed = 0 if after > before else failed + 1
            if failed >= tries:
                raise Refused(f"{error}, {tries} times in a row") from None
            if error.pause is not None and error.pause > LONGEST_ASKED:
                raise Refused(f"{error}; the server asks to retry in {error.pause / 60:.0f} minutes") from None
            pause = min(LONGEST_PAUSE, 2.0 ** max(0, failed - 1)) * random.uniform(0.75, 1.25)
            if error.pause is not None:
                pause = max(error.pause, 0.1)
            print(f"{url}: {error}; retrying in {pause:.1f} s", flush=True)
            sleep(pause)


def fetch(
    wanted: Wanted,
    target: Path,
    tries: int = 6,
    timeout: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download `target` from the first URL that works. It appears only when complete and checked.

    A resumed file that fails its check may mix two versions: it is downloaded once more from the beginning, then from
    the next URL. Raises UserError with the answer of each URL, or if another process is downloading this file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.download")
    taken = f"{target} is being downloaded by another process: wait for it to end, or stop it"
    with hold_lock(target.with_name(f".{target.name}.lock"), taken) as lock:
        answers = []
        for url in wanted.urls:
            for resumed in (partial.exists(), False):
                try:
                    from_address(url, partial, wanted, tries, timeout, sleep)
                    check(partial, wanted)
                except Refused as error:
                    answers.append(f"{url}: {error}")
                    break
                except UserError as error:
                    partial.unlink(missing_ok=True)
                    if not resumed:
                        answers.append(f"{url}: {str(error).split('; delete')[0].split(': delete')[0]}")
                        break
                else:
                    with partial.open("rb") as stream:
                        os.fsync(stream.fileno())
                    os.replace(partial, target)
                    for left in (partial.with_name(partial.name + ".json"), Path(lock.name)):
                        left.unlink(missing_ok=True)
                    return
    raise UserError(
        f"{target.name} could not be downloaded ({'; '.join(answers)}): try later, or pass your copy with --from-file"
    )
