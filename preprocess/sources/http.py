"""One file by HTTP, whole and checked: resumed by range after a cut or a kill, retried with growing pauses.

Used by `preprocess.sources.download`; there is nothing to run here. Standard library only; proxies are taken from the
environment. What came so far lies beside the target as `.NAME.download`, with `.NAME.download.json` telling of whom.
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
RETRIED = {408, 425, 429, 500, 502, 503, 504}  # any other refusal is final: another mirror, or the user, must help
LONGEST_PAUSE = 60.0  # seconds between tries
LONGEST_ASKED = 600.0  # seconds of a server's Retry-After that are waited for
AGENT = "myllm-download"


@dataclass(frozen=True)
class Wanted:
    """What a file must be: `digest` is `sha256:<hex>` (or sha1, md5, sha512), `size` bytes; None where not known."""

    urls: tuple[str, ...]
    size: int | None = None
    digest: str | None = None


class Again(Exception):
    """The try failed in a way that another may not; `pause` is what the server asks for, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Refused(Exception):
    """This address will not give the file, however often it is asked."""


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3); None when it holds neither."""
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
    """Raise UserError when a file is not the wanted one."""
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
    """Lines `progress 12/340 MB, 3.1 MB/s, ETA 1:46` on standard output, at most one a second."""

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
    """Size of the whole file as a response tells it; raises Again when a 206 is not of what was asked for."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return int(length) if length and length.isdigit() else None
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    given, _, total = rest.partition("/")
    if unit != "bytes" or given.split("-")[0] != str(have):
        raise Again(f"the server sent the range {rest or 'of nothing'}, not from {have}")
    return int(total) if total.isdigit() else None


def one_try(url: str, partial: Path, wanted: Wanted, timeout: float) -> None:
    """Ask once for what is missing of `partial` and append it; returns when the file seems whole.

    Raises Again or Refused.
    """
    note = partial.with_name(partial.name + ".json")
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        known = {}
    have = partial.stat().st_size if partial.exists() else 0
    same = known.get("url") == url
    # bytes of another address are gone on with only if a checksum will tell whether they fit
    if have and not (same and known.get("validator")) and not wanted.digest:
        have = 0
    if wanted.size is not None and have == wanted.size:
        return
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if same and known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # there is nothing after what we have, or the file is another now
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
            raise Refused(f"it offers {total:,} bytes, not the published {wanted.size:,}")
        if response.status != 206:
            have = 0  # the server ignores ranges, or the file has changed: from the beginning
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
    """Try one address until the file is whole; `tries` counts tries in a row that brought nothing. Raises Refused."""
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
                raise Refused(f"{error}; it asks to come back in {error.pause / 60:.0f} minutes") from None
            pause = min(LONGEST_PAUSE, 2.0 ** max(0, failed - 1)) * random.uniform(0.75, 1.25)
            if error.pause is not None:
                pause = max(error.pause, 0.1)
            print(f"{url}: {error}; again in {pause:.1f} s", flush=True)
            sleep(pause)


def fetch(
    wanted: Wanted,
    target: Path,
    tries: int = 6,
    timeout: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make `target` the wanted file, from the first address that gives it; it appears whole and checked, or not at all.

    A file that fails its check is fetched once more from the beginning (it may be two versions in one), then from the
    next address. Raises UserError telling what each address answered, and when another process writes this file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.download")
    taken = f"{target} is being downloaded by another process: wait for it, or end it"
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
                        answers.append(f"{url}: {str(error).split(': delete')[0]}")
                        break
                else:
                    with partial.open("rb") as stream:
                        os.fsync(stream.fileno())
                    os.replace(partial, target)
                    for left in (partial.with_name(partial.name + ".json"), Path(lock.name)):
                        left.unlink(missing_ok=True)
                    return
    raise UserError(
        f"{target.name} could not be downloaded ({'; '.join(answers)}): try later, or pass it by --from-file"
    )
