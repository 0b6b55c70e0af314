"""Suite `base_ppl`: the main scores of base models, by perplexity, so no generated answer has to be parsed."""

from mmengine.config import read_base

from eval_configs.models import BaseModel

with read_base():
    from .running import eval, infer
    from .sets_ppl import ppl_datasets
    from .settings import base_settings

models = [dict(type=BaseModel, **model) for model in base_settings]
datasets = ppl_datasets
