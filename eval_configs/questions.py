"""Suite `questions`: multiple-choice questions from your own file.

    myllm eval MODEL --suite questions --questions FILE

Small models score at chance on exams. Questions made from held-out text of their corpus show what they learn.
"""

from mmengine.config import read_base

from eval_configs.models import BaseModel, ChatModel

with read_base():
    from .questions_set import own_datasets
    from .running import eval, infer
    from .settings import base_settings, chat_settings

model_dataset_combinations = [
    dict(models=[dict(type=BaseModel, **model)], datasets=own_datasets) for model in base_settings
] + [
    dict(
        models=[dict(type=ChatModel, **model)],
        datasets=[dict(dataset, chat_of=model["path"]) for dataset in own_datasets],
    )
    for model in chat_settings
]
models = [model for pair in model_dataset_combinations for model in pair["models"]]
datasets = own_datasets
