"""The combinations of recipes that ship: every model with every training on every hardware.

A training in phases differs from the whole one in its schedule alone: each phase comes once.
"""

import itertools

from launch.pretraining import recipe

PHASES = ("-stable", "-anneal")
COMBINATIONS = [
    combination
    for combination in itertools.product(*(recipe.names(kind) for kind in recipe.KINDS))
    if not combination[1].endswith(PHASES)
    or combination[::2] in (("qwen2-0.5b", "node-8"), ("llama2-1.1b", "cluster-4x8"))
]
