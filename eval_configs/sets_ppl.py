"""The sets by perplexity: each choice is put after the question, and the one with the lowest mean loss is the answer.

These are OpenCompass's stock configs, with `-ppl` after their names and paths that do not depend on the working folder.
The stock names are the same for ppl and gen, which would mix up their results. Why these sets: eval_configs/sets.yaml.
"""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ceval.ceval_ppl import ceval_datasets
    from opencompass.configs.datasets.CLUE_C3.CLUE_C3_ppl import C3_datasets
    from opencompass.configs.datasets.cmmlu.cmmlu_ppl import cmmlu_datasets
    from opencompass.configs.datasets.FewCLUE_chid.FewCLUE_chid_ppl import chid_datasets
    from opencompass.configs.datasets.storycloze.storycloze_ppl import storycloze_datasets

    from .settings import data_root, only, subjects, test_range

_sets = dict(
    ceval=ceval_datasets[:subjects],
    cmmlu=cmmlu_datasets[:subjects],
    c3=[dict(dataset, path=data_root + "/data/CLUE/C3/dev_0.json") for dataset in C3_datasets],
    chid=[dataset for dataset in chid_datasets if dataset["abbr"] == "chid-test"],
    xstory_cloze=[dict(dataset, lang="zh", abbr="xstory_cloze-zh") for dataset in storycloze_datasets],
)
ppl_datasets = [
    dict(dataset, abbr=dataset["abbr"] + "-ppl", reader_cfg=dict(dataset["reader_cfg"], **test_range))
    for name, datasets in _sets.items()
    if name in only or not only
    for dataset in datasets
]
