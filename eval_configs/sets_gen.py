"""The sets by generation: the model generates text, and the first capital letter of the text is its answer.

These are OpenCompass's stock configs, with `-gen` after their names and paths that do not depend on the working folder.
C-Eval and CMMLU have five examples. OpenCompass's `cmmlu_gen` has another protocol (no examples, chain of thought).
"""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ceval.ceval_gen import ceval_datasets
    from opencompass.configs.datasets.CLUE_C3.CLUE_C3_gen import C3_datasets
    from opencompass.configs.datasets.cmmlu.cmmlu_gen_c13365 import cmmlu_datasets
    from opencompass.configs.datasets.FewCLUE_chid.FewCLUE_chid_gen import chid_datasets

    from .settings import data_root, only, subjects, test_range

_sets = dict(
    ceval=ceval_datasets[:subjects],
    cmmlu=cmmlu_datasets[:subjects],
    c3=[dict(dataset, path=data_root + "/data/CLUE/C3/dev_0.json") for dataset in C3_datasets],
    chid=[dataset for dataset in chid_datasets if dataset["abbr"] == "chid-test"],
)
gen_datasets = [
    dict(dataset, abbr=dataset["abbr"] + "-gen", reader_cfg=dict(dataset["reader_cfg"], **test_range))
    for name, datasets in _sets.items()
    if name in only or not only
    for dataset in datasets
]
