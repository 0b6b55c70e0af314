"""PyTorch's attention in Megatron's layers: the same numbers as Megatron's own."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

ATTENTION = """
import sys; sys.path.insert(0, ".")
from artifacts import megatron_on_cpu
megatron_on_cpu.patch_torch()
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from launch.pretraining.attention import SDPACoreAttention
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
model_parallel_cuda_manual_seed(0)
config = dict(num_layers=1, hidden_size=64, num_attention_heads=4, num_query_groups=2, attention_dropout=0.0)
config = TransformerConfig(**config, masked_softmax_fusion=False, use_cpu_initialization=True)
stock = DotProductAttention(config, 1, AttnMaskType.causal, "self")
ours = SDPACoreAttention(config=config)
q, k, v = (torch.randn(24, 3, heads, 16, requires_grad=True) for heads in (4, 2, 2))
causal = torch.ones(1, 1, 24, 24, dtype=torch.bool).triu(1)
documents = causal.clone(); documents[..., 12:, :12] = True  # two documents that must not see each other
answers = []
for module, masks in ((stock, (causal, documents)), (ours, (None, documents))):
    for mask in masks:
        output = module(q, k, v, mask)
        answers.append([output, *torch.autograd.grad(output.square().sum(), (q, k, v))])
for a, b in zip(answers[:2], answers[2:]):
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
assert not torch.allclose(answers[0][0], answers[1][0])
config.window_size = (8, 0)
try:
    SDPACoreAttention(config=config)
except ValueError as error:
    assert "window_size" in str(error)
else:
    raise AssertionError("a window was taken")
"""


def test_sdpa_equals_megatrons_own_attention():
    """Outputs and gradients, causal and with a mask, grouped queries."""
    subprocess.run([sys.executable, "-c", ATTENTION], cwd=REPOSITORY, check=True)
