"""Let Megatron's distributed optimizer resume with torch's own Adam, on any device without Transformer Engine or Apex.

It was written against megatron-core 0.19.2 and patches private names, so the version is pinned; that a resumed run
gives the weights of an undisturbed one is a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def resume_with_plain_adam() -> None:
    """Patch megatron-core 0.19.2 where it has neither; elsewhere do nothing. Call before `pretrain()`.

    The stock code expects a shared step counter in the parameter groups. With torch's Adam it lies in each
    parameter's state: missing before the first step, not in the checkpoint, and one tensor shared by all after a load.
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
                    # torch's fused kernel counts on the parameter's device, its other ones on the CPU
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
    """While this lasts, torch's AdamW and Adam update all weights in one fused kernel, where `wanted`.

    Megatron has no flag for it: without Transformer Engine and Apex, whose Adam is fused, it makes torch's with the
    default, which goes over the list of weights several times.
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
