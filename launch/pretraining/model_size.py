"""Count a recipe's model: parameters, floating-point operations, bytes on a GPU. No model is built.

Memory and FLOPs follow megatron-core 0.19.2 (`training/theoretical_memory_usage.py`,
`training/training.py: num_floating_point_operations`); tests compare them with those functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.vocabulary import padded_size
from launch.pretraining.recipe import Layout, Recipe, get, whole

ACTIVATION_SLACK = 1.05  # Megatron's allowance for buffers


@dataclass(frozen=True)
class Model:
    """The sizes that the counts depend on."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_dim: int
    vocab: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on the most loaded GPU, the one of the first pipeline stage."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def model_of(recipe: Recipe, vocab: int | None = None) -> Model:
    """The recipe's model with `vocab` embedding rows (default: published-vocab-size)."""
    heads, hidden = whole(recipe, "num-attention-heads"), whole(recipe, "hidden-size")
    return Model(
        layers=whole(recipe, "num-layers"),
        hidden=hidden,
        ffn=whole(recipe, "ffn-hidden-size"),
        heads=heads,
        groups=whole(recipe, "num-query-groups", heads) if get(recipe, "group-query-attention") else heads,
        head_dim=whole(recipe, "kv-channels", hidden // heads),
        vocab=vocab or whole(recipe, "published-vocab-size"),
        tied=get(recipe, "untie-embeddings-and-output-weights") is None,
        qkv_bias=get(recipe, "add-qkv-bias") is not None,
        qk_norm=get(recipe, "qk-layernorm") is not None,
    )


def layer_parameters(model: Model) -> int:
    """Parameters of one layer: attention, SwiGLU, two norms, and those of queries and keys if there are any."""
    query, key_value = model.heads * model.head_dim, model.groups * model.head_dim
    attention = model.hidden * (2 * query + 2 * key_value) + (query + 2 * key_value if model.qkv_bias else 0)
    norms = 2 * model.hidden + (2 * model.head_dim if model.qk_norm else 0)
    return attention + 3 * model.hidden * model.ffn + norms


def parameters(model: Model) -> int:
    """All parameters; a tied embedding counts once."""
    embeddings = model.vocab * model.hidden * (1 if model.tied else 2)
    return model.layers * layer_parameters(model) + embeddings + model.hidden


def flops_per_token(model: Model, sequence: int) -> float:
    """Floating-point operations per trained token, forward and backward, including attention's quadratic part.

    A matrix product of [m, n] and [n, k] costs 2mnk; the backward pass costs twice as much; the causal mask halves the
    scores. Recomputed activations are not counted, as MFU is defined (arXiv 2204.02311).
    """
    query, key_value = model.heads * model.head_dim, model.groups * model.head_dim
    linear = model.layers * (model.hidden * (2 * query + 2 * key_value) + 3 * model.hidden * model.ffn)
    scores = model.layers * query * sequence  # two products, each over half of the square
    return 3 * 2 * (linear + scores + model.hidden * model.vocab)


def memory(recipe: Recipe, model: Model, layout: Layout) -> Memory:
    """Bytes by part on the most loaded GPU; `model.vocab` is padded here for the layout.

    Bytes per parameter: bf16 keeps 2 for the weight, 4 for the gradient, 12 for the fp32 copy and Adam's moments; fp32
    keeps 4 + 4 + 8. Activations: arXiv 2205.05198, table 2, as Megatron's estimator applies it.
    """
    from_16_bits = get(recipe, "bf16") or get(recipe, "fp16")
    vocab = padded_vocabulary(recipe, model.vocab, layout.tensor)
    embedding = vocab * model.hidden
    norms = (2 * model.layers + 1) * model.hidden / layout.pipeline
    matrices = model.layers * (layer_parameters(model) - 2 * model.hidden) / layout.pipeline + embedding
    if not model.tied and layout.pipeline == 1:
        matrices += embedding
    held = matrices / layout.tensor + norms
    states = held * (12 if from_16_bits else 8)
    if get(recipe, "use-distributed-optimizer"):
        states /= layout.data

    sequence, micro = whole(recipe, "seq-length"), whole(recipe, "micro-batch-size")
    width = 2 if from_16_bits else 4
    tokens = sequence * micro
    shared = get(recipe, "sequence-parallel") and get(recipe, "recompute-granularity") == "selective"
    if shared:
        layer = tokens * model.hidden * (18 + 4 * model.ffn / model.hidden) / layout.tensor
    else:
        layer = tokens * model.hidden * (10 + 24 / layout.tensor)
    if (
        get(recipe, "recompute-granularity") == "full"
    ):  # each layer's input, and one layer in full while it is recomputed
        kept = model.layers * tokens * model.hidden * 2 + layer
    else:
        kept = model.layers * layer
    activations = (kept + (8 * tokens + tokens * model.hidden) * layout.pipeline) * width / 2
    batches = whole(recipe, "global-batch-size") // (micro * layout.data)
    if layout.chunks > 1:
        activations *= 1 + (layout.pipeline - 1) / (layout.pipeline * layout.chunks)
    elif layout.pipeline > 1:
        activations *= min(1, batches / layout.pipeline)
    logits = 0.0
    if layout.pipeline == 1:
        logits = (tokens * vocab / layout.tensor + tokens * model.hidden) * width
    return Memory(
        weights=held * width,
        gradients=held * 4,
        optimizer=states,
        activations=activations * (1 if shared else ACTIVATION_SLACK),
        logits=logits * (1 if shared else ACTIVATION_SLACK),
    )


def padded_vocabulary(recipe: Recipe, vocab: int, tensor: int) -> int:
    """Rows of the embedding in a run: `vocab` rounded up to a multiple of make-vocab-size-divisible-by x TP."""
    return padded_size(vocab, whole(recipe, "make-vocab-size-divisible-by", 128), tensor)
