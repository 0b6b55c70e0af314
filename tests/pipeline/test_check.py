"""What is wrong with a pipeline is told before it starts: a mistake planted in each kind of stage, one at a time."""

import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from artifacts import ahead as ahead_module
from artifacts.errors import UserError
from artifacts.layout import REPOSITORY, Run
from launch.pipeline.check import look, refuse
from launch.pipeline.definition import PIPELINES, load_pipeline

TEXT = (PIPELINES / "zh-0.5b.yaml").read_text(encoding="utf-8")
PLANTED = {
    "an option": ("--vocab-size {vocab}\n", "--vocab-sizes {vocab}\n", "unrecognized arguments: --vocab-sizes"),
    "a command": ("myllm blend --folder", "myllm blende --folder", "not a command (did you mean 'blend'?)"),
    "a source": ("sources: zhwiki wikipedia", "sources: zhwikis wikipedia", "did you mean 'zhwiki'"),
    "a set that is not downloaded": ("sets: ceval cmmlu chid", "sets: ceval cmmlu c3", "c3 cannot be downloaded"),
    "a set that there is not": ("--suite base_ppl --sets {sets}", "--suite base_ppl --sets cevall", "'ceval'"),
    "a source of the blend": ("baidu-baike:0.35 c4-zh:0.50", "baidubaike:0.35 c4-zh:0.50", "baidubaike-train.idx"),
    "a weight of the blend": ("zhwiki:0.10 ", "zhwiki:-0.10 ", "with a positive number"),
    "a key of Megatron's recipe": ("--training {training} --hardware {hardware} --run {run}\n",
                                   "--training {training} --hardware {hardware} --run {run} --set keep-last=0\n",
                                   "keep-last is 0; it must be at least 1"),
    "a recipe": ("anneal: zh-10b-anneal", "anneal: zh-10b-aneal", "zh-10b-aneal.yaml, which does not exist"),
    "a phase that is no longer": ("anneal: zh-10b-anneal", "anneal: zh-10b-stable", "ends at 17166"),
    "a batch that does not fit": ("--run {run}\n    reads: [\"megatron_configs/models",
                                  "--run {run} --set global-batch-size=100\n    reads: [\"megatron_configs/models",
                                  "not a multiple of micro-batch-size"),
    "a checkpoint": ("--checkpoint {run}/checkpoints-anneal", "--checkpoint {run}/checkpoint-anneal", "pretrain it in"),
    "a key of LLaMA-Factory": ("sft: --set cutoff_len=2048", "sft: --set cutof_len=2048", "did you mean 'cutoff_len'"),
    "a value of LLaMA-Factory": ("learning_rate=2.0e-5", "learning_rate=low", "learning_rate is 'low'"),
    "a length": ("sft: --set cutoff_len=2048", "sft: --set cutoff_len=200000",
                 "cutoff_len is 200000, but runs/x/models/base will have max_position_embeddings 32768"),
    "a data set": ("--set eval_dataset=dpo_zh_valid", "--set eval_dataset=dpo_valid", "valid.json): correct the"),
    "a model": ("serve-gate --model {run}/models/dpo ", "serve-gate --model {run}/models/dpoo ", "dpoo does not exist"),
    "prompts": ("stage_samples.json\n      - myllm report", "x.json --prompts {run}/none.yaml\n      - myllm report",
                "none.yaml does not exist"),
    "a module": ("      - myllm report {run}", "      - python -m launch.report.reprot {run}", "is no such module"),
}  # fmt: skip


def looked_at(folder: Path, text: str, run: str = "runs/x") -> list[tuple[str, str]]:
    file = folder / "planted.yaml"
    file.write_text(text, encoding="utf-8")
    pipeline = load_pipeline(str(file), REPOSITORY / run)
    return look(pipeline, pipeline.stages, Run(REPOSITORY / run), quick=True).problems


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_mistake_is_told(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    right, wrong, told = PLANTED[kind]
    assert TEXT.count(right) >= 1, right
    text = TEXT.replace(right, wrong)
    try:
        found = looked_at(tmp_path, text)
    except UserError as error:
        found = [("", str(error))]
    assert any(told in problem for _, problem in found), found


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        served = f"      - myllm serve {{run}}/models/dpo --port {port} --dry-run\n      - myllm report {{run}}"
        found = looked_at(tmp_path, TEXT.replace("      - myllm report {run}", served))
        assert any(str(port) in text for _, text in found)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, 20 * 10**9))
    pipeline = load_pipeline("zh-0.5b", tmp_path / "run")
    ahead = look(pipeline, pipeline.stages, Run(tmp_path / "run"), quick=True)
    told = dict(ahead.elsewhere)["disk"]
    assert "pretrain 35 GB" in told and "has 20 GB free: give --run-folder" in told
    refuse(ahead, pipeline)  # on the machine of the real run only
    with pytest.raises(UserError, match="things to mend:\n"):
        refuse(ahead, pipeline, here=True)


def test_what_this_machine_lacks_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "REPOSITORY", tmp_path)  # where no environment is
    pipeline = load_pipeline("zh-0.5b", tmp_path / "run")
    ahead = look(pipeline, pipeline.stages, Run(tmp_path / "run"), quick=True)
    told = " ".join(text for _, text in ahead.elsewhere)
    assert ahead.problems == []
    for mend in ("run `make env-eval`", "run `make env-serve`", "make env-gpu", "the package deepspeed"):
        assert mend in told, mend


def test_stages_that_will_not_run_are_not_blamed(tmp_path: Path) -> None:
    """Only the stages asked for count, but those before them are known to make their files."""
    pipeline = load_pipeline("zh-0.5b", tmp_path / "run")
    ahead = look(pipeline, pipeline.between("blend", "convert"), Run(tmp_path / "run"), quick=True)
    assert {stage for stage, _ in ahead.elsewhere} <= {"pretrain", "anneal", "disk"}
    assert ahead.problems == [] and set(ahead.of_stage) <= {"blend", "pretrain", "anneal", "convert"}


def test_what_a_run_will_need(tmp_path: Path) -> None:
    pipeline = load_pipeline("zh-1b", tmp_path / "run")
    needs = look(pipeline, pipeline.stages, Run(tmp_path / "run"), quick=True).of_stage
    pretrain, anneal = needs["pretrain"], needs["anneal"]
    assert pretrain.tokens == 85830 * 512 * 2048 and anneal.tokens == (95367 - 85830) * 512 * 2048
    assert (pretrain.nodes, pretrain.gpus, needs["sft"].gpus, needs["convert"].gpus) == (4, 8, 8, 0)
    # 14 bytes for each of 1,231,120,384 parameters: the two newest, the one being written, every 20,000th of 85,830
    assert pretrain.disk == (2 + 1 + 4) * 14 * 1_231_120_384
    assert "h for each 100M tokens of data" in " ".join(needs["sft"].notes)
