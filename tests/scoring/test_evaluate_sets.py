"""Evaluation sets: fetched with their checksum from a server on this machine, or a user's own copy, put in place."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UserError
from artifacts.files import read_yaml
from eval_configs.plan import set_of
from launch.scoring.arguments import CONFIGS
from preprocess.sources import download
from preprocess.sources.unpack import innermost

FILES = {f"{split}/law_{split}.csv": f"id,question\n0,{split}\n" for split in ("dev", "val", "test")}


def zipped(files: dict[str, str], prefix: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(prefix + name, text)
        archive.writestr("__MACOSX/" + prefix + "dev/._law_dev.csv", "junk")
    return stream.getvalue()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served, and sources.yaml with `ceval` from there; the cache is empty."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "ceval.zip").write_bytes(zipped(FILES, "ceval/formal_ceval/"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = hashlib.md5((served / "ceval.zip").read_bytes()).hexdigest()
    sources = tmp_path / "sources.yaml"
    sources.write_text(f"""
ceval:
  kind: url
  files: [ceval.zip]
  mirrors: [http://127.0.0.1:{server.server_port}]
  digest: md5:{digest}
  licence: test
  unpack: {{into: data/ceval/formal_ceval, holding: [dev, val, test]}}
c3:
  kind: own
  licence: test
  home: somewhere
  unpack: {{into: data/CLUE/C3, holding: [dev_0.json]}}
""")
    monkeypatch.setattr(download, "SOURCES", sources)
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    yield served
    server.shutdown()
    server.server_close()


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_set_is_fetched_checked_and_put_where_opencompass_looks(mirror: Path, tmp_path: Path) -> None:
    place = download.download("ceval")
    assert place == tmp_path / "cache" / "opencompass" / "data" / "ceval" / "formal_ceval"
    assert contents(place) == FILES
    (place / "val" / "law_val.csv").unlink()
    (mirror / "ceval.zip").unlink()
    assert contents(download.download("ceval")) == FILES, "a damaged set is put in place again, without network"


def test_a_file_that_is_not_the_published_one_is_refused(mirror: Path, tmp_path: Path) -> None:
    (mirror / "ceval.zip").write_bytes(zipped(FILES, "other/"))
    with pytest.raises(UserError, match="differs from the published file"):
        download.download("ceval")
    assert not (tmp_path / "cache" / "opencompass").exists()


@pytest.mark.parametrize("prefix", ["", "ceval-exam/", "data/ceval/formal_ceval/"])
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_your_own_copy_in_whatever_folder(mirror: Path, tmp_path: Path, prefix: str, kind: str) -> None:
    own = tmp_path / "own.zip"
    own.write_bytes(zipped(FILES, prefix))
    if kind == "folder":
        with zipfile.ZipFile(own) as archive:
            own = tmp_path / "own"
            archive.extractall(own)
    assert contents(download.download("ceval", [own])) == FILES


def test_what_is_not_the_set_is_refused(mirror: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.zip"
    own.write_bytes(zipped({"dev/law_dev.csv": "x"}, ""))
    with pytest.raises(UserError, match="own.zip has no folder with dev, val, test"):
        download.download("ceval", [own])
    own.write_bytes(zipped(FILES, "")[:100])
    with pytest.raises(UserError, match="not a whole zip file"):
        download.download("ceval", [own])
    with pytest.raises(UserError, match="get it from somewhere"):
        download.download("c3")


def test_the_innermost_folder_is_the_shortest_that_holds_all() -> None:
    names = ["a/dev/x", "a/val/x", "a/test/x", "a/b/dev/x", "a/b/val/x", "a/b/test/x", "dev/x"]
    assert str(innermost(names, ["dev", "val", "test"])) == "a"
    assert innermost(["dev/x", "val/x"], ["dev", "val", "test"]) is None
    assert str(innermost(["z/dev_0.json"], ["dev_0.json"])) == "z"


def test_nothing_is_written_outside(mirror: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.zip"
    own.write_bytes(zipped({**FILES, "dev/../../../evil.csv": "x"}, "a/"))
    assert contents(download.download("ceval", [own])) == FILES
    assert not list(tmp_path.rglob("evil.csv"))


def test_every_set_says_what_a_reader_needs_and_can_be_fetched() -> None:
    sets, sources = read_yaml(CONFIGS / "sets.yaml"), read_yaml(Path(download.__file__).with_name("sources.yaml"))
    for name, entry in sets.items():
        assert {"match", "title", "choices", "licence", "protocol"} <= set(entry), name
        if "data" in entry:
            into = sources[name]["unpack"]["into"]
            assert entry["data"] == into or entry["data"].startswith(into + "/"), name
    assert set_of("ceval-law-ppl", sets) == "ceval"
    with pytest.raises(UserError, match="0 entries of sets.yaml match the dataset 'mmlu-law'"):
        set_of("mmlu-law", sets)
