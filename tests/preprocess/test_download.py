"""Downloads from a server on this machine that cuts, lies, refuses, forgets ranges and serves another file."""

import hashlib
import http.server
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from artifacts.command import parser_of
from artifacts.errors import UserError
from artifacts.files import read_yaml
from preprocess.sources import download
from preprocess.sources.http import Wanted, fetch, retry_after
from preprocess.sources.shapes import SHAPES

REPOSITORY = Path(__file__).resolve().parents[2]
CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `trouble` is a list of what goes wrong with the next answers, one entry each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.trouble, self.pause = CONTENT, '"v1"', [], 0.0
        self.ranges, self.always = True, None
        self.seen: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.headers: dict[str, str] = {}
        self.texts: dict[str, bytes] = {}
        self.moved: dict[str, str] = {}  # path -> where it redirects to
        self.tokens: dict[str, str | None] = {}  # path -> the Authorization of its last GET

    def handle_error(self, request, client_address) -> None:
        pass  # a client that hangs up in the middle is what is tested

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments):
        pass

    def refuse(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.server.seen.append(("HEAD", self.path, None))
        self.send_response(302)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.seen.append(("GET", self.path, asked))
        server.tokens[self.path] = self.headers.get("Authorization")
        if self.path in server.moved:
            return self.refuse(302, Location=server.moved[self.path])
        if self.path in server.texts:
            if not server.texts[self.path]:
                return self.refuse(404)
            self.send_response(200)
            if self.path.endswith("recursive=true"):  # a first page of the hub's listing
                self.send_header("Link", '<https://the.hub/page-2?cursor=x>; rel="next"')
            self.end_headers()
            self.wfile.write(server.texts[self.path])
            return
        trouble = server.trouble.pop(0) if server.trouble else server.always
        if isinstance(trouble, tuple):
            return self.refuse(trouble[0], **trouble[1])
        content, start = server.content, 0
        current = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.ranges and current and trouble != "no range":
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                return self.refuse(416, Content_Range=f"bytes */{len(content)}")
            self.send_response(206)
            shown = start + 1 if trouble == "wrong range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        length = len(content) - start
        if trouble == "promise more":
            length += 1000
        if trouble == "promise less":
            length -= 1000
        self.send_header("Content-Length", str(length))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        end = start + 700_000 if trouble == "cut" else len(content)
        end = start if trouble == "cut at once" else end
        for place in range(start, min(end, len(content)), 50_000):
            self.wfile.write(content[place : min(place + 50_000, end)])
            if server.pause:
                time.sleep(server.pause)
        self.close_connection = True


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def naps():
    return []


def get(server: Server, folder: Path, naps: list, **wanted) -> bytes:
    known = {"size": len(CONTENT), "digest": SHA256, **wanted}
    fetch(Wanted((server.url,), **known), folder / "file.bin", tries=3, timeout=5, sleep=naps.append)
    assert [path.name for path in folder.iterdir()] == ["file.bin"]  # nothing is left beside
    return (folder / "file.bin").read_bytes()


def test_a_plain_download(server, tmp_path, naps, capsys):
    assert get(server, tmp_path, naps) == CONTENT
    assert re.search(r"progress 3/3 MB, [\d.]+ MB/s, ETA 0:00", capsys.readouterr().out)
    assert len(server.seen) == 1 and naps == []


@pytest.mark.parametrize("known", [{}, {"size": None, "digest": None}])
def test_cut_connections_are_resumed_by_range(server, tmp_path, naps, known):
    server.trouble = ["cut", "cut", "cut"]
    assert get(server, tmp_path, naps, **known) == CONTENT
    ranges = [asked for _, _, asked in server.seen]
    assert ranges == [None, "bytes=700000-", "bytes=1400000-", "bytes=2100000-"]


def test_progress_gives_new_tries_and_none_ends_them(server, tmp_path, naps):
    server.trouble = ["cut at once", "cut at once", "cut", "cut at once", "cut at once", "cut"]
    assert get(server, tmp_path, naps) == CONTENT
    server.always = "cut at once"
    (tmp_path / "file.bin").unlink()
    with pytest.raises(UserError, match=r"file\.bin could not be downloaded .*3 times in a row.*--from-file"):
        get(server, tmp_path, naps)
    assert naps[-1] > naps[-2] > 0  # pauses grow


def test_busy_servers_are_asked_again_when_they_say(server, tmp_path, naps):
    date = formatdate(time.time() + 90, usegmt=True)
    server.trouble = [(429, {"Retry_After": "7"}), (503, {"Retry_After": date}), (503, {})]
    with pytest.raises(UserError, match="HTTP 503"):
        get(server, tmp_path, naps)
    server.trouble = [(429, {"Retry_After": "7"}), (503, {"Retry_After": date})]
    assert get(server, tmp_path, naps := []) == CONTENT
    assert naps[0] == 7 and 80 < naps[1] <= 90
    (tmp_path / "file.bin").unlink()
    server.trouble = [(429, {"Retry_After": "7200"})]
    with pytest.raises(UserError, match="retry in 120 minutes"):
        get(server, tmp_path, naps)


def test_retry_after_holds_seconds_or_a_date():
    assert retry_after("12", 0) == 12
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20) == 40
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 90) == 0
    assert retry_after(None, 0) is None and retry_after("soon", 0) is None


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_final_refusals_are_not_retried_and_the_next_mirror_is_asked(server, tmp_path, naps, code):
    server.always = (code, {})
    with pytest.raises(UserError, match=f"HTTP {code}"):
        get(server, tmp_path, naps)
    assert len(server.seen) == 1 and naps == []
    server.always, server.trouble = None, [(code, {})]
    wanted = Wanted((server.url, server.url + "?mirror"), len(CONTENT), SHA256)
    fetch(wanted, tmp_path / "file.bin", sleep=naps.append)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [path for _, path, _ in server.seen][-2:] == ["/file.bin", "/file.bin?mirror"]


def test_a_server_without_ranges_is_read_from_the_beginning(server, tmp_path, naps):
    server.trouble, server.ranges = ["cut"], False
    assert get(server, tmp_path, naps) == CONTENT


def test_a_range_that_was_not_asked_for_is_not_taken(server, tmp_path, naps):
    server.trouble = ["cut", "wrong range"]
    assert get(server, tmp_path, naps) == CONTENT


def test_a_file_that_changes_in_between_is_read_from_the_beginning(server, tmp_path, naps):
    server.trouble = ["cut"]
    new = bytes(reversed(CONTENT))

    def change(pause: float) -> None:
        server.content, server.etag = new, '"v2"'

    fetch(Wanted((server.url,)), tmp_path / "file.bin", sleep=change)
    assert (tmp_path / "file.bin").read_bytes() == new


@pytest.mark.parametrize(
    ("lie", "message"), [("promise more", "offers 3,001,000 bytes"), ("promise less", "offers 2,999,000 bytes")]
)
def test_servers_that_lie_about_length(server, tmp_path, naps, lie, message):
    server.always = lie
    with pytest.raises(UserError, match=message):
        get(server, tmp_path, naps)
    assert not (tmp_path / "file.bin").exists()
    if lie == "promise less":  # without a known size, the checksum tells that it is cut, or whole after all
        with pytest.raises(UserError, match="sha256"):
            get(server, tmp_path, naps, size=None)
    else:
        assert get(server, tmp_path, naps, size=None) == CONTENT


def test_a_wrong_checksum_is_refused_and_named(server, tmp_path, naps):
    server.content = bytes(len(CONTENT))
    with pytest.raises(UserError, match=r"sha256 [0-9a-f]{64}, published [0-9a-f]{64}"):
        get(server, tmp_path, naps)
    assert not (tmp_path / "file.bin").exists()
    assert not (tmp_path / ".file.bin.download").exists()


def test_what_was_resumed_wrongly_is_fetched_once_more(server, tmp_path, naps):
    (tmp_path / ".file.bin.download").write_bytes(b"another version" * 100)
    assert get(server, tmp_path, naps) == CONTENT


def test_two_at_once_are_refused(server, tmp_path, naps):
    import fcntl

    with (tmp_path / ".file.bin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="by another process"):
            fetch(Wanted((server.url,)), tmp_path / "file.bin")


def source_command(*arguments: str) -> list[str]:
    script = "import sys; sys.path.insert(0, '.'); from preprocess.sources import download\n"
    script += "from pathlib import Path\n"
    script += "from artifacts.command import run_command; from artifacts.errors import run_main\n"
    script += "download.SOURCES = Path(sys.argv.pop(1)); run_main(lambda: run_command(download))"
    return [sys.executable, "-c", script, *arguments]


def sources(folder: Path, text: str) -> str:
    path = folder / "sources.yaml"
    path.write_text(text)
    return str(path)


def test_killed_in_the_middle_and_run_again_goes_on(server, tmp_path):
    server.pause = 0.05
    listing = sources(
        tmp_path,
        f"x: {{kind: url, files: [file.bin], mirrors: ['http://127.0.0.1:{server.server_port}'], licence: none,"
        f" digest: '{SHA256}', bytes: {len(CONTENT)}}}\n",
    )
    environment = {**os.environ, "MYLLM_CACHE": str(tmp_path / "cache")}
    command = source_command(listing, "x")
    killed = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    partial = tmp_path / "cache" / "x" / ".file.bin.download"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size > 500_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    have = partial.stat().st_size
    assert 500_000 < have < len(CONTENT)
    server.pause = 0
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert server.seen[-1] == ("GET", "/file.bin", f"bytes={have}-")
    assert (tmp_path / "cache" / "x" / "file.bin").read_bytes() == CONTENT
    asked = len(server.seen)
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert "(cached)" in again.stdout and len(server.seen) == asked


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    listing = "x: {kind: hub, repository: some/corpus, files: ['a/{08..10}.bin'], licence: none}\n"
    monkeypatch.setattr(download, "SOURCES", Path(sources(tmp_path, listing)))
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server.headers = {"X-Linked-Size": str(len(CONTENT)), "X-Linked-Etag": f'"{SHA256[7:]}"'}
    return server


def test_hub_datasets_come_from_the_endpoint_checked_by_what_the_hub_tells(hub, tmp_path):
    folder = download.download("x", wish=2)
    assert sorted(p.name for p in (folder / "a").iterdir()) == ["08.bin", "09.bin"]
    assert ("GET", "/datasets/some/corpus/resolve/main/a/08.bin", None) in hub.seen
    hub.content = CONTENT[:-1] + b"x"
    with pytest.raises(UserError, match="sha256"):
        download.download("x")
    assert not (folder / "a" / "10.bin").exists()


def test_offline_nothing_is_fetched_but_the_cache_serves(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"some/corpus/a/08\.bin is not in the cache and HF_HUB_OFFLINE is set"):
        download.download("x")
    assert hub.seen == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    download.download("x", wish=1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download.download("x", wish=1).exists()


@pytest.fixture
def tree(hub, tmp_path, monkeypatch):
    """A dataset whose files only the hub knows, listed on two pages."""
    listing = "x: {kind: hub, repository: some/corpus, files: ['4_5/*.bin', '3_4/*.bin', 'no/*.bin'], licence: none,"
    monkeypatch.setattr(
        download, "SOURCES", Path(sources(tmp_path, listing + " gated: true, about_files: 8, about_gb: 4}\n"))
    )
    monkeypatch.setenv("HF_TOKEN", "secret")

    def page(*paths: str) -> bytes:
        every = [{"type": "file", "path": path, "size": len(CONTENT), "oid": "0"} for path in paths]
        return json.dumps([{"type": "directory", "path": "4_5"}, *every]).encode()

    for folder in ("3_4", "4_5"):
        hub.texts[f"/api/datasets/some/corpus/tree/main/{folder}?recursive=true"] = page(f"{folder}/a.bin")
    hub.texts["/api/datasets/some/corpus/tree/main/no?recursive=true"] = b""  # a folder that is not there
    hub.texts["/page-2?cursor=x"] = page("3_4/b.bin", "4_5/b.bin", "4_5/readme.md")
    return hub


def test_names_that_only_the_hub_knows_are_asked_for(tree, tmp_path, monkeypatch, capsys):
    download.run(parser_of(download).parse_args(["x", "--files", "3", "--dry-run"]))
    said = capsys.readouterr().out
    assert said.index("4_5/a.bin (to be downloaded, 3,000,000 bytes)") < said.index("3_4/a.bin")  # the best part first
    assert "x: 3 of 4 files, 0.0 GB; licence: none" in said
    assert not any("/resolve/" in path for _, path, _ in tree.seen)
    assert not download.source_file("x").exists()  # nothing is there that looks like a download
    folder = download.download("x", wish="3_4/*/1")
    assert folder == tmp_path / "cache" / "x" and [p.name for p in folder.rglob("*.bin")] == ["a.bin"]
    assert set(tree.tokens.values()) == {"Bearer secret"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download.download("x", wish="3_4/a*") == folder  # the list was kept
    with pytest.raises(UserError, match="--files 9/x matches none of 4 files: they are 4_5/a.bin … 3_4/b.bin"):
        download.download("x", wish="9/x")


def test_a_token_is_not_sent_on_after_a_redirect(tree, tmp_path):
    tree.moved["/datasets/some/corpus/resolve/main/4_5/a.bin"] = "/cdn"
    download.download("x", wish=1)
    assert tree.tokens["/datasets/some/corpus/resolve/main/4_5/a.bin"] == "Bearer secret"
    assert tree.tokens["/cdn"] is None


def test_a_gated_dataset_says_how_to_enter(tree, tmp_path, monkeypatch):
    mend = r"accept its terms on https://huggingface.co/datasets/some/corpus and set HF_TOKEN"
    tree.always = (403, {})
    with pytest.raises(UserError, match=f"the hub refuses 4_5/a.bin: {mend}"):
        download.download("x")
    tree.texts.clear()
    with pytest.raises(UserError, match=f"the hub does not list some/corpus .HTTP 403 Forbidden.: {mend}"):
        download.download("x")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    seen = len(tree.seen)
    with pytest.raises(UserError, match=f"x is gated: {mend}"):
        download.download("x")
    assert len(tree.seen) == seen


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        (None, ["a/1.x", "a/2.x", "b/1.x"]),
        (2, ["a/1.x", "a/2.x"]),
        ("9", ["a/1.x", "a/2.x", "b/1.x"]),
        ("b/*", ["b/1.x"]),
        ("*1.x/1", ["a/1.x"]),
    ],
)
def test_which_files(wish, wanted):
    assert download.selected(["a/1.x", "a/2.x", "b/1.x"], wish) == wanted


def test_the_disk_that_a_part_needs(tree):
    source = download.load_source("x")
    assert [download.share_of(source, wish) for wish in (None, "2", "4_5/*/2", "4_5/*")] == [1.0, 0.25, 0.25, None]


def test_digests_are_read_from_the_publishers_listing(server, tmp_path, monkeypatch):
    listing = (
        f"x: {{kind: url, files: [wiki-latest-pages.bz2], mirrors: ['http://127.0.0.1:{server.server_port}'],"
        " digests: {algorithm: sha1, file: sums.txt}, licence: none}\n"
    )
    monkeypatch.setattr(download, "SOURCES", Path(sources(tmp_path, listing)))
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    right = hashlib.sha1(CONTENT).hexdigest()
    server.texts["/sums.txt"] = f"{'0' * 40}  wiki-20240101-other.bz2\n{'1' * 40}  wiki-20240101-pages.bz2\n".encode()
    with pytest.raises(UserError, match="sha1"):
        download.download("x")
    server.texts["/sums.txt"] = f"{right}  wiki-20240101-pages.bz2\n".encode()
    assert download.download("x").read_bytes() == CONTENT


def test_own_files_and_folders_are_linked(tmp_path, monkeypatch):
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "WuDao"
    own.mkdir()
    (own / "part.json").write_text("[]")
    with pytest.raises(UserError, match=r"wudao cannot be downloaded.*get it from data\.baai.*--from-file"):
        download.download("wudao")
    assert (download.download("wudao", [own]) / "part.json").read_text() == "[]"
    assert download.download("wudao") == download.source_file("wudao")
    mine = tmp_path / "mine.json"
    mine.write_text("[]")
    for name in ("wikipedia-cn-filtered", "baidu-baike", "alpaca-zh", "belle-1m"):
        assert download.download(name, [mine]).read_text() == "[]", name
        assert download.download(name).resolve() == mine, name
    with pytest.raises(UserError, match="does not exist"):
        download.download("wudao", [tmp_path / "none"])


def test_some_files_of_a_source_of_several_are_linked_under_their_published_names(tmp_path, monkeypatch):
    """measured-2: a dump fetched by hand became the source's whole folder, and was then called damaged."""
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "fetch", None)  # nothing is downloaded beside it
    dump, part = tmp_path / "zhwiki-20261101-pages-articles-multistream.xml.bz2", tmp_path / "mine.json.gz"
    for path in (dump, part):
        path.write_bytes(b"x")
    known = "multilingual/c4-zh.tfrecord-00003-of-01024.json.gz"
    (tmp_path / Path(known).name).write_bytes(b"x")
    wanted = {
        "zhwiki": ([dump], ["zhwiki-latest-pages-articles-multistream.xml.bz2"]),
        "c4-zh": ([tmp_path / Path(known).name, part], ["mine.json.gz", known]),
    }
    for name, (given, names) in wanted.items():
        for _ in range(2):
            folder = download.download(name, given)
            files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            assert files == names and not folder.is_symlink()
        assert download.download(name) == folder
    whole = tmp_path / "whole"
    whole.mkdir()
    assert download.download("zhwiki", [whole]).resolve() == whole


def test_every_source_is_described():
    readers = {"wiki_dump", "examples.poetry.extract", "instructions", *SHAPES}
    entries = read_yaml(download.SOURCES)
    entries = {name: source for name, source in entries.items() if "unpack" not in source}  # test_evaluate_sets.py
    assert len(entries) == 26
    for name, source in entries.items():
        assert source["kind"] in {"npm", "file", "url", "hub", "own"} and source["licence"], name
        assert source["reader"] in readers, name
        assert source["kind"] not in ("url", "hub") or source["files"], name
        assert download.source_file(name).name
        assert set(source) <= {
            "kind", "package", "version", "bytes", "integrity", "licence", "home", "reader", "path", "about_gb",
            "about_files", "files", "mirrors", "digests", "repository", "text_key", "columns", "score", "score_range",
            "gated", "warning",
        }, name  # fmt: skip
        if source["reader"] == "jsonl":
            assert {source.get("text_key", "text"), source.get("score")} <= {*source["columns"], None}, name
    assert len(download.expand(entries["c4-zh"]["files"][0])) == 1024


def test_download_refuses_what_is_not_the_published_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    short = tmp_path / "short.tgz"
    short.write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="truncated or another version"):
        download.download("chinese-poetry", [short])
    assert not download.source_file("chinese-poetry").exists()
    with pytest.raises(UserError, match="did you mean 'chinese-poetry'"):
        download.download("chinese-poery")


def test_missing_npm_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed: install Node.js.*MYLLM_POETRY_TARBALL"):
        download.npm_pack("chinese-poetry", "2.0.1", tmp_path)


def test_failing_npm_is_one_line(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network getaddrinfo ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="ENOTFOUND.*check the network"):
        download.npm_pack("chinese-poetry", "2.0.1", tmp_path)
