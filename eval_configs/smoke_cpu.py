"""Suite `smoke_cpu`: your own questions, if there are any, and a few made-up exam questions; seconds on a laptop.

It checks that the evaluation runs, by ppl for base models and by gen for chat models. The exam questions are generated
by `eval_configs.smoke_data` in the formats of C-Eval and CMMLU; their score says nothing about a model.
"""

from mmengine.config import read_base

from eval_configs.models import BaseModel, ChatModel

with read_base():
    from .questions_set import own_datasets
    from .running import eval, infer
    from .sets_gen import gen_datasets
    from .sets_ppl import ppl_datasets
    from .settings import base_settings, chat_settings

# As in eval_configs.smoke_data. A config cannot import values: OpenCompass turns its imports into names.
_subjects = (
    "ceval-chinese_language_and_literature",
    "ceval-middle_school_geography",
    "ceval-high_school_mathematics",
    "cmmlu-elementary_mathematics",
    "cmmlu-chinese_literature",
)
_ppl = [dataset for dataset in ppl_datasets if dataset["abbr"].rpartition("-")[0] in _subjects]
# one of each exam: on a CPU, generation takes longer than scoring
_gen = [dataset for dataset in gen_datasets if dataset["abbr"].rpartition("-")[0] in (_subjects[1], _subjects[4])]

model_dataset_combinations = [
    dict(models=[dict(type=BaseModel, **model)], datasets=own_datasets + _ppl) for model in base_settings
] + [
    dict(
        models=[dict(type=ChatModel, **model)],
        datasets=[dict(dataset, chat_of=model["path"]) for dataset in own_datasets] + _gen,
    )
    for model in chat_settings
]
models = [model for pair in model_dataset_combinations for model in pair["models"]]
datasets = own_datasets + (_ppl if base_settings else []) + (_gen if chat_settings else [])
