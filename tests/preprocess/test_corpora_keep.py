"""Documents are kept by a value that their corpus brings; the card shows how the values are spread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import read_json, read_jsonl
from preprocess.corpora import keep
from preprocess.corpora.pipeline import Settings, prepare_blocks
from preprocess.corpora.source import make_source
from preprocess.sources import download, rehearsal
from preprocess.sources.shapes import document, shape_of


def fill(name: str, cache: Path) -> None:
    place = cache / download.source_file(name).relative_to(download.cache_folder())
    rehearsal.fill_source(name, download.load_source(name), cache / "none", place, 1, 60)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYLLM_CACHE", str(folder / "cache"))
        for name in ("fineweb-edu-chinese", "chinese-webtext2", "skypile"):
            fill(name, folder / "cache")
        done = corpora(
            folder, "--source", "fineweb-edu-chinese", "chinese-webtext2", "skypile",
            "--keep", "fineweb-edu-chinese=score>=3.5", "--keep", "chinese-webtext2=toxicity.score<0.5",
            "--keep", "chinese-webtext2=quality_score>0.2", "--no-quality", "--no-deduplicate",
            "--output-folder", folder / "clean",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def corpora(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", "corpora", *map(str, words), "--tasks", "1"]
    environment = {**os.environ, "MYLLM_CACHE": str(folder / "cache")}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def kept(corpus: Path, source: str) -> list[dict]:
    return [row["metadata"] for row in read_jsonl(corpus / "clean/shards" / source / "00000.jsonl.zst")]


def test_only_what_meets_the_rules_is_kept_with_its_score(corpus: Path) -> None:
    educational = [row["score"] for row in kept(corpus, "fineweb-edu-chinese")]
    assert 20 < len(educational) < 40 and min(educational) >= 3.5
    pages = kept(corpus, "chinese-webtext2")
    assert 10 < len(pages) < 40
    assert all(row["toxicity.score"] < 0.5 and row["quality_score"] > 0.2 for row in pages)
    assert len(kept(corpus, "skypile")) == 60
    dropped = list(read_jsonl(corpus / "clean/dropped/keep/00000.jsonl.zst"))
    assert {row["dropped"] for row in dropped} == {"not score>=3.5"} and len(dropped) + len(educational) == 60


def test_the_card_has_the_scores_before_any_was_dropped(corpus: Path) -> None:
    card = read_json(corpus / "clean/data_card.json")
    names = {f"chinese-webtext2 {name}" for name in ("quality_score", "toxicity.score")} | {"fineweb-edu-chinese score"}
    assert {*card["scores"]} == names
    for bins in card["scores"].values():
        assert sum(count for _, count in bins) == 60 and len(bins) <= keep.SHOWN and bins == sorted(bins)
    assert card["steps"]["keep"]["dropped"]["not score>=3.5"] > 20
    told = (corpus / "clean/data_card.md").read_text()
    assert "## fineweb-edu-chinese score" in told and "| 100.0 % |" in told
    assert "scores that the corpora bring" in (corpus / "clean/data_card.svg").read_text()


def test_a_key_that_no_document_has_stops_the_run(corpus: Path) -> None:
    source = ("--source", "fineweb-edu-chinese", "--keep", "scor>=3")
    done = corpora(corpus, *source, "--output-folder", corpus / "wrong")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --keep scor>=3: no document of fineweb-edu-chinese has scor; they have score")


@pytest.mark.parametrize(
    ("rule", "metadata", "reason"),
    [
        ("score>=3", {"score": 3}, None),
        ("score >= 3", {"score": "3.0"}, None),
        ("score>=3", {"score": 2.99}, "not score>=3"),
        ("score>=3", {"score": float("nan")}, "no score"),
        ("score>=3", {"score": True}, "no score"),
        ("score>=3", {}, "no score"),
        ("domain.single_label==news", {"domain.single_label": "news"}, None),
        ("domain.single_label!=news", {"domain.single_label": "news"}, "not domain.single_label!=news"),
        ("score<-0.5", {"score": -1}, None),
    ],
)
def test_rules(rule: str, metadata: dict, reason: str | None) -> None:
    assert keep.rule_of(rule).broken(metadata) == reason


@pytest.mark.parametrize("rule", ["score", "score=>3", "score>=high", ">=3", "score>="])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match="is not a rule: write NAME>=NUMBER"):
        keep.rule_of(rule)


def test_bins() -> None:
    assert [keep.bin_of(number) for number in (0.0, 0.049, 0.05, 0.3, 0.7, 4.99, -0.01, 12.3, 4321)] == [
        0.0, 0.0, 0.05, 0.3, 0.7, 4.95, -0.05, 12.0, 4300.0,
    ]  # fmt: skip
    ((name, bins),) = keep.histograms({f"x score|{low / 20}": 1 for low in range(100)}).items()
    assert name == "x score" and len(bins) == keep.SHOWN and bins[1] == (0.25, 5)


def test_a_corpus_without_scores_has_no_such_step(tmp_path: Path) -> None:
    source = make_source("skypile", ["x.jsonl"], None, None, None)
    (tmp_path / "x.jsonl").write_text("{}")
    files = {"skypile": [(str(tmp_path / "x.jsonl"), 2)]}
    blocks = prepare_blocks(Settings((source,), 1), files, tmp_path, source)
    assert [block.name for block in blocks][:2] == ["read", "normalise"]


def test_scalars_in_objects_become_metadata() -> None:
    record = {"text": "a", "domain": {"single_label": "news", "multi_label": ["x"]}, "metadata": {"y": 1}}
    found = document(shape_of("jsonl"), record, "0")["metadata"]
    assert found == {"domain.single_label": "news", "y": 1}
