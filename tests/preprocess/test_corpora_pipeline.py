"""The whole chain on every executor: same bytes, whatever kills it; clear errors; the data card adds up."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import MISSING, available

from artifacts.command import parser_of
from artifacts.errors import UserError
from artifacts.files import read_json, read_jsonl, sha256, write_json, write_jsonl
from preprocess.corpora import data_card, pipeline
from preprocess.corpora.blocks import names_of

REPOSITORY = Path(__file__).resolve().parents[2]
SENTENCES = [
    "春风吹过江面，渡口的船夫正在收网。",
    "山上的寺庙建于唐代，碑文至今清晰可读。",
    "他把信折好，放进抽屉，再也没有提起。",
    "研究者比较了两种方法，发现后者更省时间。",
    "車站旁的書店賣舊書，老闆姓陳。",
    "雨下了一整夜，清晨的街道空无一人。",
    "這項技術改變了人們交流的方式。",
    "孩子们在操场上放风筝，线断了也不着急。",
]


def corpus(path: Path, count: int) -> Path:
    rng = random.Random(8)
    lines = []
    for i in range(count):
        words = [rng.choice(SENTENCES) + chr(0x4E00 + rng.randrange(3000)) * 2 for _ in range(rng.randint(3, 40))]
        lines.append(json.dumps({"text": "\n".join(words), "url": f"u{i}"}, ensure_ascii=False))
        if i % 10 == 0:
            lines.append(lines[-1])
        if i % 50 == 0:
            lines.append(json.dumps({"text": "加微信代开发票，免费咨询。", "url": "spam"}, ensure_ascii=False))
    lines[7] = "broken"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def command(source: Path, folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "preprocess.corpora.pipeline", "--source", "c4_zh", "--input", str(source)),
        *("--output-folder", str(folder), "--tasks", "5", *map(str, more)),
    ]


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # type: ignore[arg-type]


def results(folder: Path) -> dict[str, str]:
    """Hashes of everything that a run hands on."""
    files = [*folder.glob("shards/*"), *folder.glob("dropped/*/*"), *folder.glob("data_card.*")]
    return {str(path.relative_to(folder)): sha256(path) for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A corpus and a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("pipeline")
    source = corpus(folder / "corpus.jsonl", 3000)
    done = run(source, folder / "whole", "--workers", "2")
    assert done.returncode == 0, done.stderr
    return source, folder / "whole"


def test_the_card_adds_up(whole):
    _, folder = whole
    card = read_json(folder / "data_card.json")
    rows = [row for path in sorted((folder / "shards").glob("*")) for row in read_jsonl(path)]
    assert card["documents"] == len(rows) and card["characters"] == sum(len(row["text"]) for row in rows)
    steps = card["steps"]
    for before, after in zip(list(steps.values()), list(steps.values())[1:]):
        assert before["documents_out"] == after["documents_in"]
    for step in steps.values():
        assert step["documents_in"] - step["documents_out"] == sum(step["dropped"].values())
    assert steps["read"]["dropped"] == {"not JSON": 1}
    assert steps["read"]["problems"][0]["line"] == 8
    assert steps["quality"]["dropped"]["advert"] == 60
    assert steps["deduplicate"]["dropped"]["same text"] >= 299
    dropped = [row for path in (folder / "dropped/deduplicate").glob("*") for row in read_jsonl(path)]
    assert len(dropped) == sum(steps["deduplicate"]["dropped"].values()) and all(row["repeats"] for row in dropped)
    assert "车站旁的书店卖旧书" in "".join(row["text"] for row in rows)
    assert "advert" in (folder / "data_card.md").read_text() and "<svg" in (folder / "data_card.svg").read_text()
    assert sum(steps["deduplicate"]["lengths"].values()) == len(rows)


def test_the_card_tells_the_tokens_of_what_was_binned(whole, tmp_path):
    _, folder = whole
    copied = tmp_path / "run"
    copied.mkdir()
    for name in ("settings.json", "reports"):
        (copied / name).symlink_to(folder / name)
    documents = read_json(folder / "data_card.json")["documents"]
    report = tmp_path / "mine.binning.json"
    write_json(report, {"documents": documents, "tokens": documents * 101})
    card = data_card.write_card(copied, [report])
    assert card["characters_per_token"] == round(card["characters"] / (100 * documents), 3)
    assert f"{documents * 101:,} tokens" in (copied / "data_card.md").read_text()
    write_json(report, [])
    with pytest.raises(UserError, match="mine.binning.json is not a report of `myllm binning`"):
        data_card.write_card(copied, [report])


def test_one_worker_gives_the_same_bytes(whole, tmp_path):
    source, folder = whole
    assert run(source, tmp_path / "one", "--workers", "1").returncode == 0
    mine, theirs = results(tmp_path / "one"), results(folder)
    assert mine == theirs


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 2.5, 4.0])
def test_killed_and_run_again_gives_the_same_bytes_and_does_no_shard_twice(whole, tmp_path, seconds):
    source, folder = whole
    started = subprocess.Popen(
        command(source, tmp_path / "run", "--workers", "2"),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    marks = [path for path in (tmp_path / "run" / "logs").glob("*/completions/*")]
    before = {path: path.stat().st_mtime_ns for path in marks}
    done = run(source, tmp_path / "run", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in marks} == before
    assert results(tmp_path / "run") == results(folder)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_workers_end_when_their_executor_is_killed_alone(whole, tmp_path):
    source, _ = whole
    started = subprocess.Popen(
        command(source, tmp_path / "run", "--workers", "2"),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not list((tmp_path / "run").rglob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + 10
    while (left := session_of(started.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        assert not left
    finally:
        try:
            os.killpg(started.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def session_of(session: int) -> list[str]:
    listed = subprocess.run(["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if "defunct" not in line]


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(whole, tmp_path):
    source, folder = whole
    before = results(folder)
    again = run(source, folder, "--workers", "2")
    assert again.returncode == 0 and results(folder) == before
    other = run(source, folder, "--no-mask")
    assert other.returncode == 2
    assert (
        other.stderr.startswith("error: ") and "run with other mask" in other.stderr and other.stderr.count("\n") == 1
    )
    (tmp_path / "phrases.txt").write_text("書店\t书铺\n", encoding="utf-8")
    other = run(source, folder, "--phrases", tmp_path / "phrases.txt")
    assert other.returncode == 2 and "run with other phrases" in other.stderr


def test_the_users_phrases_are_used_and_kept(tmp_path):
    source = corpus(tmp_path / "corpus.jsonl", 100)
    (tmp_path / "phrases.txt").write_text("書店\t书铺\n", encoding="utf-8")
    done = run(source, tmp_path / "run", "--phrases", tmp_path / "phrases.txt", "--tasks", "1")
    assert done.returncode == 0, done.stderr
    text = "".join(row["text"] for path in (tmp_path / "run/shards").glob("*") for row in read_jsonl(path))
    assert "车站旁的书铺卖旧书" in text and "书店" not in text
    assert read_json(tmp_path / "run/settings.json")["phrases"] == [["書店", "书铺"]]


def test_errors_are_one_line(tmp_path):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"content": "文"}\n' * 200, encoding="utf-8")
    for workers in ("1", "2"):
        failed = run(wrong, tmp_path / f"out{workers}", "--workers", workers)
        assert failed.returncode == 2, failed.stderr
        assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1, failed.stderr
        assert "no key 'text'" in failed.stderr and "wrong.jsonl line " in failed.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_the_rerun_finishes(whole, tmp_path):
    source, folder = whole
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        full = run(source, disk / "run", "--workers", "1")
        assert full.returncode == 2 and "disk full" in full.stderr and full.stderr.count("\n") == 1, full.stderr
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert run(source, disk / "run", "--workers", "1").returncode == 0
        assert results(disk / "run") == results(folder)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slurm
@pytest.mark.skipif(not available(), reason=MISSING)
def test_slurm_gives_the_same_bytes(whole, cluster, tmp_path, monkeypatch):
    source, folder = whole
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    options = ("--executor", "slurm", "--partition", "batch", "--workers", "2", "--time", "00:10:00")
    try:
        submitted = run(source, tmp_path / "run", *options, "--mem-per-cpu-gb", "1")
        assert submitted.returncode == 0, submitted.stderr
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "run/logs/deduplicate/completions").glob("*"))) < 5:
            assert time.monotonic() < deadline
            time.sleep(1)
    finally:  # others share the cluster
        subprocess.run(["scancel", "-u", "root"], env=cluster, check=True)
    card = [sys.executable, "-m", "preprocess.corpora.data_card", "--folder", str(tmp_path / "run")]
    subprocess.run(card, cwd=REPOSITORY, check=True, capture_output=True)
    assert results(tmp_path / "run") == results(folder)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_without_ray_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    source = corpus(tmp_path / "corpus.jsonl", 100)
    arguments = parser_of(pipeline).parse_args(command(source, tmp_path / "run", "--executor", "ray")[3:])
    with pytest.raises(UserError, match="--executor ray needs the package ray .*uv pip install"):
        pipeline.run(arguments)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(whole, tmp_path):
    pytest.importorskip("ray", reason="no lock file has Ray")
    source, folder = whole
    done = run(source, tmp_path / "run", "--executor", "ray", "--workers", "2", "--mem-per-cpu-gb", "1")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run") == results(folder)


def test_made_up_ids_are_no_reason_to_drop_a_document(tmp_path):
    """Files of a corpus without ids, as long as each other: the documents at one place of each are not the same."""
    for folder in ("one", "two"):
        for file in range(2):
            rows = [
                {
                    "text": f"第{n}篇：{folder}{file}号文件里说，江边的小城每到秋天就满是桂花香，行人都放慢脚步。",
                    "url": "u",
                }
                for n in range(5)
            ]
            write_jsonl(tmp_path / folder / f"c4-zh.tfrecord-0000{file}.json.gz.jsonl", rows)
    command = [
        sys.executable,
        "-m",
        "preprocess.corpora.pipeline",
        "--source",
        "c4_zh",
        "--tasks",
        "1",
        "--workers",
        "1",
    ]
    for folder in ("one", "two"):
        command += ["--input", str(tmp_path / folder)]
    done = subprocess.run(
        [*command, "--output-folder", str(tmp_path / "out")], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    dropped = [row for file in (tmp_path / "out").glob("dropped/**/*.jsonl*") for row in read_jsonl(file)]
    assert not [row for row in dropped if row.get("dropped") == "same id"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ({"d/c4-zh.00001.jsonl.gz"}, {"c4-zh"}),
        ({"d/c4-zh.00001.jsonl.gz", "d/c4-zh.00002.jsonl.gz"}, {"c4-zh.00001", "c4-zh.00002"}),
        ({"d/a.jsonl", "d/b.jsonl"}, {"a", "b"}),
        ({"d/1/part.json", "d/2/part.json"}, {"1/part", "2/part"}),
        ({"d/a.json", "d/a.jsonl"}, {"a.json", "a.jsonl"}),
        ({"s3://bucket/x/a.json", "s3://bucket/y/a.json"}, {"x/a", "y/a"}),
    ],
)
def test_files_have_names_that_tell_them_apart(paths, names):
    assert set(names_of(paths).values()) == names
