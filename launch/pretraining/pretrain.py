"""Pretrain with stock Megatron-LM. Three small YAML files become torchrun's command line.

    myllm pretrain --model qwen2-tiny --training demo --hardware cpu --run runs/poetry-tiny
    myllm pretrain --model qwen2-0.5b --training zh-10b --hardware node-8 --run runs/mine --dry-run

It reads `tokenizer/` and `dataset/blend.json` of the run and writes `checkpoints/` (torch_dist) and `tensorboard/`.
`--phase NAME` continues from these checkpoints with `dataset/blend-NAME.json` and another training recipe, e.g. on
better text while the learning rate decays; it writes `checkpoints-NAME/`.
The same command resumes from the newest complete checkpoint, in any layout. `--set train-iters=50` replaces one key.
SIGTERM, Ctrl-C and `--set exit-duration-in-mins=N` save, then exit with 0; a second Ctrl-C ends at once.
On several machines, run the same command on each, with --node-rank 0, 1, … and --rendezvous FIRST_MACHINE:29500.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import hold_lock, read_json
from artifacts.layout import REPOSITORY, Run
from artifacts.processes import die_with_parent
from artifacts.stage import report_gate, report_metrics, report_unfinished
from artifacts.tool_errors import FirstError
from launch.pretraining import checkpoints
from launch.pretraining.flags import validate
from launch.pretraining.recipe import (
    Key,
    Layout,
    Recipe,
    check_launcher_keys,
    describe,
    flags,
    get,
    layout_of,
    load_recipe,
    relative,
    whole,
)
from launch.pretraining.served_flags import check_packages
from launch.pretraining.training_log import check_learning, log_of, logs_of, read_history

WORKER = "launch/pretraining/worker.py"
SAVED = "successfully saved checkpoint from iteration"
OURS = "error: "  # start of the line in which a rank prints a UserError
MEETING = 900  # seconds that the machines wait for each other; the first one checks the checkpoints before it joins
LOOK_AGAIN = 0.5  # seconds between two searches for ranks
ONE_REQUEST = 5.0  # seconds in which several signals count as one: terminal, scheduler and runner may all send one


def run_flags(run: Run) -> list[str]:
    """Megatron's flags for the paths of the run, relative to the repository if the run lies inside it."""
    folder = relative(run.folder)
    return [
        *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", f"{folder}/tokenizer"),
        *("--per-split-data-args-path", relative(run.blend), "--data-cache-path", f"{folder}/dataset/cache"),
        *("--save", relative(run.checkpoints), "--load", relative(run.checkpoints), "--ckpt-format", "torch_dist"),
        *("--tensorboard-dir", relative(run.tensorboard), "--exit-signal-handler"),
    ]


def complete(recipe: Recipe, run: Run) -> Recipe:
    """Add keys that follow from others: a reshardable optimizer, the W&B run name, the vocabulary of an import.

    Raises:
        UserError: the imported checkpoint is missing, failed its parity check, or does not fit the layout.
    """
    added: dict[str, Any] = {}
    if run.phase:
        added["override-opt_param-scheduler"] = True  # its own schedule, not the checkpoint's
    if get(recipe, "use-distributed-optimizer"):
        added["dist-ckpt-optim-fully-reshardable"] = True  # else its states load only in the same layout
    if get(recipe, "wandb-project"):
        added["wandb-exp-name"], added["wandb-save-dir"] = run.name, f"{relative(run.folder)}/wandb"
    if "pretrained-checkpoint" in recipe:
        source = get(recipe, "pretrained-checkpoint")
        if source is None:
            raise UserError(
                "pretrained-checkpoint is not set: run `myllm import --model FOLDER --output IMPORT`, then add "
                "--set pretrained-checkpoint=IMPORT"
            )
        proof = read_json(Path(source) / "parity.json")
        if not proof.get("passed"):
            raise UserError(f"{source}/parity.json: the import did not pass its check; run `myllm import` again")
        if "vocab_size" not in proof:
            raise UserError(f"{source}/parity.json has no vocab_size: run `myllm import` again")
        rows, multiple = proof["padded_vocab_size"], whole(recipe, "tensor-model-parallel-size", 1)
        if rows % multiple:
            raise UserError(
                f"{source} has {rows} vocabulary rows, which tensor parallel {multiple} does not divide: run `myllm "
                f"import` again with --tensor-parallel {multiple}"
            )
        added["vocab-size"], added["padded-vocab-size"] = proof["vocab_size"], rows
    return {**recipe, **{name: Key(value, "follows") for name, value in added.items() if not get(recipe, name)}}


def vocabulary(run: Run) -> int:
    """Number of ids of the run's tokenizer, special tokens included."""
    return len(read_json(run.tokenizer / "vocab.json")) + len(
        read_json(run.tokenizer / "tokenizer_config.json")["added_tokens_decoder"]
    )


def torchrun(layout: Layout, node: int, rendezvous: str | None) -> list[str]:
    """The torchrun command. torchrun handles SIGQUIT only: on SIGTERM the ranks save and exit by themselves."""
    command = [str(Path(sys.executable).with_name("torchrun")), f"--nproc-per-node={layout.per_node}"]
    if layout.nodes == 1:
        command.append("--standalone")
    else:
        # the first machine hosts the store; if a machine is lost, c10d ends the others
        conf = f"is_host={int(node == 0)},timeout={MEETING},read_timeout={MEETING}"
        command += [f"--nnodes={layout.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous or 'HOST:PORT'}"]
        command += ["--rdzv-id=myllm", f"--rdzv-conf={conf}"]
    return [*command, "--signals-to-handle=SIGQUIT", WORKER]


def ranks_under(parent: int) -> list[int]:
    """Ids of the worker processes whose parent is torchrun (Linux: /proc/<pid>/stat, field 4)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            if WORKER.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def _ignore_and_follow(parent: int) -> None:
    """Runs in the child before torchrun starts: ignore SIGTERM and SIGINT, and die with the parent.

    The ranks inherit a blocked SIGTERM. A SIGTERM that arrives while they import is delivered later: the worker
    unblocks it once Megatron's handler is installed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    die_with_parent(parent)


def train(
    command: list[str], log: Path, environment: dict[str, str], ranks: int, saved: Callable[[], None]
) -> None:
    """Run torchrun with `ranks` processes on this machine; print its output and append it to `log`.

    `saved` is called after each checkpoint that Megatron has saved.

    The first SIGTERM or Ctrl-C is sent on to the ranks, once they exist. They save after the current step and exit
    with 0. The second one ends them at once.

    Raises:
        UserError: training failed; the message holds the most telling line of the output.
    """
    me, requests, requested_at = os.getpid(), 0, 0.0
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=lambda: _ignore_and_follow(me),  # noqa: PLW1509  # no thread was started
    )

    def stop(number: int, frame: object) -> None:
        nonlocal requests, requested_at
        if requests and time.monotonic() - requested_at < ONE_REQUEST:
            return
        requests, requested_at = requests + 1, time.monotonic()
        if requests > 1:
            process.kill()
            return
        print("stopping after a checkpoint is saved; press Ctrl-C again to end at once", flush=True)
        signal_ranks(number, frame)

    def signal_ranks(number: int, frame: object) -> None:
        for rank in set(ranks_under(process.pid)) - signalled:
            signalled.add(rank)
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)
        if len(signalled) < ranks and process.returncode is None:
            signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN)  # torchrun is still starting them

    signalled: set[int] = set()
    handlers: dict[int, Any] = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGALRM: signal_ranks}
    previous = {name: signal.signal(name, handler) for name, handler in handlers.items()}
    user_error, failure = "", FirstError()
    assert process.stdout is not None
    try:
        with log.open("a", encoding="utf-8") as copy:
            for line in process.stdout:
                copy.write(line)
                copy.flush()
                sys.stdout.write(line)
                if not user_error and line.startswith(OURS):
                    user_error = line.removeprefix(OURS).strip()
                if SAVED in line:
                    saved()
                failure.feed(line)
        code = process.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, handler in previous.items():
            signal.signal(name, handler)
    if code != 0:
        if user_error:
            raise UserError(f"{user_error} (log: {log})")
        if requests > 1:
            raise UserError(
                f"ended without saving; run the same command to resume from the last checkpoint (log: {log})"
            )
        raise UserError(f"Megatron stopped with exit code {code}: {failure.text or 'no message'} (log: {log})")


def summary(run: Run, recipe: Recipe, layout: Layout, begun: int = 0) -> dict[str, Any]:
    """Metrics of the finished run, from Megatron's log; MFU only if the hardware file names a GPU.

    Args:
        begun: the iteration that a later phase began with.

    Raises:
        UserError: the losses fail `check_learning`.
    """
    from launch.pretraining.gpus import gpu
    from launch.pretraining.model_size import flops_per_token, model_of, padded_vocabulary

    history = read_history(*logs_of(run.checkpoints))
    # an untrained model spreads its guess over the rows that pad the vocabulary too
    rows = whole(recipe, "padded-vocab-size", padded_vocabulary(recipe, vocabulary(run), layout.tensor))
    imported = get(recipe, "pretrained-checkpoint") is not None
    check_learning(history, rows, not imported)
    iterations, sequence = whole(recipe, "train-iters"), whole(recipe, "seq-length")
    tokens = whole(recipe, "global-batch-size") * sequence
    times = sorted(y for _, y in history["milliseconds"])
    rate = tokens / times[len(times) // 2] * 1000
    flops = rate * flops_per_token(model_of(recipe, rows), sequence) / layout.world
    card = get(recipe, "gpu")
    return {
        "iterations": iterations,
        "tokens": (iterations - begun) * tokens,
        "tokens_per_step": tokens,
        "first_loss": history["loss"][0][1],
        "uniform_loss": round(math.log(rows), 4),
        "final_loss": history["loss"][-1][1],
        "valid_loss": history["valid"][-1][1] if history["valid"] else None,
        "tokens_per_second": round(rate, 1),
        "tflops_per_process": float(f"{flops / 1e12:.4g}"),
        "mfu_percent": round(100 * flops / 1e12 / gpu(card).peak_tflops, 2) if card else None,
        "curves": history,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a file in megatron_configs/models/")
    parser.add_argument("--training", required=True, help="a file in megatron_configs/training/")
    parser.add_argument("--hardware", default="cpu", help="a file in megatron_configs/hardware/ (default cpu)")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the recipe")
    parser.add_argument("--phase", default="", metavar="NAME", help="train a later phase, on dataset/blend-NAME.json")
    parser.add_argument(
        "--branch-from",
        type=Path,
        metavar="CHECKPOINT",
        help="with --phase: the checkpoint to begin with (default: the newest of the run's checkpoints/)",
    )
    parser.add_argument("--start-over", action="store_true", help="move the checkpoints of another training away")
    parser.add_argument(
        "--node-rank",
        type=int,
        default=int(os.environ.get("MYLLM_NODE_RANK", "0")),
        metavar="N",
        help="rank of this machine, from 0 to nnodes - 1 (default: $MYLLM_NODE_RANK, which Slurm jobs set, else 0)",
    )
    parser.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        default=os.environ.get("MYLLM_RENDEZVOUS"),
        help="address of machine 0, if there are several (default: $MYLLM_RENDEZVOUS)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the recipe; print keys, ranks and the command; run nothing"
    )


def look_ahead(arguments: argparse.Namespace, ahead: Ahead) -> None:
    from launch.pretraining.ahead import facts_of, needs_of, refused_by_megatron, wrong_environment

    run = Run(arguments.run, arguments.phase)
    recipe = load_recipe(arguments.model, arguments.training, arguments.hardware, arguments.set)
    check_launcher_keys(recipe)
    check_packages(recipe)
    layout = layout_of(recipe)
    ahead.wants(run.tokenizer, "train the tokenizer in an earlier stage")
    ahead.wants(run.blend, "an earlier stage must write it with `myllm blend`")
    begun = 0
    if run.phase:
        before = arguments.branch_from or Run(run.folder).checkpoints
        ahead.wants(before, "pretrain the phase before it in an earlier stage")
        begun = int(ahead.facts(before).get("iterations", checkpoints.reached(before)))
        if begun >= whole(recipe, "train-iters"):
            raise UserError(
                f"--phase {run.phase}: {arguments.training} has train-iters {whole(recipe, 'train-iters')}, but the "
                f"phase before it ends at {begun}: raise it"
            )
    vocab = ahead.facts(run.tokenizer).get("vocab")
    ahead.needs(**needs_of(recipe, layout, vocab, begun, arguments))
    ahead.makes(run.checkpoints, **facts_of(recipe, layout, vocab))
    if reason := wrong_environment(recipe, arguments.hardware):
        ahead.machine(reason)
    if ahead.counts and not ahead.quick and (reason := refused_by_megatron(arguments)):
        ahead.problem(reason)


def run(arguments: argparse.Namespace) -> int:
    run = Run(arguments.run, arguments.phase)
    if arguments.branch_from and not run.phase:
        raise UserError("--branch-from begins a later phase: name it with --phase")
    recipe = complete(load_recipe(arguments.model, arguments.training, arguments.hardware, arguments.set), run)
    check_launcher_keys(recipe)
    check_packages(recipe)
    layout = layout_of(recipe)
    megatron = flags(recipe) + run_flags(run)
    validate(megatron, layout)
    node = arguments.node_rank
    command = [*torchrun(layout, node, arguments.rendezvous), *megatron]
    if arguments.dry_run:
        print(describe(recipe, layout) + "\n")
    print("$ " + shlex.join(command), flush=True)
    if arguments.dry_run:
        return 0
    if layout.nodes > 1 and (":" not in (arguments.rendezvous or "") or not 0 <= node < layout.nodes):
        raise UserError(
            f"nnodes is {layout.nodes}: give --rendezvous HOST:PORT of the first machine, and --node-rank "
            f"0-{layout.nodes - 1}"
        )
    iterations, begun = whole(recipe, "train-iters"), 0
    if node == 0:
        in_use = f"{run.folder} is being trained by another process: wait until it ends, or stop it"
        lock = hold_lock(run.folder / ".pretrain.lock", in_use)  # noqa: F841  # held until this process ends
        checkpoints.claim(run, recipe, arguments.start_over)
        if run.phase:
            before = arguments.branch_from or Run(run.folder).checkpoints
            begun = checkpoints.branch(before, run.checkpoints, iterations)
        checkpoints.use_newest_whole(run.checkpoints)
    # with several machines none skips the training alone: it may not see node 0's files yet; Megatron ends by itself
    if layout.nodes == 1 and checkpoints.reached(run.checkpoints) >= iterations:
        print(f"{run.checkpoints} is already trained to iteration {iterations}", flush=True)
    else:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron's rule for tensor parallel on older cards
            "PYTHONWARNINGS": "ignore",
            # with a CUDA build of torch, the ranks would use a GPU although the recipe is for the CPU
            **({"CUDA_VISIBLE_DEVICES": ""} if get(recipe, "distributed-backend") == "gloo" else {}),
            "MYLLM_STOP_AT_SPIKE": str(get(recipe, "stop-at-spike", "")),
            "MYLLM_FUSED_ADAM": "1" if get(recipe, "fused-adam") else "",
            "MYLLM_SWANLAB_PROJECT": str(get(recipe, "swanlab-project", "")),
        }
        last, every = int(get(recipe, "keep-last", 0)), int(get(recipe, "keep-every", 0))
        thin = partial(checkpoints.thin, run.checkpoints, last, every)
        train(command, log_of(run.checkpoints, node), environment, layout.per_node, thin if node == 0 else lambda: None)
        done = checkpoints.reached(run.checkpoints)
        if done < iterations:
            text = f"stopped at iteration {done} of {iterations}, saved: run the same command to resume"
            print(text, flush=True)
            report_unfinished(text)
            return 0
    if node == 0:
        found = summary(run, recipe, layout, begun)
        begins = f"first {found['first_loss']:.3f}"
        if not begun and not get(recipe, "pretrained-checkpoint"):
            begins += f" near ln(vocabulary) {found['uniform_loss']:.3f}"
        report_gate("losses", f"finite; {begins}, last {found['final_loss']:.3f}")
        checkpoints.keep_newest(run.checkpoints)
        report_metrics(**found)
    return 0


if __name__ == "__main__":
    main(__name__)
