"""Post-training: bad rows are named, and of a work folder only what is whole and of the same inputs is gone on with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from posttrain_kit import (
    sft_arguments,
)

from artifacts.command import parser_of
from artifacts.errors import UserError
from artifacts.files import hold_lock
from launch.instructions.lint import Rendering, lint
from launch.posttraining import chat_model, posttrain
from launch.posttraining import data as posttrain_data
from launch.posttraining import metrics as posttrain_metrics
from launch.posttraining import work_folder as posttrain_work


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a", "input": ""}]', "row 1: `output` is missing"),
        ('[{"instruction": "a", "input": "", "output": "b"}, 7]', "row 2: not a JSON object"),
        ('[{"instruction": "a", "input": "", "output": " "}]', "row 1: `output` is empty"),
        ('[{"instruction": "a", "input": "", "output": null}]', "row 1: `output` is not text"),
        ('[{"instruction": "a"}, {"instruction": "a"}, 7]', "row 1: `output` is missing (and 2 more bad rows)"),
        ('{"instruction": "a"}', "row 1: `output` is missing"),
        ("[]", "holds no row"),
        ('[{"instruction": ', "not valid JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_and_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sft_train.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        lint(path).refuse()
    with pytest.raises(UserError, match=re.escape(f"{path}")):
        posttrain_data.questions(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pair_needs_two_answers(tmp_path: Path) -> None:
    path = tmp_path / "dpo_train.json"
    row = {"instruction": "a", "input": "", "chosen": "b", "rejected": "b"}
    path.write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(UserError, match="row 1: `chosen` and `rejected` are equal"):
        lint(path).refuse()


def test_a_model_without_the_chat_tokens_is_refused(ground: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ground / "base", model)
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|im_end|>"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UserError, match="before pretraining"):
        chat_model.check_model(model)


def test_a_question_that_ppo_would_cut_is_refused(ground: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"instruction": "下一句是什么？", "input": letters, "output": "春" * 200} for letters in ("春", "夏" * 40)]
    (data / "rl_train.json").write_text(json.dumps(rows), encoding="utf-8")
    rendering = Rendering(ground / "base")
    fits = rendering.lengths([rendering.render([("user", f"下一句是什么？\n{'夏' * 40}")], ask=True)])[0] + 2  # the end
    assert posttrain_data.lint_questions(data / "rl_train.json", rendering, fits).longest == fits
    with pytest.raises(UserError, match=f"row 2: the question has {fits} tokens; .* Raise cutoff_len, now {fits - 1}"):
        posttrain_data.lint_questions(data / "rl_train.json", rendering, fits - 1)


def test_deepspeeds_checkpoints_are_known(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    checkpoint = tmp_path / "checkpoint-10"
    (checkpoint / "global_step10").mkdir(parents=True)
    save_file({"w": torch.zeros(10)}, checkpoint / "model.safetensors")
    part = checkpoint / "global_step10" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"w": torch.zeros(10)}, part)
    torch.save({"last": 1}, checkpoint / "scheduler.pt")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 10}')
    assert not posttrain_work.is_whole(checkpoint)
    (checkpoint / "latest").write_text("global_step10")
    assert posttrain_work.is_whole(checkpoint)
    part.write_bytes(part.read_bytes()[:100])
    assert not posttrain_work.is_whole(checkpoint)


@pytest.mark.parametrize("broken", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors"])
def test_a_checkpoint_without_one_of_its_files_is_not_whole(tmp_path: Path, broken: str) -> None:
    import torch
    from safetensors.torch import save_file

    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    save_file({"w": torch.zeros(100)}, checkpoint / "model.safetensors")
    torch.save({"state": torch.zeros(100)}, checkpoint / "optimizer.pt")
    torch.save({"last": 1}, checkpoint / "scheduler.pt")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 10}')
    assert posttrain_work.is_whole(checkpoint)
    whole = (checkpoint / broken).read_bytes()
    (checkpoint / broken).write_bytes(whole[: len(whole) // 2])
    assert not posttrain_work.is_whole(checkpoint)
    (checkpoint / broken).unlink()
    assert not posttrain_work.is_whole(checkpoint)


def test_checkpoints_of_other_data_are_not_used(ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    job = posttrain.job_of(parser_of(posttrain).parse_args([str(a) for a in sft_arguments(ground, tmp_path / "sft")]))
    assert posttrain_work.prepare_work(job, "one") == 0
    (job.raw / "checkpoint-10").mkdir(parents=True)
    assert posttrain_work.prepare_work(job, "two") == 0
    assert "starting over" in capsys.readouterr().out
    assert not job.raw.exists()


def test_a_second_machine_waits_for_the_first(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = posttrain.job_of(parser_of(posttrain).parse_args([str(a) for a in sft_arguments(ground, tmp_path / "sft")]))
    monkeypatch.setattr(posttrain_work, "WAIT", 0.0)
    with pytest.raises(UserError, match="is that folder shared"):
        posttrain_work.wait_for_work(job, "mark")
    posttrain_work.prepare_work(job, "mark")
    posttrain_work.wait_for_work(job, "mark")


def test_two_trainings_of_one_output_are_refused(ground: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = parser_of(posttrain).parse_args([*map(str, sft_arguments(ground, output)), "--prepare"])
    with hold_lock(tmp_path / ".out.lock", ""), pytest.raises(UserError, match="out is being made by another run"):
        posttrain.run(options)
    posttrain.run(options)
    assert (tmp_path / "out.work").exists()


def test_curves_are_thinned_to_their_ends() -> None:
    curve = [[float(step), 1.0] for step in range(1000)]
    assert len(posttrain_metrics.thin(curve)) == 200
    assert posttrain_metrics.thin(curve)[0] == curve[0] and posttrain_metrics.thin(curve)[-1] == curve[-1]
