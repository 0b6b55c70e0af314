"""Ranks that train many small runs, one after another, as `launch.pretraining.worker` trains one.

    torchrun --nproc-per-node 2 tests/pretraining/grid.py JOBS.json

JOBS.json: [{"flags": [Megatron's], "log": file, "environment": {name: value}}, ...]. A job that fails ends the ranks;
its reason is in its log.
"""

import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from artifacts import megatron_on_cpu  # noqa: E402
from artifacts.megatron_adam import fused_adam, resume_with_plain_adam  # noqa: E402
from artifacts.megatron_wheel import use_compiled_helpers  # noqa: E402
from artifacts.processes import die_with_parent  # noqa: E402
from benchmarks.one_process import output_to, pretrain  # noqa: E402
from launch.pretraining import worker  # noqa: E402


def main() -> None:
    die_with_parent()
    megatron_on_cpu.patch_megatron()
    resume_with_plain_adam()
    use_compiled_helpers()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        worker._watch, worker._train = None, None
        worker._step.clear()
        os.environ.update(job["environment"])
        with output_to(job["log"]):
            try:
                with fused_adam(bool(os.environ.get("MYLLM_FUSED_ADAM"))):
                    pretrain(job["flags"], worker.datasets, worker.forward_step)
            except Exception:
                traceback.print_exc()
                raise
    sys.stdout.flush()
    os._exit(0)  # gloo's threads outlive their groups


if __name__ == "__mp_main__":  # a process that a rank spawned to write its checkpoints
    die_with_parent()
if __name__ == "__main__":
    main()
