"""The stock C-Eval config (perplexity, up to five examples), restricted to the subjects of the smoke set.

A plumbing check, not a measurement: the questions are a handful of the project's own (`eval_configs.smoke_data`),
laid out as C-Eval lays out its own. Point $COMPASS_DATA_CACHE at the real set and drop the filter to measure.
"""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ceval.ceval_ppl import ceval_datasets

# As in eval_configs.smoke_data.SUBJECTS; a config cannot import values, OpenCompass makes names of its imports.
ceval_smoke_datasets = [
    dataset
    for dataset in ceval_datasets
    if dataset["abbr"]
    in ("ceval-chinese_language_and_literature", "ceval-middle_school_geography", "ceval-high_school_mathematics")
]
