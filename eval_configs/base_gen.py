"""Suite `base_gen`: base models generate their answer after five examples."""

from mmengine.config import read_base

from eval_configs.models import BaseModel

with read_base():
    from .running import eval, infer
    from .sets_gen import gen_datasets
    from .settings import writing_settings

models = [dict(type=BaseModel, **model) for model in writing_settings]
datasets = gen_datasets
