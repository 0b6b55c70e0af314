"""Which of Megatron's flags a recipe may set: a flag that would do nothing here is refused, with reason and mend.

Megatron's parser serves every model and task of Megatron-LM. What a pretraining of a dense GPT model does not read, or
what the Hugging Face class of the finished model has no place for, must not pass in silence.

- `FAMILIES`: flags that are refused by name, some because they end in an error of Megatron's.
- `NEEDS`: flags that work only together with another key.
- `check_packages`: values that need a package which is not installed.

To serve a flag, take it out of here. tests/pretraining/test_served_flags.py goes through every flag of Megatron's
parser and finds in the sources whether a training reads it. A flag that is neither read nor refused fails there, after
an upgrade of Megatron too.
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
        pattern: what their names match as a whole, without the leading dashes.
        reason: why they are not served; ends a sentence.
        mend: what to do, when that is not to remove the key.
        harmless: values that say what is so anyway.
    """

    pattern: str
    reason: str
    mend: str = ""
    harmless: tuple[Any, ...] = ()


NO_PLACE = "Hugging Face's Qwen2 and Llama have no place for"

FAMILIES = (
    # other models
    Family(r"expert-(model|tensor)-parallel-size", f"{NO_PLACE} experts", harmless=(1,)),
    Family(r".*moe-.*|num-experts|(?!expert-(model|tensor)-parallel-size).*experts?-.*|.*shared-expert|.*a2a-comm.*"
           r"|ep-overlap-.*|use-fused-weighted-squared-relu", f"{NO_PLACE} experts"),
    Family(r"mtp-.*", f"{NO_PLACE} the extra heads", harmless=(0,)),
    Family(r"multi-latent-attention|(q|kv)-lora-rank|(qk|v)-head-dim|qk-pos-emb-head-dim|mscale.*|mla-.*|cache-mla-.*"
           r"|rotary-scaling-factor", f"{NO_PLACE} multi-latent attention"),
    Family(r"experimental-attention-variant|(no-|disable-)?dsa-.*|linear-(attention|conv|key|value|num)-.*",
           f"{NO_PLACE} sparse or linear attention"),
    Family(r"(disable-)?mamba-.*|is-hybrid-model|hybrid-(layer|override)-pattern", f"{NO_PLACE} state-space layers"),
    Family(r"heterogeneous-.*", f"{NO_PLACE} layers that differ from each other"),
    Family(r"apply-residual-connection-post-layernorm|no-position-embedding|openai-gelu|onnx-safe"
           r"|relative-attention-.*", "Megatron's GPT model does not read it"),
    Family(r"ict-.*|biencoder-.*|bert-.*|titles-data-path|query-in-block-prob|use-one-sent-docs|evidence-data-path"
           r"|retriever-.*|block-data-path|embedding-path|indexer-.*|output-bert-embeddings|mask-prob|short-seq-prob"
           r"|sample-rate|vocab-extra-ids|decoder-seq-length", "it belongs to BERT, T5 and retrieval"),
    Family(r"num-classes|img-.|num-channels|patch-dim|classes-fraction|data-per-class-fraction|no-data-sharding"
           r"|mask-(type|factor)|head-lr-mult|vision-.*|swin-.*|iter-per-epoch|dino-.*|mrope-section",
           "it belongs to models of images"),
    # other tasks
    Family(r"(no-)?rl-.*|grpo-.*|perform-rl-step|langrl-.*|refit-method",
           "pretraining does no reinforcement learning", "Use `myllm posttrain grpo`"),
    Family(r"sft|sft-.*", "pretraining reads plain text", "Use `myllm posttrain sft_full`"),
    Family(r"logits-(save|load)-.*", "the training's loss knows no teacher"),
    Family(r"fim-.*", "the training builds plain GPT datasets, without fill-in-the-middle"),
    Family(r"(no-)?inference-.*|max-tokens-to-oom|use-legacy-static-engine|decode-only-cuda-graphs"
           r"|enable-chunked-prefill|num-speculative-tokens|use-same-sampling-seed-across-dp-ranks|flash-decode"
           r"|nccl-all-reduce-for-prefill|mlp-chunks-for-prefill",
           "a training serves no requests", "Use `myllm serve` for the finished model"),
    Family(r"mock-data", "a training reads the run's own dataset, which dataset/blend.json names"),
    Family(r"yaml-cfg", "the recipe's three files are the configuration"),
    # what launch/pretraining/worker.py leaves to pretrain_gpt.py
    Family(r"dataloader-inter-document-masking",
           "the worker hands no document boundaries to the attention"),
    Family(r"full-validation", "Megatron 0.19.2 ends with an error at the first validation",
           "Set eval-iters to the batches of the whole set"),
    Family(r"multiple-validation-sets|validation-set-names",
           "Megatron 0.19.2 ends with an error at the test set, which every run has"),
    Family(r"check-for-spiky-loss", "the launcher watches the loss itself", "Set stop-at-spike"),
    Family(r"inprocess-.*", "the worker does not restart inside its process",
           "Start the same command again: it goes on from the last checkpoint"),
    Family(r"run-workload-inspector-server", "the server is no part of Megatron's wheel"),
    # ways to cut a model that launch.pretraining.recipe's rank layout does not know
    Family(r"context-parallel-size|hierarchical-context-.*|hybrid-context-parallel|cp-comm-type"
           r"|max-seqlen-per-dp-cp-rank", "the launcher's ranks are tensor, pipeline and data parallel",
           harmless=(1, "p2p")),
    Family(r"num-virtual-stages-per-pipeline-rank",
           "the launcher cuts a pipeline by layers", "Set num-layers-per-virtual-pipeline-stage", harmless=(1,)),
    Family(r"enable-full-sharding-in-hsdp", "Megatron defines it and never reads it"),
    # old names
    Family(r"batch-size", "Megatron dropped it", "Set micro-batch-size"),
    Family(r"warmup", "Megatron dropped it", "Set lr-warmup-fraction"),
    Family(r"model-parallel-size", "Megatron dropped it", "Set tensor-model-parallel-size"),
    Family(r"checkpoint-activations", "Megatron dropped it", "Set recompute-granularity"),
    Family(r"rampup-batch-size", "Megatron reads it no more", "Set step-batch-size-schedule"),
    Family(r"use-flash-attn", "Megatron reads it no more", "Set attention-backend"),
    Family(r"use-mcore-models", "Megatron reads it no more: every model is one of megatron-core's"),
    Family(r"exit-signal-handler-for-dataloader|dist-ckpt-save-pre-mcore-014", "Megatron reads it no more"),
    Family(r"use-dist-ckpt|dist-ckpt-format|ckpt-fully-parallel-save", "Megatron reads it no more; it is the default"),
    # what launch.pretraining.pretrain.run_flags sets, after the recipe's keys: the recipe's value would be overruled
    Family(r"tokenizer-(type|model)|((train|valid|test)-)?data-path|(per-split-)?data-args-path|split|data-cache-path"
           r"|save|load|tensorboard-dir", "the folder of --run decides it"),
    Family(r"ckpt-format", "export reads torch_dist checkpoints only", harmless=("torch_dist",)),
    Family(r"tiktoken-.*|null-tokenizer-.*|(no-|disable-)?tokenizer-sentencepiece-.*",
           "the run's tokenizer is a Hugging Face folder"),
)  # fmt: skip


Values = dict[str, Any]


@dataclass(frozen=True)
class Need:
    """Flags that do nothing unless `met` says yes to the values of the whole recipe."""

    pattern: str
    met: Callable[[Values], bool]
    reason: str
    mend: str
    harmless: tuple[Any, ...] = ()


def is_local(values: Values) -> bool:
    return (values.get("transformer-impl") or "transformer_engine") != "transformer_engine"


def mask_is_used(values: Values) -> bool:
    """launch.pretraining.attention takes the mask, and so does Megatron's own attention with an unfused softmax."""
    ours = "launch.pretraining.attention" in (values.get("spec") or ())
    return is_local(values) and (ours or bool(values.get("no-masked-softmax-fusion")))


NEEDS = (
    Need("reset-attention-mask", mask_is_used,
         "Transformer Engine's layers and Megatron's fused softmax drop the mask (Megatron-LM issue 2357)",
         "Set transformer-impl=local and spec=[launch.pretraining.attention,layer_spec]"),
    Need("reset-attention-mask", lambda values: not values.get("no-create-attention-mask-in-dataloader"),
         "no-create-attention-mask-in-dataloader leaves the mask out",
         "Set no-create-attention-mask-in-dataloader=null"),
    Need("reset-position-ids",
         lambda values: values.get("position-embedding-type") in (None, "learned_absolute", "mrope"),
         "rotary embeddings count from the start of the sequence and take no position ids", ""),
    Need(r"(no-|disable-)?(fp8|fp4|tp-comm)-.*|first-last-layers-bf16|num-layers-at-(start|end)-in-bf16"
         r"|te-precision-config-file|symmetric-ar-type|fused-residual-rmsnorm|use-transformer-engine-op-fuser"
         r"|use-te-activation-func|attention-backend|flash-attention-version",
         lambda values: not is_local(values), "only Transformer Engine's layers have it",
         "Take hardware with transformer-impl transformer_engine", harmless=("auto", "local")),
    Need("cross-entropy-fusion-impl", lambda values: bool(values.get("cross-entropy-loss-fusion")),
         "it says how the loss is fused, and it is not", "Set cross-entropy-loss-fusion=true"),
    Need(r"(no-|disable-)?muon-.*", lambda values: "muon" in str(values.get("optimizer")),
         "the optimizer is not Muon", "Set optimizer=muon"),
    Need(r"lion-.*", lambda values: "lion" in (values.get("optimizer"), values.get("muon-scalar-optimizer")),
         "the optimizer is not Lion", "Set optimizer=lion"),
    Need(r"sgd-.*", lambda values: values.get("optimizer") == "sgd", "the optimizer is not SGD", "Set optimizer=sgd"),
    Need(r"lr-wsd-.*", lambda values: values.get("lr-decay-style") == "WSD",
         "the schedule is not WSD", "Set lr-decay-style=WSD"),
)  # fmt: skip

# values that need a package outside of the lock files: key, values, module, how pip calls it
PACKAGES = (
    ("optimizer", {"muon", "dist_muon", "adaptive_muon", "lion", "soap"}, "emerging_optimizers", "emerging-optimizers"),
)


def check_served(recipe: Recipe) -> None:
    """Look at the keys that a recipe sets. Needs neither torch nor Megatron.

    Raises:
        UserError: a flag that is not served, or that does nothing without another key.
    """
    values = {name: key.value for name, key in recipe.items()}
    for name, key in recipe.items():
        if key.value is None or key.value is False:
            continue
        for rule in (*FAMILIES, *NEEDS):
            if not re.fullmatch(rule.pattern, name) or _harmless(key.value, rule.harmless):
                continue
            if isinstance(rule, Family) or not rule.met(values):
                said = "is not served" if isinstance(rule, Family) else "would do nothing"
                mend = f"{rule.mend}; or remove it" if rule.mend else "Remove it"
                raise UserError(f"{key.source}: {name} {said}: {rule.reason}. {mend}, or --set {name}=null")


def _harmless(value: Any, harmless: tuple[Any, ...]) -> bool:
    return all(str(one) in map(str, harmless) for one in (value if isinstance(value, list) else [value]))


def check_packages(recipe: Recipe) -> None:
    """Look for the packages that a recipe's values need, where the training is to run.

    Raises:
        UserError: one is missing, with pip's command.
    """
    for name, values, module, package in PACKAGES:
        key = recipe.get(name)
        if key is not None and key.value in values and importlib.util.find_spec(module) is None:
            raise UserError(
                f"{key.source}: {name} {key.value} needs the package {package}, which is not installed. "
                f".venv/bin/pip install '{package}>=0.2', or --set {name}=adam"
            )
