"""Suite `api_gen`: a served model, by OpenAI's protocol: the sets of `chat_gen`, so that serving can be compared.

`OpenAISDK` is behind it, not `OpenAI`: that one asks for ever when a server answers with HTTP 500.
"""

from mmengine.config import read_base

from eval_configs.models import ServedModel

with read_base():
    from .running import eval, infer
    from .sets_gen import gen_datasets
    from .settings import api_settings

models = [dict(type=ServedModel, **model) for model in api_settings]
datasets = gen_datasets
