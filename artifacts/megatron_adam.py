"""Let Megatron's distributed optimizer resume with torch's Adam, on any device without Transformer Engine or Apex.

It was written against megatron-core 0.19.2 and patches private names, so the version is pinned. A test checks that a
resumed run gives the same weights as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def resume_with_plain_adam() -> None:
    """Patch megatron-core 0.19.2 if neither is installed; else do nothing. Call before `pretrain()`.

    Megatron expects one step counter in the parameter groups. torch's Adam has a counter in each parameter's state,
    which is missing before the first step, is not in the checkpoint, and after a load is one tensor shared by all.
    """
    import torch
    from megatron.core.optimizer import distrib_optimizer

    if distrib_optimizer.HAVE_APEX_OR_TE:
        return
    Optimizer = distrib_optimizer.DistributedOptimizer

    state_dict, load_state_dict = Optimizer.state_dict, Optimizer.load_state_dict
    set_states = Optimizer._set_main_param_and_optimizer_states

    def with_steps(self: Any) -> Any:
        if not self.optimizer.state:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    # torch's fused kernel keeps the step on the parameter's device, its other kernels on the CPU
                    device = parameter.device if group.get("fused") or group.get("capturable") else "cpu"
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(0.0, device=device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        return state_dict(self)

    def keep_step(self: Any, model_parameter: Any, tensors: dict[str, Any]) -> Any:
        group, order = self.model_param_group_index_map[model_parameter]
        step = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]].get("step")
        return set_states(self, model_parameter, tensors if step is None else {"step": step, **tensors})

    def own_steps(self: Any, loaded: Any) -> None:
        load_state_dict(self, loaded)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    Optimizer.state_dict = with_steps
    Optimizer._set_main_param_and_optimizer_states = keep_step
    Optimizer.load_state_dict = own_steps


@contextmanager
def fused_adam(wanted: bool = True) -> Iterator[None]:
    """Context in which torch's AdamW and Adam update all weights in one fused kernel, if `wanted`.

    Megatron has no flag for it. Without Transformer Engine and Apex, whose Adam is fused, it uses torch's default,
    which goes over the list of weights several times.
    """
    import torch

    if not wanted:
        yield
        return
    defaults = [kind.__init__.__kwdefaults__ for kind in (torch.optim.AdamW, torch.optim.Adam)]
    kept = [kinds["fused"] for kinds in defaults]
    for kinds in defaults:
        kinds["fused"] = True
    try:
        yield
    finally:
        for kinds, value in zip(defaults, kept):
            kinds["fused"] = value
