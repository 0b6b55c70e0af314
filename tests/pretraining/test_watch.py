"""What stops a training: judged loss by loss, without Megatron; and which checkpoints count as whole, and as whose."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest

from artifacts.errors import UserError
from artifacts.layout import Run
from launch.pretraining import checkpoints, training_log
from launch.pretraining.dataset import validation_samples
from launch.pretraining.loss_watch import LossWatch
from launch.pretraining.pretrain import complete
from launch.pretraining.recipe import Key, load_recipe


def feed(watch: LossWatch, losses, first_step: int = 2) -> None:
    for step, loss in enumerate(losses, start=first_step):
        watch.look(loss, step, [step * 10])


def test_a_loss_that_is_no_number_stops_at_once():
    with pytest.raises(UserError, match=r"step 7: the loss is nan.* samples \[1, 2\].*iterations-to-skip=\[7\]"):
        LossWatch(None, 320).look(math.nan, 7, [1, 2])


def test_a_spike_is_measured_against_the_steps_before():
    watch = LossWatch(2.0, 320)
    feed(watch, [5.0 - step / 50 for step in range(60)])
    with pytest.raises(UserError, match="step 62: the loss rose to 7.000 from a mean of 4.4"):
        feed(watch, [7.0], 62)


def test_a_rise_below_the_limit_passes_and_so_does_a_short_past():
    watch = LossWatch(2.0, 320)
    feed(watch, [5.0] * 30 + [6.9, 5.0])
    early = LossWatch(2.0, 320)
    feed(early, [5.0] * 5 + [50.0])


def test_the_first_loss_is_that_of_a_model_that_knows_nothing():
    uniform = math.log(320)
    LossWatch(None, 320).look(uniform * 1.04, 1, [0])
    with pytest.raises(UserError, match="not near ln"):
        LossWatch(None, 320).look(uniform * 1.06, 1, [0])


def test_imported_weights_must_know_something():
    uniform = math.log(320)
    LossWatch(None, 320, imported=True).look(uniform * 0.5, 1, [0])
    with pytest.raises(UserError, match="imported weights"):
        LossWatch(None, 320, imported=True).look(uniform, 1, [0])


def line(iteration: int, loss: str) -> str:
    return (
        f" [x] iteration {iteration:8d}/      20 | consumed samples: 1 | elapsed time per iteration (ms): 250.0 | "
        f"throughput per GPU (TFLOP/s/GPU): 12.5 | learning rate: 1.0E-03 | global batch size: 16 | lm loss: {loss} "
        "| loss scale: 1 | grad norm: 0.500 |\n"
    )


def test_history_takes_the_later_of_two_lines_and_joins_machines(tmp_path):
    log, other = tmp_path / "megatron.log", tmp_path / "megatron.node-1.log"
    log.write_text(
        line(1, "5.8E+00") + " validation loss at iteration 10 on validation set | lm loss value: 4.95E+00 |"
    )
    other.write_text(line(10, "5.0E+00") + line(10, "4.9E+00"))
    history = training_log.read_history(log, other)
    assert history["loss"] == [[1, 5.8], [10, 4.9]] and history["valid"] == [[10, 4.95]]
    assert history["tflops"] == [[1, 12.5], [10, 12.5]]


def test_the_gate_on_a_log(tmp_path):
    log = tmp_path / "megatron.log"
    log.write_text(line(1, "9.0E+00"))
    with pytest.raises(UserError, match="not near ln"):
        training_log.check_learning(training_log.read_history(log), 320)
    training_log.check_learning(training_log.read_history(log), 320, from_scratch=False)
    log.write_text(line(1, "5.77E+00") + line(2, "nan"))
    with pytest.raises(UserError, match="not a number at iteration 2"):
        training_log.check_learning(training_log.read_history(log), 320)


@pytest.fixture
def saved(tmp_path):
    """A folder with real `torch_dist` checkpoints of one small tensor at iterations 5 and 10."""
    import torch
    from torch.distributed.checkpoint import FileSystemWriter, save

    for number in (5, 10):
        folder = tmp_path / f"iter_{number:07d}"
        save({"weight": torch.arange(1000.0)}, storage_writer=FileSystemWriter(folder), no_dist=True)
        (folder / "metadata.json").write_text("{}")
    (tmp_path / checkpoints.LATEST).write_text("10")
    return tmp_path


def test_whole_checkpoints_are_left_alone(saved, capsys):
    checkpoints.use_newest_whole(saved)
    assert checkpoints.reached(saved) == 10 and not capsys.readouterr().out


@pytest.mark.parametrize("fault", ["no metadata", "cut file", "missing file", "cut metadata"])
def test_a_broken_newest_checkpoint_is_passed_over_and_said(saved, capsys, fault):
    newest = saved / "iter_0000010"
    data = next(newest.glob("*.distcp"))
    if fault == "no metadata":
        (newest / ".metadata").unlink()
    elif fault == "cut file":
        data.write_bytes(data.read_bytes()[:-100])
    elif fault == "missing file":
        data.unlink()
    else:
        (newest / ".metadata").write_bytes((newest / ".metadata").read_bytes()[:50])
    checkpoints.use_newest_whole(saved)
    assert checkpoints.reached(saved) == 5
    said = capsys.readouterr().out
    assert "iter_0000010 is skipped" in said and "resuming from iteration 5, the newest complete checkpoint" in said
    assert (saved / "broken_iter_0000010").exists() == (fault != "no metadata")
    assert not newest.exists()


def test_a_lost_tracker_is_found_again(saved):
    (saved / checkpoints.LATEST).unlink()
    checkpoints.use_newest_whole(saved)
    assert checkpoints.reached(saved) == 10


def test_none_left_starts_over(saved, capsys):
    for folder in saved.glob("iter_*"):
        (folder / ".metadata").unlink()
    checkpoints.use_newest_whole(saved)
    assert checkpoints.reached(saved) == 0 and "starts at iteration 0" in capsys.readouterr().out


def test_a_tracker_that_was_cut_short_is_mended(saved):
    (saved / checkpoints.LATEST).write_text("")
    assert checkpoints.reached(saved) == 0
    checkpoints.use_newest_whole(saved)
    assert checkpoints.reached(saved) == 10


def test_an_import_in_the_place_of_checkpoints_is_refused(saved):
    (saved / "release").mkdir()
    with pytest.raises(UserError, match="is an imported model"):
        checkpoints.use_newest_whole(saved)
    assert (saved / "iter_0000010").exists()


@pytest.fixture
def claimed(tmp_path):
    run = Run(tmp_path / "run")
    run.tokenizer.mkdir(parents=True)
    (run.tokenizer / "tokenizer.json").write_text("{}")
    run.dataset.mkdir()
    (run.dataset / "blend.json").write_text('{"train": ["1", "a"]}')
    for suffix in (".bin", ".idx"):
        (run.dataset / f"a{suffix}").write_text("x")
    recipe = {
        "lr": Key(1.0, "t"),
        "train-iters": Key(10, "t"),
        "num-layers": Key(4, "m"),
        "save-interval": Key(5, "t"),
    }
    checkpoints.claim(run, recipe)
    (run.checkpoints / checkpoints.LATEST).write_text("5")
    return run, recipe


def test_the_same_training_elsewhere_is_the_same(claimed):
    run, recipe = claimed
    moved = {**recipe, "tensor-model-parallel-size": Key(2, "h"), "save-interval": Key(9, "t")}
    moved |= {"lr": Key("1e0", "--set"), "log-params-norm": Key(True, "--set"), "bf16": Key(False, "--set")}
    checkpoints.claim(run, moved)
    assert checkpoints.reached(run.checkpoints) == 5


@pytest.mark.parametrize("change", ["num-layers", "lr", "blend", "dataset", "tokenizer"])
def test_another_training_moves_the_old_checkpoints_aside(claimed, capsys, change):
    run, recipe = claimed
    if change == "blend":
        (run.dataset / "blend.json").write_text('{"train": ["2", "a"]}')
    elif change == "dataset":
        (run.dataset / "a.bin").write_text("xy")
    elif change == "tokenizer":
        (run.tokenizer / "tokenizer.json").write_text("[]")
    else:
        recipe = {**recipe, change: Key(8, "--set")}
    with pytest.raises(UserError, match=f"holds iteration 5 of another training .{change} changed.: .*--start-over"):
        checkpoints.claim(run, recipe)
    assert checkpoints.reached(run.checkpoints) == 5
    checkpoints.claim(run, recipe, start_over=True)
    assert checkpoints.reached(run.checkpoints) == 0
    assert checkpoints.reached(run.folder / "checkpoints.old-1") == 5
    assert f"({change} changed): moved to checkpoints.old-1" in capsys.readouterr().out
    assert json.loads((run.checkpoints / checkpoints.RECIPE).read_text())["recipe"]


def test_a_longer_schedule_goes_on_where_asked(claimed):
    run, recipe = claimed
    longer = {**recipe, "train-iters": Key(20, "--set"), "override-opt_param-scheduler": Key(True, "--set")}
    checkpoints.claim(run, longer)
    assert checkpoints.reached(run.checkpoints) == 5


def test_the_other_form_of_the_optimizer_is_refused(claimed):
    run, _ = claimed
    plain = load_recipe("qwen2-tiny", "demo", "cpu")
    shutil.rmtree(run.checkpoints)
    checkpoints.claim(run, complete(plain, run))
    (run.checkpoints / checkpoints.LATEST).write_text("5")
    sharded = complete(load_recipe("qwen2-tiny", "demo", "cpu", ["use-distributed-optimizer=true"]), run)
    with pytest.raises(UserError, match="was saved without use-distributed-optimizer.*use-distributed-optimizer=false"):
        checkpoints.claim(run, sharded)
    checkpoints.claim(run, complete(load_recipe("qwen2-tiny", "demo", "cpu", ["use-distributed-optimizer=false"]), run))
    assert checkpoints.reached(run.checkpoints) == 5


def test_a_mistyped_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="blend.json does not exist"):
        checkpoints.claim(Run(tmp_path / "nowhere"), {})


def test_a_later_phase_begins_with_a_checkpoint_of_the_one_before(saved, tmp_path, capsys):
    """Linked, so that the disk holds it once; found again after a kill; never written to by the new phase."""
    phase = tmp_path / "run" / "checkpoints-anneal"
    newest = checkpoints.reached(saved)
    assert checkpoints.branch(saved, phase, newest + 5) == newest == checkpoints.reached(phase)
    folder = f"iter_{newest:07d}"
    files = [file for file in (saved / folder).iterdir() if file.is_file()]
    assert files and all((phase / folder / file.name).stat().st_ino == file.stat().st_ino for file in files)
    assert checkpoints.damage(phase / folder) == ""
    shutil.rmtree(phase / folder)  # thinned out: the phase has checkpoints of its own by now
    assert checkpoints.branch(saved, phase, newest + 5) == newest
    assert files[0].exists()
    with pytest.raises(UserError, match=f"is at iteration {newest}: a phase after it needs train-iters above {newest}"):
        checkpoints.branch(saved, tmp_path / "other", newest)
    older = min(saved.glob("iter_*"))
    assert checkpoints.branch(older, tmp_path / "older", newest + 5) == int(older.name[5:])
    (older / ".metadata").unlink()
    with pytest.raises(UserError, match="cannot begin a phase: its save was interrupted"):
        checkpoints.branch(older, tmp_path / "broken", newest + 5)
    with pytest.raises(UserError, match="it does not exist. Run the pretraining before it first"):
        checkpoints.branch(tmp_path / "none", tmp_path / "nothing", 5)


def test_old_checkpoints_are_thinned_out(tmp_path):
    for number in (5, 10, 15, 20, 25, 30):
        (tmp_path / f"iter_{number:07d}").mkdir()
        (tmp_path / f"iter_{number:07d}" / ".metadata").touch()
    (tmp_path / checkpoints.LATEST).write_text("25")  # 30 is still being written

    def left():
        return [int(folder.name[5:]) for folder in sorted(tmp_path.glob("iter_*"))]

    checkpoints.thin(tmp_path, 0, 0)
    assert left() == [5, 10, 15, 20, 25, 30]
    checkpoints.thin(tmp_path, 2, 10)
    assert left() == [10, 20, 25, 30]
    checkpoints.thin(tmp_path, 1, 0)
    assert left() == [25, 30]


@pytest.mark.parametrize(
    ("done", "last", "interval", "consumed", "validations"),
    [(0, 22, 22, 0, 2), (22, 24, 24, 64, 2), (17166, 19073, 1000, 640, 3), (0, 22, 0, 0, 0)],
    ids=["a start", "a phase with another interval", "near the end", "none"],
)
def test_validation_never_runs_out_of_data(done, last, interval, consumed, validations):
    """Of two batches of 16 sequences each, one at every interval that is still to come and one at the end."""
    told = SimpleNamespace(eval_interval=interval, eval_iters=2, global_batch_size=16, consumed_valid_samples=consumed)
    told.iteration, told.train_iters = done, last
    assert validation_samples(told) >= consumed + validations * 32
