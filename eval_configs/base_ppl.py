"""Suite `base_ppl`: the headline of base models, by perplexity: no answer has to be parsed."""

from mmengine.config import read_base

from eval_configs.models import BaseModel

with read_base():
    from .running import eval, infer
    from .settings import base_settings
    from .sets_ppl import ppl_datasets

models = [dict(type=BaseModel, **model) for model in base_settings]
datasets = ppl_datasets
