"""Suite `chat_gen`: chat models generate their answer, through their own chat template."""

from mmengine.config import read_base

from eval_configs.models import ChatModel

with read_base():
    from .running import eval, infer
    from .sets_gen import gen_datasets
    from .settings import chat_settings

models = [dict(type=ChatModel, **model) for model in chat_settings]
datasets = gen_datasets
