"""Suite `api_gen`: the sets of `chat_gen` on a served model, by OpenAI's protocol, to compare serving with local runs.

It uses OpenCompass's `OpenAISDK`, because its `OpenAI` retries for ever if a server answers with HTTP 500.
"""

from mmengine.config import read_base

from eval_configs.models import ServedModel

with read_base():
    from .running import eval, infer
    from .sets_gen import gen_datasets
    from .settings import api_settings

models = [dict(type=ServedModel, **model) for model in api_settings]
datasets = gen_datasets
