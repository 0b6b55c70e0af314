"""Pretraining recipes: combine three small YAML files and check them before anything starts.

    megatron_configs/models/<model>.yaml x training/<training>.yaml x hardware/<hardware>.yaml

Keys are Megatron-LM's own flags without the leading dashes, and the launcher's own keys (`LAUNCHER_KEYS`). Only one of
the three files may set a key; `--set KEY=VALUE` replaces it. Megatron's own parser checks the result
(`launch.pretraining.flags`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_yaml
from artifacts.layout import REPOSITORY, relative, yaml_file
from launch.pretraining.gpus import gpu
from launch.pretraining.served_flags import check_served

CONFIGS = REPOSITORY / "megatron_configs"
KINDS = ("models", "training", "hardware")

# Keys of a recipe beside Megatron's flags, with their meaning.
LAUNCHER_KEYS = {
    "nnodes": "number of machines, for torchrun",
    "nproc-per-node": "processes per machine, one per GPU, for torchrun",
    "gpu": "a name in launch/pretraining/gpus.yaml, whose peak and memory estimate, report and benchmark use",
    "published-vocab-size": "rows of the published model's embedding, the default of `myllm estimate`",
    "stop-at-spike": "stop if a step's loss is this many nats above the mean of the last 100 steps",
    "keep-last": "keep this many of the newest checkpoints while training; without it, all",
    "keep-every": "with keep-last: also keep the checkpoints of every so many iterations",
    "fused-adam": "torch's fused Adam kernel, for runs without Transformer Engine; Megatron has no flag for it",
    "swanlab-project": "send what is logged to TensorBoard to this SwanLab project too",
}


@dataclass(frozen=True)
class Key:
    """A key's value, and the file or option that sets it."""

    value: Any
    source: str


Recipe = dict[str, Key]


def names(kind: str) -> list[str]:
    """Names of the recipes in a folder of megatron_configs/."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def load_recipe(model: str, training: str, hardware: str, replaced: Iterable[str] = ()) -> Recipe:
    """Load the keys of the three files, then apply `--set`.

    Args:
        replaced: assignments `KEY=VALUE`.

    Raises:
        UserError: an unknown file, a key that two files set, an invalid assignment, a flag that is not supported.
    """
    import yaml  # here, to keep `myllm --help` quick

    recipe: Recipe = {}
    for kind, name in zip(KINDS, (model, training, hardware), strict=True):
        path = yaml_file(name, CONFIGS / kind, f"{kind.removesuffix('s')} recipe")
        source = relative(path)
        for key, value in (read_yaml(path) or {}).items():
            if key in recipe:
                raise UserError(f"{source} sets {key}, which {recipe[key].source} sets already: remove one of them")
            recipe[key] = Key(value, source)
    for assignment in replaced:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write KEY=VALUE")
        recipe[name] = Key(yaml.safe_load(text), "--set")
    check_served(recipe)
    return recipe


def get(recipe: Recipe, name: str, default: Any = None) -> Any:
    """The value of a key, or `default` if it is absent, null or false."""
    key = recipe.get(name)
    return default if key is None or key.value is None or key.value is False else key.value


def whole(recipe: Recipe, name: str, default: int | None = None) -> int:
    """The value of a key as a positive integer. Raises UserError if it is not one or is absent without a default."""
    value = get(recipe, name, default)
    if value is None:
        raise UserError(f"the recipe lacks {name}: set it in its file, or with --set {name}=…")
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise UserError(f"{recipe[name].source}: {name} is {value!r}, not a whole number") from None
    if number < 1:
        raise UserError(f"{recipe[name].source}: {name} is {number}; it must be at least 1")
    return number


def check_launcher_keys(recipe: Recipe) -> None:
    """Check the launcher's own keys before anything runs. Raises UserError on an unknown GPU or an invalid limit."""
    if name := get(recipe, "gpu"):
        gpu(str(name))
    for name in ("keep-last", "keep-every"):
        whole(recipe, name, 1)
    if get(recipe, "keep-every") and not get(recipe, "keep-last"):
        raise UserError(f"{recipe['keep-every'].source}: keep-every has no effect without keep-last: set both")
    try:
        float(get(recipe, "stop-at-spike", 1.0))
    except (TypeError, ValueError):
        key = recipe["stop-at-spike"]
        raise UserError(f"{key.source}: stop-at-spike is {key.value!r}, not a number") from None


def flags(recipe: Recipe) -> list[str]:
    """Megatron's flags: `true` gives the bare flag, `false` and null give nothing, a list gives all its values."""
    result: list[str] = []
    for name, key in recipe.items():
        if name in LAUNCHER_KEYS or key.value is False or key.value is None:
            continue
        result.append(f"--{name}")
        if key.value is not True:
            result.extend(map(str, key.value) if isinstance(key.value, list) else [str(key.value)])
    return result


@dataclass(frozen=True)
class Layout:
    """Number of ranks and their parallel layout."""

    nodes: int
    per_node: int
    tensor: int
    pipeline: int
    chunks: int  # chunks of layers per pipeline stage: 1, or more if the schedule is interleaved

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    @property
    def data(self) -> int:
        return self.world // (self.tensor * self.pipeline)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(tensor, data, pipeline) rank. Order `tp-dp-pp` of megatron-core 0.19.2's `RankGenerator`: tensor parallel
        varies fastest, so a group stays on one machine; pipeline parallel varies slowest."""
        return rank % self.tensor, rank // self.tensor % self.data, rank // (self.tensor * self.data)


def layout_of(recipe: Recipe) -> Layout:
    """The layout of a recipe.

    Raises:
        UserError: heads, layers, batch or sequence do not fit it; the message names the key to change.
    """
    tensor, pipeline = whole(recipe, "tensor-model-parallel-size", 1), whole(recipe, "pipeline-model-parallel-size", 1)
    nodes, per_node = whole(recipe, "nnodes", 1), whole(recipe, "nproc-per-node")
    whole(recipe, "make-vocab-size-divisible-by", 128)
    world = nodes * per_node
    if world % (tensor * pipeline):
        raise UserError(
            f"{world} processes are not a multiple of TP {tensor} x PP {pipeline}: change nproc-per-node in the "
            "hardware file"
        )
    layers = whole(recipe, "num-layers")
    layout = Layout(nodes, per_node, tensor, pipeline, _chunks(recipe, layers, pipeline))
    for key in ("num-attention-heads", "num-query-groups", "ffn-hidden-size"):
        if key in recipe and whole(recipe, key) % tensor:
            raise UserError(f"{key} {whole(recipe, key)} cannot be divided by tensor parallel {tensor}")
    heads, groups = whole(recipe, "num-attention-heads"), whole(recipe, "num-query-groups", 1)
    if heads % groups:
        raise UserError(f"num-attention-heads {heads} cannot be divided by num-query-groups {groups}")
    if get(recipe, "kv-channels") is None and whole(recipe, "hidden-size") % heads:
        raise UserError(f"hidden-size {whole(recipe, 'hidden-size')} cannot be divided by num-attention-heads {heads}")
    micro, batch = whole(recipe, "micro-batch-size"), whole(recipe, "global-batch-size")
    if batch % (micro * layout.data):
        raise UserError(
            f"global-batch-size {batch} is not a multiple of micro-batch-size x data parallel = {micro * layout.data}"
        )
    if layout.chunks > 1 and batch // (micro * layout.data) % pipeline:
        raise UserError(
            f"an interleaved schedule needs a multiple of {pipeline} (pipeline parallel) micro batches per step, not "
            f"{batch // (micro * layout.data)}: change global-batch-size or micro-batch-size"
        )
    warm_up = int(get(recipe, "lr-warmup-iters", 0))
    if warm_up >= whole(recipe, "lr-decay-iters", whole(recipe, "train-iters")):
        raise UserError(
            f"lr-warmup-iters {warm_up} leaves no step of train-iters {whole(recipe, 'train-iters')}: lower it"
        )
    length, longest = whole(recipe, "seq-length"), whole(recipe, "max-position-embeddings")
    if length > longest:
        raise UserError(f"seq-length {length} is longer than the model's max-position-embeddings {longest}: lower it")
    return layout


def _chunks(recipe: Recipe, layers: int, pipeline: int) -> int:
    """Chunks of layers per pipeline stage. Raises UserError if the layers cannot be divided this way."""
    each, first, last = (
        whole(recipe, key) if get(recipe, key) is not None else None
        for key in (
            "num-layers-per-virtual-pipeline-stage",
            "decoder-first-pipeline-num-layers",
            "decoder-last-pipeline-num-layers",
        )
    )
    if pipeline == 1:
        for key in (
            "num-layers-per-virtual-pipeline-stage",
            "decoder-first-pipeline-num-layers",
            "decoder-last-pipeline-num-layers",
        ):
            if get(recipe, key) is not None:
                raise UserError(
                    f"{key} is for pipeline parallel, but pipeline-model-parallel-size is 1: --set {key}=null"
                )
        return 1
    inner = layers - (first or 0) - (last or 0)
    stages = pipeline - (first is not None) - (last is not None)
    if inner < stages or inner % max(stages, 1) or (not stages and inner):
        ends = f" with {first or 0} layers on the first and {last or 0} on the last stage" if first or last else ""
        raise UserError(f"num-layers {layers} cannot be divided by pipeline parallel {pipeline}{ends}")
    if each is None:
        return 1
    if first is not None or last is not None:
        raise UserError("an interleaved schedule needs equal stages: --set decoder-first-pipeline-num-layers=null")
    if layers // pipeline % each:
        raise UserError(
            f"num-layers-per-virtual-pipeline-stage {each} does not divide the {layers // pipeline} layers of a stage"
        )
    return layers // pipeline // each


def describe(recipe: Recipe, layout: Layout) -> str:
    """What `--dry-run` prints: every key with its source, and the coordinates of each rank."""
    wide = max(len(name) for name in recipe)
    lines = ["# keys"]
    for name, key in recipe.items():
        value = " ".join(map(str, key.value)) if isinstance(key.value, list) else key.value
        lines.append(f"{name:<{wide}}  {value!s:<26}  {key.source}")
    interleaved = f", {layout.chunks} chunks a stage" if layout.chunks > 1 else ""
    lines += [
        "",
        f"# ranks: {layout.nodes} x {layout.per_node} = {layout.world}"
        f" = TP {layout.tensor} x DP {layout.data} x PP {layout.pipeline}{interleaved}",
        "node  local  rank  tensor  data  pipeline",
    ]
    for rank in range(layout.world):
        tensor, data, pipeline = layout.coordinates(rank)
        node, local = divmod(rank, layout.per_node)
        lines.append(f"{node:>4}  {local:>5}  {rank:>4}  {tensor:>6}  {data:>4}  {pipeline:>8}")
    return "\n".join(lines)
