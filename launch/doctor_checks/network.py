"""The addresses that packages, models and corpora come from, as the user's settings name them."""

from __future__ import annotations

import base64
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from artifacts import layout
from launch.doctor_checks import base
from launch.doctor_checks.base import INFO, OK, PYTHONS, WARN, Finding, ask, at_once, text_of

ADDRESS_WAIT = 5.0  # seconds
# What the tools use if nothing else is set.
PUBLIC = {
    "package index": "https://pypi.org/simple",
    "PyTorch": "https://download.pytorch.org/whl/cpu",
    "Hugging Face": "https://huggingface.co",
    "npm registry": "https://registry.npmjs.org",
}


def pip_settings() -> dict[str, str]:
    """pip's settings by their short names (index-url, find-links); its environment variables win."""
    found = {}
    for python in (layout.REPOSITORY / ".tools/bin/python", sys.executable, *PYTHONS, "python3"):
        listed, problem = ask(python, "-m", "pip", "config", "list")
        if not problem:
            found = {key.rpartition(".")[2]: value for key, value in re.findall(r"^([\w:.-]+)='(.*)'$", listed, re.M)}
            break
    for name in ("index-url", "find-links"):
        if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
            found[name] = value
    return found


def uv_index() -> str:
    """The index that uv is told to use, or "". uv does not read pip's settings."""
    if value := os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL"):
        return value
    own = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "uv/uv.toml"
    for path in (Path(os.environ.get("UV_CONFIG_FILE") or own), base.ROOT / "etc/uv/uv.toml"):
        if found := re.search(r'^\s*(?:index-url|url)\s*=\s*"([^"]+)"', text_of(path), re.M):
            return found[1]
    return ""


def wikipedia_mirrors() -> list[str]:
    text = text_of(layout.REPOSITORY / "preprocess/sources/sources.yaml")
    found = re.search(r"^zhwiki:.*?^  mirrors:((?:\s+- \S+)+)", text, re.M | re.S)
    return re.findall(r"- (\S+)", found[1]) if found else []


def host_of(url: str) -> str:
    return urlsplit(url).hostname or "an address without a host"


def obstacle(url: str) -> str:
    """Why an address cannot be reached, or "". It is asked for with the credentials that it holds."""
    parts = urlsplit(url)
    headers = {"User-Agent": "myllm-doctor"}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        urllib.request.urlopen(urllib.request.Request(bare, headers=headers), timeout=ADDRESS_WAIT).close()
    except urllib.error.HTTPError as error:
        return f"it answers {error.code} {error.reason}"
    except Exception as error:  # also http.client's, which are not OSErrors
        reason = getattr(error, "reason", error)
        return getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    return ""


def proxies() -> Iterator[Finding]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        value = os.environ.get(name) or os.environ.get(name.upper())
        if not value:
            continue
        if name == "no_proxy":
            yield Finding(name, INFO, value, private=(value,))
            continue
        address = value if "://" in value else f"http://{value}"
        try:
            host, port = host_of(address), urlsplit(address).port
        except ValueError:
            host, port = "an address that cannot be read", None
        yield Finding(name, INFO, f"{host}:{port}" if port else host, private=(host,))


def network() -> Iterator[Finding]:
    yield from proxies()
    pip = pip_settings()
    links = os.environ.get("UV_FIND_LINKS") or pip.get("find-links", "")
    default = PUBLIC["package index"]
    pip_url, uv_url = pip.get("index-url") or default, uv_index() or default
    npm_url = ask("npm", "config", "get", "registry")[0]
    poems = os.environ.get("MYLLM_POETRY_TARBALL")
    wiki = wikipedia_mirrors()
    # name: the addresses of which one is enough, and what else helps
    wanted: dict[str, tuple[list[str], str]] = {}
    same = pip_url.rstrip("/") == uv_url.rstrip("/")
    wanted["pip and uv" if same else "pip"] = ([pip_url], "export PIP_INDEX_URL=MIRROR UV_DEFAULT_INDEX=MIRROR")
    if not same:
        hint = "export UV_DEFAULT_INDEX=MIRROR"
        if uv_url == default:
            hint = "export UV_DEFAULT_INDEX with the mirror of pip's settings: uv does not read those"
        wanted["uv"] = ([uv_url], hint)
    if not links:
        hint = "download the CPU wheel of torch elsewhere and export PIP_FIND_LINKS=FOLDER"
        wanted["PyTorch"] = ([PUBLIC["PyTorch"]], hint)
    endpoint = os.environ.get("HF_ENDPOINT") or PUBLIC["Hugging Face"]
    wanted["Hugging Face"] = ([endpoint], "export HF_ENDPOINT=MIRROR, or `myllm download NAME --from-file FILE`")
    if not poems:
        hint = "npm config set registry MIRROR, or set MYLLM_POETRY_TARBALL (README, Offline use)"
        wanted["npm registry"] = ([npm_url if "://" in npm_url else PUBLIC["npm registry"]], hint)
    if wiki:
        wanted["Wikipedia dumps"] = (wiki, "`myllm download zhwiki --from-file FILE`")
    urls = list(dict.fromkeys(url for group, _ in wanted.values() for url in group))
    probes = {url: f"{url.rstrip('/')}/pip/" if url in (pip_url, uv_url) else url for url in urls}
    answers = at_once([partial(obstacle, probes[url]) for url in urls], ADDRESS_WAIT + 1)
    late = f"no answer in {ADDRESS_WAIT:.0f} s"
    problems = {url: late if answer is None else answer for url, answer in zip(urls, answers)}
    public = {host_of(url) for url in (*PUBLIC.values(), *wiki)}
    for name, (addresses, hint) in wanted.items():
        private = tuple({host_of(url) for url in addresses} - public)
        reached = [host_of(url) for url in addresses if not problems[url]]
        if reached:
            yield Finding(name, OK, ", ".join(reached), private=private)
            continue
        told = "; ".join(f"{host_of(url)}: {problems[url]}" for url in addresses)
        proxy = (
            "" if any(os.environ.get(key) for key in ("https_proxy", "HTTPS_PROXY")) else "export https_proxy=…, or "
        )
        if "CERTIFICATE" in told:
            proxy = "export SSL_CERT_FILE=… with your network's certificate, or "
        yield Finding(name, WARN, told, proxy + hint, private)
    if links:
        missing = [link for link in links.split() if "://" not in link and not Path(link).is_dir()]
        if missing:
            yield Finding(
                "wheels", WARN, f"the folder {missing[0]} does not exist", "unset PIP_FIND_LINKS UV_FIND_LINKS"
            )
        else:
            yield Finding("wheels", INFO, "torch comes from the folder of wheels in PIP_FIND_LINKS or UV_FIND_LINKS")
