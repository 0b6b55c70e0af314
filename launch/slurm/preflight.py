"""Check the nodes of a job before a long training: GPUs, disk, clock, arithmetic, network. Slow nodes are named.

    sbatch --nodes=4 --gpus-per-node=8 launch/slurm/preflight.sbatch          # by hand
    python -m launch.slurm.preflight --folder runs/mine --output preflight.json     # one task per node, as in the job

Jobs on several nodes run it themselves if the site file sets MYLLM_PREFLIGHT=yes. The network is measured by
all-reduces of torch.distributed between neighbours on a ring (NCCL between the first GPUs if there are any, else Gloo).
Each node gets the rate with the better of its two neighbours, so that a slow node does not lower their rates. Slow
means below `--slow-share` of the median. Not measured: the links between the GPUs of one node, and all network cards
but the first GPU's. If a node fails a check, the exit code is 2 and the error lists every finding.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import write_json

REPEAT = 7  # measurements; the best counts, which other load on the node disturbs least
TRIES = 5  # clock readings; the one with the shortest round trip counts
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Node:
    """Measurements of one node. Sizes in GB (1e9), rates in GFLOP/s and MB/s, times in seconds."""

    node: str
    gpus: int
    gpus_given: int | None  # allocated by Slurm; None if it does not say
    disk_gb: float  # free in the run's folder
    scratch_gb: float  # free in TMPDIR
    shared_memory_gb: float  # free in /dev/shm, which NCCL and data loaders use
    clock_off: float  # ahead of the first node's clock
    gflops: float
    network: float = 0.0  # all-reduce with the better neighbour: tensor bytes per second, in MB/s


@dataclass(frozen=True)
class Limits:
    min_disk_gb: float
    max_clock_off: float
    slow_share: float
    min_network: float


def judge(nodes: list[Node], limits: Limits) -> list[str]:
    """The findings, one line each, with the node's name; empty if every node is fit."""
    found = []
    most = max(node.gpus for node in nodes)
    for node in nodes:
        wanted = most if node.gpus_given is None else max(most, node.gpus_given)
        if node.gpus < wanted:
            found.append(f"{node.node} sees {node.gpus} of {wanted} GPUs")
        if node.disk_gb < limits.min_disk_gb:
            found.append(f"{node.node} has {node.disk_gb:.1f} GB free for the run and needs {limits.min_disk_gb:g}")
        if abs(node.clock_off) > limits.max_clock_off:
            found.append(f"{node.node} has a clock that is {node.clock_off:+.1f} s off the first node's")
    for name, unit in (("gflops", "GFLOP/s"), ("network", "MB/s to its better neighbour")):
        values = [getattr(node, name) for node in nodes]
        middle = statistics.median(values)
        for node, value in zip(nodes, values, strict=True):
            if len(nodes) > 2 and value < limits.slow_share * middle:
                found.append(f"{node.node} is slow: {value:.0f} {unit}, the median is {middle:.0f}")
            if name == "network" and len(nodes) > 1 and value < limits.min_network:
                found.append(f"{node.node} reaches {value:.0f} {unit} and needs {limits.min_network:g}")
    if len(nodes) == 2:
        slow, fast = sorted(nodes, key=lambda node: node.gflops)
        if slow.gflops < limits.slow_share * fast.gflops:
            found.append(f"{slow.node} is slow: {slow.gflops:.0f} GFLOP/s, {fast.node} has {fast.gflops:.0f}")
    return found


def table(nodes: list[Node]) -> str:
    head = (
        f"{'node':<16} {'GPUs':>4} {'disk GB':>8} {'tmp GB':>7} {'shm GB':>7} {'clock s':>8} {'GFLOP/s':>8} {'MB/s':>8}"
    )
    rows = [
        f"{n.node:<16} {n.gpus:>4} {n.disk_gb:>8.1f} {n.scratch_gb:>7.1f} {n.shared_memory_gb:>7.1f} "
        f"{n.clock_off:>8.3f} {n.gflops:>8.0f} {n.network:>8.0f}"
        for n in nodes
    ]
    return "\n".join([head, *rows])


def free_gb(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def arithmetic() -> float:
    """GFLOP/s of a matrix product, in bfloat16 on the first GPU, else in float32 on the CPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    size = 8192 if on_gpu else 512
    kind = {"device": "cuda", "dtype": torch.bfloat16} if on_gpu else {}
    one = torch.ones(size, size, **kind)  # type: ignore[arg-type]
    best = float("inf")
    for _ in range(REPEAT):
        begin = time.perf_counter()
        one @ one
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best / 1e9


def clock_off(rank: int, world: int) -> float:
    """Seconds by which this node's clock is ahead of the first node's, which answers the others in turn."""
    import torch
    import torch.distributed as dist

    answer, best = torch.zeros(1, dtype=torch.float64), (float("inf"), 0.0)
    for other in range(1, world):
        for _ in range(TRIES):
            if rank == 0:
                dist.recv(answer, other)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), other)
            elif rank == other:
                begin = time.time()
                dist.send(answer, 0)
                dist.recv(answer, 0)
                end = time.time()
                best = min(best, (end - begin, (begin + end) / 2 - float(answer)))
    return best[1]


def pairs(world: int) -> list[tuple[int, int]]:
    """Pairs of neighbours on a ring: every node has two neighbours, or one if there are only two nodes."""
    return [(i, i + 1) for i in range(world - 1)] + ([(world - 1, 0)] if world > 2 else [])


def network(rank: int, world: int) -> float:
    """MB/s of all-reduces between this node and its better neighbour."""
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    tensor = torch.ones((256 if on_gpu else 4) << 20, device="cuda" if on_gpu else "cpu")  # 4 bytes each
    found = 0.0
    for pair in pairs(world):
        group = dist.new_group(list(pair))
        if rank in pair:
            best = float("inf")
            for _ in range(REPEAT):
                dist.barrier(group)
                begin = time.perf_counter()
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
                if on_gpu:
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - begin)
            found = max(found, tensor.nbytes / best / 1e6)
        dist.barrier()  # do not let the next pair disturb this one
    return found


def look(folder: Path, rank: int, world: int) -> Node:
    """Measure this node. All nodes must call it together."""
    import torch

    given = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return Node(
        node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        gpus=torch.cuda.device_count(),
        gpus_given=int(given) if given.isdigit() else None,
        disk_gb=free_gb(folder),
        scratch_gb=free_gb(Path(tempfile.gettempdir())),
        shared_memory_gb=free_gb(SHARED_MEMORY),
        clock_off=clock_off(rank, world),
        gflops=arithmetic(),
        network=network(rank, world),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder that the run will write to")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for measurements and findings")
    parser.add_argument("--min-disk-gb", type=float, default=20, help="GB that must be free for the run (default 20)")
    parser.add_argument("--max-clock-off", type=float, default=2, help="largest clock offset, seconds (default 2)")
    parser.add_argument(
        "--slow-share", type=float, default=0.5, help="a node below this share of the median is slow (default 0.5)"
    )
    parser.add_argument("--min-network", type=float, default=0, help="lowest network rate, MB/s (default 0)")
    a = parser.parse_args()
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    meeting = os.environ.get("MYLLM_RENDEZVOUS", "127.0.0.1:29400")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://{meeting}", rank=rank, world_size=world)
    own = look(a.folder.resolve(), rank, world)
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, own)
    dist.barrier()
    dist.destroy_process_group()
    if rank:
        return 0
    found = judge(gathered, Limits(a.min_disk_gb, a.max_clock_off, a.slow_share, a.min_network))
    print(table(gathered), flush=True)
    write_json(a.output, {"nodes": [asdict(node) for node in gathered], "findings": found})
    if found:
        raise UserError(f"preflight: {'; '.join(found)}")
    print("preflight: every node is fit", flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
