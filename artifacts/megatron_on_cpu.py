"""Run Megatron on a machine without a GPU: its "cuda" becomes "cpu". A GPU run never imports this module.

    from artifacts import megatron_on_cpu
    megatron_on_cpu.patch_torch()       # before megatron is imported
    megatron_on_cpu.patch_megatron()    # after that, before megatron.training.pretrain()

Megatron-LM asks `torch.cuda` for devices, streams, random states and memory figures, and makes tensors on 'cuda'.
This module replaces every such call by one for the CPU; it changes no mathematics. It was written against megatron-core
0.19.2 and patches private names, so the version is pinned. Equality with one process is tested, and equality with
Hugging Face is checked at every export.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import sys
import types
import typing
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

# Modules on the training path that import triton without a check, and the names that Megatron imports from them.
TRITON_ONLY = {
    "megatron.core.transformer.moe.ops.paged_stash": (
        "GLOBAL_BLOCK_SIZE",
        "paged_stash_copy_kernel",
        "paged_stash_pop_kernel",
    ),
}

FACTORIES = (
    "tensor zeros ones empty full arange rand randn as_tensor zeros_like ones_like empty_like full_like linspace "
    "randint"
).split()

SILENT = (
    "set_device synchronize empty_cache reset_peak_memory_stats reset_max_memory_allocated set_stream ipc_collect "
    "_lazy_init manual_seed_all"
).split()

ZERO = (
    "memory_allocated max_memory_allocated memory_reserved max_memory_reserved device_memory_used utilization "
    "temperature power_draw clock_rate"
).split()


def allow_missing_triton() -> None:
    """Replace the modules that need triton by empty ones if triton is not installed; dense models never call them."""
    if importlib.util.find_spec("triton") is not None:
        return
    for name, attributes in TRITON_ONLY.items():
        module = types.ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, None)
        sys.modules.setdefault(name, module)


def allow_python_3_11() -> None:
    """Add `typing.override`, the only name for which megatron-core 0.19 needs Python 3.12."""
    if not hasattr(typing, "override"):
        from typing_extensions import override

        typing.override = override  # type: ignore[attr-defined]


def _answer(value: Any = None) -> Callable[..., Any]:
    """A function that takes any arguments and returns `value`; a new one each time: torch compares their identity."""
    return lambda *args, **kwargs: value


class _Stream:
    """Replaces a CUDA stream or event. A CPU has one queue, so there is nothing to order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = "cpu"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _answer()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exception: Any) -> None:
        return None

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _Properties:
    """Replaces the result of `torch.cuda.get_device_properties`."""

    major, minor, multi_processor_count = 8, 0, 1
    total_memory = 1 << 34
    name = "cpu"


def _means_cuda(device: Any) -> bool:
    if isinstance(device, bool):
        return False
    return isinstance(device, int) or str(device).startswith("cuda")


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a tensor factory: device='cuda' becomes the CPU, and pinned memory becomes ordinary memory."""
    import functools

    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if _means_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return function(*args, **kwargs)

    return factory


def patch_torch() -> None:
    """Patch `torch.cuda` for the CPU. Call once, before Megatron is imported."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron asserts it for TP > 1
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    for module in ("megatron", "torch.distributed"):  # missing GPU packages and torch deprecations: expected on a CPU
        warnings.filterwarnings("ignore", category=UserWarning, module=module)
    allow_python_3_11()
    allow_missing_triton()
    import torch

    cuda: Any = torch.cuda
    cpu = torch.device("cpu")
    torch.compile = lambda function=None, **_: function if function is not None else (lambda f: f)  # type: ignore
    for name in SILENT:
        setattr(cuda, name, _answer())
    for name in ZERO:
        setattr(cuda, name, _answer(0))
    cuda.current_device = _answer(cpu)
    cuda.device_count = _answer(1)
    cuda.get_device_capability = _answer((8, 0))
    cuda.get_device_properties = _answer(_Properties)
    cuda.get_device_name = _answer("cpu")
    cuda.memory_stats = lambda *args, **kwargs: defaultdict(int)
    cuda._lazy_call = lambda callback, **_: callback()
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _answer(), _answer()

    cuda.Stream, cuda.Event = _Stream, _Stream
    cuda.current_stream = cuda.default_stream = _answer(_Stream())
    cuda.stream = lambda *args, **kwargs: contextlib.nullcontext()

    cuda.default_generators = defaultdict(lambda: torch.default_generator)
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))

    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    tensor: Any = torch.Tensor
    torch.nn.Module.cuda = tensor.cuda = tensor.pin_memory = lambda self, *args, **kwargs: self
    tensor_to, tensor_type = tensor.to, tensor.type

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and _means_cuda(args[0]):
            args = (cpu, *args[1:])
        if _means_cuda(kwargs.get("device")):
            kwargs["device"] = cpu
        return tensor_to(self, *args, **kwargs)

    def type_name(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Megatron's optimizer compares type names with 'torch.cuda.FloatTensor'."""
        if args or kwargs:
            return tensor_type(self, *args, **kwargs)
        return tensor_type(self).replace("torch.", "torch.cuda.")

    tensor.to, tensor.type = to, type_name


def _patch_random_states() -> None:
    import megatron.core.tensor_parallel.random as random
    import torch

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    quiet = logging.getLogger(random.__name__)
    quiet.addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def _patch_start_up() -> None:
    """Skip the JIT warm-up, and let `initialize_megatron` run without CUDA."""
    import megatron.training.initialize as initialize
    import megatron.training.training as training

    without_check = initialize.initialize_megatron

    def initialize_megatron(*args: Any, **kwargs: Any) -> Any:
        return without_check(*args, **{**kwargs, "allow_no_cuda": True})

    for module in (initialize, training):
        for name in ("set_jit_fusion_options", "_warmup_jit_function"):
            if hasattr(module, name):
                setattr(module, name, _answer())
        module.initialize_megatron = initialize_megatron


def _patch_checkpoint_writer() -> None:
    """Copy a weight that is a view of a larger one when it is written, not before.

    A checkpoint holds SwiGLU's two matrices apart, as views of one tensor, and the optimizer's moments likewise. The
    writer clones every view of a CPU tensor before it writes the first: half of all weights once more in memory.
    """
    import torch
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    writer = filesystem_async.FileSystemWriterAsync
    prepare, write = writer.prepare_write_data, filesystem_async._write_item
    clone = torch.Tensor.clone

    def prepare_write_data(self: Any, *args: Any, **kwargs: Any) -> Any:
        torch.Tensor.clone = lambda tensor, **_: tensor  # type: ignore[method-assign, assignment]
        try:
            return prepare(self, *args, **kwargs)
        finally:
            torch.Tensor.clone = clone  # type: ignore[method-assign]

    def whole(data: Any) -> Any:
        is_view = isinstance(data, torch.Tensor) and data.untyped_storage().size() != data.numel() * data.itemsize
        return clone(data) if is_view else data

    @functools.wraps(write)  # the caller asks for its parameters
    def write_item(*args: Any, **kwargs: Any) -> Any:
        return write(*map(whole, args), **kwargs)

    writer.prepare_write_data = prepare_write_data
    filesystem_async._write_item = write_item


def patch_megatron() -> None:
    """Patch the functions of megatron-core 0.19.2 that need CUDA. Call before `pretrain()`."""
    _patch_random_states()
    _patch_start_up()
    _patch_checkpoint_writer()
