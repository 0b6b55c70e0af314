"""Megatron trained on a CPU in every layout, both architectures: the same losses, the same weights, whatever happens.

Every comparison starts from a checkpoint that one process wrote at iteration 5 of 10: what a fresh start draws at
random depends on the pipeline stage, what is loaded does not.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from artifacts.files import read_json
from artifacts.layout import Run
from artifacts.processes import free_port
from benchmarks.made_up_data import bin_texts, copy_run, write_texts
from converters.checkpoint import Checkpoint
from launch.pretraining import checkpoints
from launch.pretraining.pretrain import complete, ranks_under, run_flags
from launch.pretraining.recipe import flags, get, layout_of, load_recipe
from launch.pretraining.training_log import ITERATION, log_of, read_history

REPOSITORY = Path(__file__).resolve().parents[2]
ONE = ("nproc-per-node=1", "pipeline-model-parallel-size=1", "decoder-first-pipeline-num-layers=null")
EQUAL = ("decoder-first-pipeline-num-layers=null",)  # stages of the same size
DISTRIBUTED = "use-distributed-optimizer=true"
LAYOUTS = {
    "TP2": ("tensor-model-parallel-size=2", "pipeline-model-parallel-size=1", *EQUAL),
    "PP2": ("pipeline-model-parallel-size=2",),
    "TP2 x PP2": ("nproc-per-node=4", "tensor-model-parallel-size=2", *EQUAL),
    "DP2": ("pipeline-model-parallel-size=1", *EQUAL),
    "PP2 interleaved": ("num-layers-per-virtual-pipeline-stage=1", *EQUAL),
    "DP2 distributed optimizer": ("pipeline-model-parallel-size=1", DISTRIBUTED, *EQUAL),
    "DP2 distributed fused Adam": ("pipeline-model-parallel-size=1", DISTRIBUTED, "fused-adam=true", *EQUAL),
}
SHORT = ("train-iters=10", "log-interval=1", "save-interval=5", "eval-interval=100", "eval-iters=1")

pytestmark = pytest.mark.slow


def python(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of made-up texts, and `run/` with their tokenizer and dataset."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder)
    bin_texts(folder, folder / "run")
    return folder


def command(run: Path, *replaced: str, model: str = "qwen2-tiny", training: str = "demo") -> list[str]:
    base = [
        sys.executable,
        "-m",
        "launch.pretraining.pretrain",
        "--model",
        model,
        "--training",
        training,
        "--run",
        str(run),
    ]
    return [*base, *(part for item in replaced for part in ("--set", item))]


def finish(arguments: list[str]) -> str:
    result = subprocess.run(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


def fail(arguments: list[str]) -> str:
    """The one line that a refused training ends with."""
    result = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2, result.stdout[-3000:]
    return result.stderr.strip().splitlines()[-1]


def fresh(data: Path, folder: Path, start: Path | None = None) -> Path:
    """A run's folder with the data, and another run's checkpoints where given."""
    copy_run(data / "run", folder)
    if start:
        shutil.copytree(start / "checkpoints", folder / "checkpoints")
        settings = folder / "checkpoints" / checkpoints.RECIPE
        if settings.exists():  # the launcher's; the copied dataset lies elsewhere, and blend.json names folders
            settings.write_text(settings.read_text().replace(str(start), str(folder)))
    return folder


def train_together(jobs: list[tuple[Path, str, tuple[str, ...]]], folder: Path) -> None:
    """Train each (run, model, keys) in turn, in one process a rank for all jobs of as many ranks as the first has.

    What the launcher does before and after a training is not done: its own tests are those that use `command`.
    """
    prepared, ranks = [], 0
    for run, model, keys in jobs:
        recipe = complete(load_recipe(model, "demo", "cpu", (*SHORT, *keys)), Run(run))
        layout = layout_of(recipe)
        assert layout.world == (ranks or layout.world)
        ranks = layout.world
        fused = "1" if get(recipe, "fused-adam") else ""
        environment = {"MYLLM_FUSED_ADAM": fused, "MYLLM_STOP_AT_SPIKE": ""}
        (run / "checkpoints").mkdir(exist_ok=True)
        log = str(log_of(run / "checkpoints"))
        prepared.append({"flags": flags(recipe) + run_flags(Run(run)), "log": log, "environment": environment})
    plan = folder / f"jobs-{ranks}.json"
    plan.write_text(json.dumps(prepared))
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc-per-node={ranks}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [*torchrun, "tests/pretraining/grid.py", str(plan)],
        cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def start_with_the_launcher(data: Path, folder: Path) -> Path:
    """qwen2-tiny by one process, stopped at iteration 5 as a user would have it."""
    run = fresh(data, folder)
    out = finish(command(run, *SHORT, *ONE, "exit-interval=5"))
    assert "stopped at iteration 5 of 10, saved" in out
    return run


# what is trained by one process besides qwen2-tiny, for the layouts to go on from and to be compared with
STARTS = (("qwen2-tiny", DISTRIBUTED), ("llama2-tiny",), ("llama2-tiny", DISTRIBUTED), ("llama2-tiny", "bf16=true"))
REFERENCES = (("llama2-tiny",), ("llama2-tiny", "bf16=true"))
UNDISTURBED = ("qwen2-tiny", "ten steps at once")
OWN_ATTENTION = ("qwen2-tiny", "Megatron's own attention")


@pytest.fixture(scope="module")
def starts(data, tmp_path_factory):
    """Runs of one process stopped at iteration 5, by model and further keys."""
    folder = tmp_path_factory.mktemp("starts")
    made = {("qwen2-tiny",): start_with_the_launcher(data, folder / "qwen2-tiny")}
    made |= {key: fresh(data, folder / f"{number}") for number, key in enumerate(STARTS)}
    train_together([(made[key], key[0], (*ONE, "exit-interval=5", *key[1:])) for key in STARTS], folder)
    return lambda *key: made[key]


@pytest.fixture(scope="module")
def references(data, starts, tmp_path_factory):
    """The same runs gone on to iteration 10 by one process; and two others to compare with them."""
    folder = tmp_path_factory.mktemp("references")
    made = {("qwen2-tiny",): fresh(data, folder / "qwen2-tiny", starts("qwen2-tiny"))}
    finish(command(made["qwen2-tiny",], *SHORT, *ONE))
    made |= {key: fresh(data, folder / f"{number}", starts(*key)) for number, key in enumerate(REFERENCES)}
    jobs = [(made[key], key[0], (*ONE, *key[1:])) for key in REFERENCES]
    made[UNDISTURBED] = fresh(data, folder / "undisturbed")
    made[OWN_ATTENTION] = fresh(data, folder / "attention", starts("qwen2-tiny"))
    others = ("spec=null", "no-create-attention-mask-in-dataloader=null")
    jobs += [(made[UNDISTURBED], "qwen2-tiny", ONE), (made[OWN_ATTENTION], "qwen2-tiny", (*ONE, *others))]
    train_together(jobs, folder)
    return lambda *key: made[key]


def losses(run: Path) -> dict[int, float]:
    return {int(step): loss for step, loss in read_history(log_of(run / "checkpoints"))["loss"]}


def weights(run: Path, iteration: int = 10) -> dict[str, np.ndarray]:
    found = Checkpoint(run / "checkpoints" / f"iter_{iteration:07d}")
    return {name: found.read(name).float().numpy() for name in found.shapes}


def furthest(run: Path, other: Path) -> float:
    """The largest difference of any weight, vocabulary padding aside."""
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    difference = 0.0
    for name in one:
        rows = min(len(one[name]), len(two[name]))
        difference = max(difference, float(np.abs(one[name][:rows] - two[name][:rows]).max()))
    return difference


MODELS = ("qwen2-tiny", "llama2-tiny")
IN_BF16 = {"PP2": 1e-4, "DP2": 1e-6, "TP2": 1e-4}  # layouts, and how far apart the losses may be, relative


@pytest.fixture(scope="module")
def grid(data, starts, tmp_path_factory) -> dict[tuple[str, ...], Path]:
    """Every layout of both models gone on from iteration 5 to 10: runs by (model, layout)."""
    folder = tmp_path_factory.mktemp("grid")
    runs: dict[tuple[str, ...], Path] = {}
    jobs = []
    for model in MODELS:
        for layout, keys in LAYOUTS.items():
            started = starts(model, *(key for key in keys if key == DISTRIBUTED))
            runs[model, layout] = fresh(data, folder / f"{model}-{layout}", started)
            jobs.append((runs[model, layout], model, keys))
    for layout in IN_BF16:
        runs["bf16", layout] = fresh(data, folder / f"bf16-{layout}", starts("llama2-tiny", "bf16=true"))
        jobs.append((runs["bf16", layout], "llama2-tiny", ("bf16=true", *LAYOUTS[layout])))
    four = [job for job in jobs if "nproc-per-node=4" in job[2]]
    train_together([job for job in jobs if job not in four], folder)
    train_together(four, folder)
    return runs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_the_same(grid, references, model, layout):
    run, reference = grid[model, layout], references(model)
    found, wanted = losses(run), losses(reference)
    assert found.keys() == wanted.keys() == set(range(1, 11))
    for step in range(6, 11):
        assert found[step] == pytest.approx(wanted[step], rel=1e-6), f"step {step}"
    assert furthest(run, reference) <= 1e-5


@pytest.mark.parametrize("layout", IN_BF16)
def test_bf16_trains_the_same(grid, references, layout):
    """To 6 digits where the same sums are rounded in the same places, as in data parallel.

    Pipeline parallel adds the stages' gradient norms in another order, and a last bit of the clipping moves a weight
    over the edge of a bf16 now and then: identical on one processor, 7e-6 apart on another (with AMX).

    Tensor parallel rounds each rank's partial sum to bf16, 8 bits, before they are added: 6 digits cannot be asked for.
    Of Megatron's flags that might help, softmax and gradients in float32 change nothing (the sums are the matmuls'),
    and its local layers take neither a float32 residual nor sequence parallel with torch's norm. Layers of one's own
    that add the partial sums in float32 (tried by hand) do not hold them either: a sum in another order still rounds to
    another bf16 now and then, and the optimizer carries that on.
    """
    found, wanted = losses(grid["bf16", layout]), losses(references("llama2-tiny", "bf16=true"))
    assert found.keys() == wanted.keys() == set(range(1, 11))
    for step in range(6, 11):
        assert found[step] == pytest.approx(wanted[step], rel=IN_BF16[layout])


def test_a_checkpoint_goes_through_every_layout(data, references, starts, tmp_path):
    """One iteration in each layout, the distributed optimizer throughout: the weights of one process at the end."""
    run = fresh(data, tmp_path / "run", starts("qwen2-tiny", DISTRIBUTED))
    order = ("TP2", "PP2 interleaved", "DP2", "TP2 x PP2", "PP2")
    jobs = [(run, "qwen2-tiny", (DISTRIBUTED, *LAYOUTS[layout], f"exit-interval={step}"))
            for step, layout in enumerate(order, start=6)]  # fmt: skip
    for part in (jobs[:3], jobs[3:4], jobs[4:]):  # two ranks, four, two
        train_together(part, tmp_path)
    assert checkpoints.reached(run / "checkpoints") == 10
    assert all((run / "checkpoints" / f"iter_{step:07d}").exists() for step in range(6, 11))
    reference = references("qwen2-tiny")
    assert losses(run)[10] == pytest.approx(losses(reference)[10], rel=1e-6)
    assert furthest(run, reference) <= 1e-5


def test_five_and_five_steps_are_ten_bit_for_bit(references):
    one, two = weights(references(*UNDISTURBED)), weights(references("qwen2-tiny"))
    for name in one:
        assert np.array_equal(one[name], two[name]), name


def test_megatrons_own_attention_gives_the_same_loss(references):
    run = references(*OWN_ATTENTION)
    for step in range(6, 11):
        assert losses(run)[step] == pytest.approx(losses(references("qwen2-tiny"))[step], rel=1e-6)
    assert furthest(run, references("qwen2-tiny")) <= 1e-5


def test_a_cut_checkpoint_is_passed_over_and_the_end_is_the_same(data, references, tmp_path):
    run = fresh(data, tmp_path / "run")
    finish(command(run, *SHORT, *ONE, "save-interval=3", "exit-interval=6"))
    shard = next((run / "checkpoints" / "iter_0000006").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    out = finish(command(run, *SHORT, *ONE))
    assert "iter_0000006 is skipped" in out and "resuming from iteration 3, the newest complete checkpoint" in out
    one, two = weights(run), weights(references("qwen2-tiny"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def wait_for_step(process: subprocess.Popen, log: Path, step: int) -> None:
    while True:
        text = log.read_text() if log.exists() else ""
        if any(int(match[1]) >= step for match in ITERATION.finditer(text)):
            return
        assert process.poll() is None, text[-2000:]
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGTERM, 6), (signal.SIGINT, 6), (signal.SIGTERM, 0), (signal.SIGTERM, -1)],
    ids=["TERM", "INT", "early TERM", "TERM before there are ranks"],
)
def test_a_signal_saves_and_exits_0(data, tmp_path, number, step):
    """Sent to the whole group, as a terminal does, and once more to the launcher, as `myllm run` does."""
    run = fresh(data, tmp_path / "run")
    output = tmp_path / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command(run, *SHORT, "train-iters=400"),
            cwd=REPOSITORY,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if step > 0:
        wait_for_step(process, log_of(run / "checkpoints"), step)
    elif step < 0:  # torchrun is still importing
        while not ranks_under(process.pid):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        assert not any(ranks_under(child) for child in ranks_under(process.pid))
    else:  # the ranks are still importing
        while not ranks_under(process.pid) or not any(ranks_under(child) for child in ranks_under(process.pid)):
            assert process.poll() is None
            time.sleep(0.05)
    os.killpg(process.pid, number)
    process.terminate()
    code, out = process.wait(timeout=120), output.read_text()
    assert code == 0, out[-2000:]
    reached = checkpoints.reached(run / "checkpoints")
    assert max(step, 1) <= reached < 400 and f"stopped at iteration {reached} of 400, saved" in out
    assert not checkpoints.damage(run / "checkpoints" / f"iter_{reached:07d}")


def test_a_kill_leaves_no_process(data, tmp_path):
    """Ranks, and what Megatron spawned to write checkpoints, end with the launcher."""
    import psutil

    run = fresh(data, tmp_path / "run")
    with (tmp_path / "output").open("w") as stream:
        process = subprocess.Popen(
            command(run, *SHORT, "train-iters=4000"), cwd=REPOSITORY, stdout=stream, stderr=stream
        )
    wait_for_step(process, log_of(run / "checkpoints"), 7)  # a checkpoint was saved at 5
    started = psutil.Process(process.pid).children(recursive=True)
    collectors = [child for child in started if "spawn_main" in " ".join(child.cmdline())]
    assert collectors
    for child in collectors:  # a SIGTERM to the whole job must not end what collects a checkpoint's parts
        mask = re.search(r"^SigBlk:\s*(\w+)", Path(f"/proc/{child.pid}/status").read_text(), re.M)
        assert mask and int(mask[1], 16) >> (signal.SIGTERM - 1) & 1
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive, [child.cmdline() for child in alive]


def test_the_time_limit_saves_and_exits_0(data, tmp_path):
    """A limit of less than no time: Megatron takes whole minutes, and looks at the clock after every step."""
    run = fresh(data, tmp_path / "run")
    out = finish(command(run, *SHORT, "train-iters=100000", "save-interval=100000", "exit-duration-in-mins=-1"))
    reached = checkpoints.reached(run / "checkpoints")
    assert reached == 1 and f"stopped at iteration {reached} of 100000, saved" in out


def test_more_iterations_go_on_where_asked(data, references, tmp_path):
    run = fresh(data, tmp_path / "run", references("qwen2-tiny"))
    longer = ("train-iters=12", "override-opt_param-scheduler=true")
    finish(command(run, *SHORT, *ONE, *longer))
    assert checkpoints.reached(run / "checkpoints") == 12 and not (run / "checkpoints.old-1").exists()
    assert losses(run)[12] < losses(run)[1]


def test_a_loss_that_is_no_number_names_step_and_documents(data, tmp_path):
    run = fresh(data, tmp_path / "run")
    said = fail(command(run, *SHORT, "lr=1e30", "min-lr=0", "lr-warmup-fraction=null"))
    assert said.startswith("error: step 2: the loss is nan") or said.startswith("error: step 2: the loss is inf"), said
    assert f"{run}/dataset/a: " in said and "iterations-to-skip=[2]" in said
    assert checkpoints.reached(run / "checkpoints") == 0


def test_data_is_looked_at_before_the_first_step(data, tmp_path):
    out = finish(command(fresh(data, tmp_path / "run"), *SHORT, *ONE, "train-iters=1"))
    before = out[: out.index("iteration        1/")]
    assert "largest id 511 < 512" in before or "< 512" in before
    assert "data: sample 0 begins: '" in before and "of the samples" in before


def test_ids_outside_the_vocabulary_are_refused(data, tmp_path):
    run = fresh(data, tmp_path / "run")
    larger = tmp_path / "larger"
    bin_texts(data, larger, 560)
    for file in (larger / "dataset").iterdir():
        if file.suffix in (".bin", ".idx"):
            shutil.copy(file, run / "dataset" / file.name)
    said = fail(command(run, *SHORT))
    assert "holds id" in said and "the tokenizer has 512" in said


def test_another_tokenizers_ids_are_refused(data, tmp_path):
    run = fresh(data, tmp_path / "run")
    for name in ("a", "b"):
        path = run / "dataset" / f"{name}.bin"
        ids = np.fromfile(path, dtype=np.uint16)
        path.write_bytes(np.where(ids > 10, 522 - ids, ids).astype(np.uint16).tobytes())
    said = fail(command(run, *SHORT))
    assert "was made with another tokenizer" in said


def test_a_missing_dataset_is_named(data, tmp_path):
    run = fresh(data, tmp_path / "run")
    (run / "dataset" / "blend.json").unlink()
    assert "blend.json does not exist: run the stage that makes it first" in fail(command(run, *SHORT))


def test_two_machines_train_as_one(data, starts, references, tmp_path):
    """Two launchers, as on two machines that share a disk."""
    run = fresh(data, tmp_path / "run", starts("qwen2-tiny"))
    keys = (*SHORT, "nnodes=2", "nproc-per-node=1", "pipeline-model-parallel-size=1", *EQUAL)
    meet = f"127.0.0.1:{free_port()}"
    outputs = [tmp_path / f"node-{node}" for node in (0, 1)]
    nodes = []
    for node, output in enumerate(outputs):
        with output.open("wb") as stream:
            arguments = [*command(run, *keys), "--node-rank", str(node), "--rendezvous", meet]
            nodes.append(subprocess.Popen(arguments, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT))
    for node, output in zip(nodes, outputs, strict=True):
        assert node.wait(timeout=180) == 0, output.read_text()[-2000:]
    history = read_history(log_of(run / "checkpoints"), log_of(run / "checkpoints", 1))["loss"]
    wanted = losses(references("qwen2-tiny"))
    assert [int(step) for step, _ in history] == list(range(1, 11))
    assert history[-1][1] == pytest.approx(wanted[10], rel=1e-6)


def test_goes_on_from_hugging_face_weights(data, starts, references, tmp_path):
    """Exported, imported, trained on with tensor parallel 2: the first loss is the trained model's, then it falls."""
    trained = starts("qwen2-tiny")
    tokenizer = ("--tokenizer", str(trained / "tokenizer"))
    model, imported = tmp_path / "model", tmp_path / "imported"
    python("converters.export", "--checkpoint", str(trained / "checkpoints"), *tokenizer, "--output", str(model))
    python("converters.import_hf", "--model", str(model), "--output", str(imported))
    run = fresh(data, tmp_path / "run")
    keys = (
        *("seq-length=128", "global-batch-size=16", "train-iters=16", "log-interval=1", "eval-iters=1"),
        *("eval-interval=99", "lr-warmup-iters=2", "lr=3e-3", "min-lr=3e-4", f"pretrained-checkpoint={imported}"),
        *LAYOUTS["TP2"],
    )
    finish(command(run, *keys, training="continue-from-hf"))
    found = losses(run)
    # the same weights on another batch
    assert found[1] == pytest.approx(losses(references("qwen2-tiny"))[6], abs=0.15)
    assert found[16] < found[1]
    # and what it made can be exported again with the same tokenizer
    options = ("--checkpoint", str(run / "checkpoints"), *tokenizer, "--output", str(tmp_path / "again"))
    python("converters.export", *options)
    assert read_json(tmp_path / "again" / "parity.json")["passed"]


def test_an_import_that_was_not_proved_is_refused(data, tmp_path):
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "parity.json").write_text('{"passed": false}')
    run = fresh(data, tmp_path / "run")
    keys = ("seq-length=128", f"pretrained-checkpoint={tmp_path / 'imported'}")
    assert "did not pass its check" in fail(command(run, *keys, training="continue-from-hf"))
