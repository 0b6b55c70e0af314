"""Suite `next_line`: the project's own questions, for small models that sit at chance on every exam."""

from mmengine.config import read_base

from eval_configs.models import BaseModel, ChatModel

with read_base():
    from .next_line_set import next_line_datasets
    from .running import eval, infer
    from .settings import base_settings, chat_settings

model_dataset_combinations = [
    dict(models=[dict(type=BaseModel, **model)], datasets=next_line_datasets) for model in base_settings
] + [
    dict(
        models=[dict(type=ChatModel, **model)],
        datasets=[dict(dataset, chat_of=model["path"]) for dataset in next_line_datasets],
    )
    for model in chat_settings
]
models = [model for pair in model_dataset_combinations for model in pair["models"]]
datasets = next_line_datasets
