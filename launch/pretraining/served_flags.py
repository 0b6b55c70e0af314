"""Refuse the flags of Megatron that are not supported here; each error gives the reason and what to do instead.

Megatron's parser accepts the flags of every model and task of Megatron-LM. A flag that the pretraining of a dense GPT
model never reads, or whose feature the Hugging Face class of the finished model lacks, must not be ignored silently.

- `FAMILIES`: flags that are refused by name; some would end in an error inside Megatron.
- `NEEDS`: flags that have an effect only together with another key.
- `check_packages`: values that need a package which is not installed.

To support a flag, remove it from here. tests/pretraining/test_served_flags.py searches the sources for every flag of
Megatron's parser. A flag that is neither read by a training nor refused fails that test, also after an upgrade.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifacts.errors import UserError

if TYPE_CHECKING:
    from launch.pretraining.recipe import Recipe


@dataclass(frozen=True)
class Family:
    """Flags that are refused.

    Attributes:
        pattern: regular expression for the whole name, without the leading dashes.
        reason: why they are refused; the end of a sentence.
        mend: what to do, if it is not simply to remove the key.
        harmless: values that are allowed because they are the default here.
    """

    pattern: str
    reason: str
    mend: str = ""
    harmless: tuple[Any, ...] = ()


UNSUPPORTED = "Hugging Face's Qwen2 and Llama do not support"

FAMILIES = (
    # other models
    Family(r"expert-(model|tensor)-parallel-size", f"{UNSUPPORTED} experts", harmless=(1,)),
    Family(r".*moe-.*|num-experts|(?!expert-(model|tensor)-parallel-size).*experts?-.*|.*shared-expert|.*a2a-comm.*"
           r"|ep-overlap-.*|use-fused-weighted-squared-relu", f"{UNSUPPORTED} experts"),
    Family(r"mtp-.*", f"{UNSUPPORTED} the extra heads", harmless=(0,)),
    Family(r"multi-latent-attention|(q|kv)-lora-rank|(qk|v)-head-dim|qk-pos-emb-head-dim|mscale.*|mla-.*|cache-mla-.*"
           r"|rotary-scaling-factor", f"{UNSUPPORTED} multi-latent attention"),
    Family(r"experimental-attention-variant|(no-|disable-)?dsa-.*|linear-(attention|conv|key|value|num)-.*",
           f"{UNSUPPORTED} sparse or linear attention"),
    Family(r"(disable-)?mamba-.*|is-hybrid-model|hybrid-(layer|override)-pattern", f"{UNSUPPORTED} state-space layers"),
    Family(r"heterogeneous-.*", f"{UNSUPPORTED} layers that differ from each other"),
    Family(r"apply-residual-connection-post-layernorm|no-position-embedding|openai-gelu|onnx-safe"
           r"|relative-attention-.*", "Megatron's GPT model does not read it"),
    Family(r"ict-.*|biencoder-.*|bert-.*|titles-data-path|query-in-block-prob|use-one-sent-docs|evidence-data-path"
           r"|retriever-.*|block-data-path|embedding-path|indexer-.*|output-bert-embeddings|mask-prob|short-seq-prob"
           r"|sample-rate|vocab-extra-ids|decoder-seq-length", "it belongs to BERT, T5 and retrieval"),
    Family(r"num-classes|img-.|num-channels|patch-dim|classes-fraction|data-per-class-fraction|no-data-sharding"
           r"|mask-(type|factor)|head-lr-mult|vision-.*|swin-.*|iter-per-epoch|dino-.*|mrope-section",
           "it belongs to vision models"),
    # other tasks
    Family(r"(no-)?rl-.*|grpo-.*|perform-rl-step|langrl-.*|refit-method",
           "pretraining does no reinforcement learning", "Use `myllm posttrain grpo`"),
    Family(r"sft|sft-.*", "pretraining reads plain text", "Use `myllm posttrain sft_full`"),
    Family(r"logits-(save|load)-.*", "the worker's loss does not support distillation"),
    Family(r"fim-.*", "the worker builds plain GPT datasets, without fill-in-the-middle"),
    Family(r"(no-)?inference-.*|max-tokens-to-oom|use-legacy-static-engine|decode-only-cuda-graphs"
           r"|enable-chunked-prefill|num-speculative-tokens|use-same-sampling-seed-across-dp-ranks|flash-decode"
           r"|nccl-all-reduce-for-prefill|mlp-chunks-for-prefill",
           "it belongs to inference", "Use `myllm serve` for the finished model"),
    Family(r"mock-data", "a training reads the run's own dataset, which dataset/blend.json names"),
    Family(r"yaml-cfg", "the recipe's three files are the configuration"),
    # features of pretrain_gpt.py that launch/pretraining/worker.py does not have
    Family(r"dataloader-inter-document-masking",
           "the worker does not pass document boundaries to the attention"),
    Family(r"full-validation", "Megatron 0.19.2 ends with an error at the first validation",
           "Set eval-iters to the number of batches in the whole set"),
    Family(r"multiple-validation-sets|validation-set-names",
           "Megatron 0.19.2 ends with an error at the test set, which every run has"),
    Family(r"check-for-spiky-loss", "the worker has its own check of the loss", "Set stop-at-spike"),
    Family(r"inprocess-.*", "the worker does not restart inside its process",
           "Run the same command again: it resumes from the last checkpoint"),
    Family(r"run-workload-inspector-server", "Megatron's wheel does not contain the server"),
    # kinds of parallelism that launch.pretraining.recipe's rank layout does not support
    Family(r"context-parallel-size|hierarchical-context-.*|hybrid-context-parallel|cp-comm-type"
           r"|max-seqlen-per-dp-cp-rank", "the launcher supports tensor, pipeline and data parallel only",
           harmless=(1, "p2p")),
    Family(r"num-virtual-stages-per-pipeline-rank",
           "the launcher divides a pipeline by layers", "Set num-layers-per-virtual-pipeline-stage", harmless=(1,)),
    Family(r"enable-full-sharding-in-hsdp", "Megatron defines it and never reads it"),
    # old names
    Family(r"batch-size", "Megatron dropped it", "Set micro-batch-size"),
    Family(r"warmup", "Megatron dropped it", "Set lr-warmup-fraction"),
    Family(r"model-parallel-size", "Megatron dropped it", "Set tensor-model-parallel-size"),
    Family(r"checkpoint-activations", "Megatron dropped it", "Set recompute-granularity"),
    Family(r"rampup-batch-size", "Megatron no longer reads it", "Set step-batch-size-schedule"),
    Family(r"use-flash-attn", "Megatron no longer reads it", "Set attention-backend"),
    Family(r"use-mcore-models", "Megatron no longer reads it: every model is built from megatron-core"),
    Family(r"exit-signal-handler-for-dataloader|dist-ckpt-save-pre-mcore-014", "Megatron no longer reads it"),
    Family(r"use-dist-ckpt|dist-ckpt-format|ckpt-fully-parallel-save", "Megatron ignores it; it is the default"),
    # set by launch.pretraining.pretrain.run_flags after the recipe's keys, which would override the recipe's value
    Family(r"tokenizer-(type|model)|((train|valid|test)-)?data-path|(per-split-)?data-args-path|split|data-cache-path"
           r"|save|load|tensorboard-dir", "the folder of --run determines it"),
    Family(r"ckpt-format", "`myllm export` reads torch_dist checkpoints only", harmless=("torch_dist",)),
    Family(r"tiktoken-.*|null-tokenizer-.*|(no-|disable-)?tokenizer-sentencepiece-.*",
           "the run's tokenizer is a Hugging Face folder"),
)  # fmt: skip


Values = dict[str, Any]


@dataclass(frozen=True)
class Need:
    """Flags that have no effect unless `met` is true for the values of the whole recipe."""

    pattern: str
    met: Callable[[Values], bool]
    reason: str
    mend: str
    harmless: tuple[Any, ...] = ()


def is_local(values: Values) -> bool:
    return (values.get("transformer-impl") or "transformer_engine") != "transformer_engine"


def mask_is_used(values: Values) -> bool:
    """Whether attention uses the mask: launch.pretraining.attention does, and Megatron's own with unfused softmax."""
    ours = "launch.pretraining.attention" in (values.get("spec") or ())
    return is_local(values) and (ours or bool(values.get("no-masked-softmax-fusion")))


NEEDS = (
    Need("reset-attention-mask", mask_is_used,
         "Transformer Engine's layers and Megatron's fused softmax ignore the mask (Megatron-LM issue 2357)",
         "Set transformer-impl=local and spec=[launch.pretraining.attention,layer_spec]"),
    Need("reset-attention-mask", lambda values: not values.get("no-create-attention-mask-in-dataloader"),
         "with no-create-attention-mask-in-dataloader there is no mask",
         "Set no-create-attention-mask-in-dataloader=null"),
    Need("reset-position-ids",
         lambda values: values.get("position-embedding-type") in (None, "learned_absolute", "mrope"),
         "rotary embeddings count from the start of the sequence and ignore position ids", ""),
    Need(r"(no-|disable-)?(fp8|fp4|tp-comm)-.*|first-last-layers-bf16|num-layers-at-(start|end)-in-bf16"
         r"|te-precision-config-file|symmetric-ar-type|fused-residual-rmsnorm|use-transformer-engine-op-fuser"
         r"|use-te-activation-func|attention-backend|flash-attention-version",
         lambda values: not is_local(values), "only Transformer Engine's layers support it",
         "Use a hardware file with transformer-impl transformer_engine", harmless=("auto", "local")),
    Need("cross-entropy-fusion-impl", lambda values: bool(values.get("cross-entropy-loss-fusion")),
         "the loss is not fused", "Set cross-entropy-loss-fusion=true"),
    Need(r"(no-|disable-)?muon-.*", lambda values: "muon" in str(values.get("optimizer")),
         "the optimizer is not Muon", "Set optimizer=muon"),
    Need(r"lion-.*", lambda values: "lion" in (values.get("optimizer"), values.get("muon-scalar-optimizer")),
         "the optimizer is not Lion", "Set optimizer=lion"),
    Need(r"sgd-.*", lambda values: values.get("optimizer") == "sgd", "the optimizer is not SGD", "Set optimizer=sgd"),
    Need(r"lr-wsd-.*", lambda values: values.get("lr-decay-style") == "WSD",
         "the schedule is not WSD", "Set lr-decay-style=WSD"),
)  # fmt: skip

# values that need a package outside of the lock files: key, values, module, name of the package for pip
PACKAGES = (
    ("optimizer", {"muon", "dist_muon", "adaptive_muon", "lion", "soap"}, "emerging_optimizers", "emerging-optimizers"),
)


def check_served(recipe: Recipe) -> None:
    """Check the keys that a recipe sets. Needs neither torch nor Megatron.

    Raises:
        UserError: a flag is not supported, or has no effect without another key.
    """
    values = {name: key.value for name, key in recipe.items()}
    for name, key in recipe.items():
        if key.value is None or key.value is False:
            continue
        for rule in (*FAMILIES, *NEEDS):
            if not re.fullmatch(rule.pattern, name) or _harmless(key.value, rule.harmless):
                continue
            if isinstance(rule, Family) or not rule.met(values):
                what = "is not supported" if isinstance(rule, Family) else "has no effect"
                mend = f"{rule.mend}; or remove it" if rule.mend else "Remove it"
                raise UserError(f"{key.source}: {name} {what}: {rule.reason}. {mend}, or --set {name}=null")


def _harmless(value: Any, harmless: tuple[Any, ...]) -> bool:
    return all(str(one) in map(str, harmless) for one in (value if isinstance(value, list) else [value]))


def check_packages(recipe: Recipe) -> None:
    """Check that the packages which a recipe's values need are installed on the machine that trains.

    Raises:
        UserError: a package is missing; the message gives the pip command.
    """
    for name, values, module, package in PACKAGES:
        key = recipe.get(name)
        if key is not None and key.value in values and importlib.util.find_spec(module) is None:
            raise UserError(
                f"{key.source}: {name} {key.value} needs the package {package}, which is not installed. "
                f"Run .venv/bin/pip install '{package}>=0.2', or --set {name}=adam"
            )
