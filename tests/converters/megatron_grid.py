"""Ranks of the conversion grid: Megatron loads, runs and saves imported checkpoints in many layouts.

    torchrun --nproc-per-node 8 tests/converters/megatron_grid.py WORK

WORK/plan.json: {"layouts": [[tp, pp], ...], "models": [name, ...]}. Each model lies in WORK/<name>/imported (a
checkpoint) and WORK/<name>/logits.pt (what Hugging Face says to WORK/prompt.json). For each layout the model is loaded
by Megatron's `dist_checkpointing`, asked, and saved anew to WORK/<name>/<tp>x<pp>; WORK/differences.json tells by how
much the answers differ. The vocabulary is padded as that layout pads it.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from artifacts import megatron_on_cpu

megatron_on_cpu.patch_torch()
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from artifacts.vocabulary import padded_size  # noqa: E402
from converters import checkpoint  # noqa: E402
from converters.megatron_forward import build  # noqa: E402


def ask(model, ids, pipeline):
    """Logits of one prompt through all pipeline stages; the last stage has them, the others None."""
    from megatron.core import parallel_state

    tokens = torch.tensor([ids])
    mask = torch.triu(torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool), diagonal=1)
    positions = torch.arange(len(ids)).unsqueeze(0)
    if not parallel_state.is_pipeline_first_stage():
        hidden = torch.empty(len(ids), 1, model.config.hidden_size)
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    output = model(tokens, positions, mask)
    if not parallel_state.is_pipeline_last_stage():
        dist.send(output.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
        return None
    return output[0]


def main():
    work = Path(sys.argv[1])
    plan = json.loads((work / "plan.json").read_text())
    ids = json.loads((work / "prompt.json").read_text())
    dist.init_process_group("gloo")
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    differences = {}
    for tensor, pipeline in plan["layouts"]:
        parallel_state.initialize_model_parallel(tensor, pipeline)
        model_parallel_cuda_manual_seed(0)
        for name in plan["models"]:
            source = checkpoint.latest_iteration(work / name / "imported")
            arguments = checkpoint.arguments(source)
            arguments.tensor_model_parallel_size = tensor
            arguments.padded_vocab_size = padded_size(arguments.vocab_size, 128, tensor)
            model = build(arguments, tensor, pipeline)
            loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(source))
            model.load_state_dict(loaded["model"])
            with torch.no_grad():
                logits = ask(model, ids, pipeline)
            target = work / name / f"{tensor}x{pipeline}"
            if dist.get_rank() == 0:
                target.mkdir()
            dist.barrier()
            state = {"args": arguments, "iteration": 1}
            dist_checkpointing.save({**model.sharded_state_dict(), **state}, str(target))
            found = 0.0
            if logits is not None:
                wanted = torch.load(work / name / "logits.pt")
                found = (logits[:, : wanted.shape[1]] - wanted).abs().max().item()
            every = [None] * dist.get_world_size()
            dist.all_gather_object(every, found)
            differences[f"{name} {tensor}x{pipeline}"] = max(every)
        parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        (work / "differences.json").write_text(json.dumps(differences))
    dist.barrier()
    os._exit(0)  # gloo's threads outlive their groups


if __name__ == "__main__":
    main()
