"""What Megatron itself says of recipes: cross-checks, FLOPs, memory. JSON on standard output, by combination.

python tests/pretraining/megatron_says.py '[["qwen2-0.5b", "zh-10b", "node-8"], …]'
"""

import contextlib
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from artifacts.errors import UserError
from artifacts.layout import Run
from launch.pretraining import flags, model_size, pretrain, recipe


def say(model: str, training: str, hardware: str) -> dict:
    found = recipe.load_recipe(model, training, hardware)
    layout = recipe.layout_of(found)
    args = flags.validate(recipe.flags(found) + pretrain.run_flags(Run(Path("runs/none"))), layout)
    from megatron.training.theoretical_memory_usage import report_theoretical_memory  # only now is CUDA answered for
    from megatron.training.training import num_floating_point_operations

    shape = model_size.model_of(found)
    args.padded_vocab_size = shape.vocab
    batches = args.global_batch_size // (args.micro_batch_size * layout.data)
    flops = num_floating_point_operations(args, args.global_batch_size)
    args.padded_vocab_size = model_size.padded_vocabulary(found, shape.vocab, layout.tensor)
    with contextlib.redirect_stdout(io.StringIO()):
        weights, _, total = report_theoretical_memory(args, num_microbatches=batches)
    return {
        "flops": flops,
        "megabytes": total,
        "weight_megabytes": weights,
        "data_parallel": args.data_parallel_size,
        "16 bits": bool(args.bf16),
        "recompute": args.recompute_granularity,
    }


def main() -> None:
    answers = {}
    for combination in json.loads(sys.argv[1]):
        try:
            answers[" ".join(combination)] = say(*combination)
        except UserError as error:
            answers[" ".join(combination)] = {"error": str(error)}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
