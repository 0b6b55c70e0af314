"""Which of four lines comes next: each is scored after the lines before it, the likeliest one is the answer.

Chance is 25 %. Every row of the questions file holds `prefix`, the choices `A` to `D`, and `answer` (a letter); the
text scored is prefix + choice, nothing between. `launch.score` writes such a file for every model (plain verse for a
base model, a ChatML conversation for a chat model) and puts its path in the place of `path`.
"""

from opencompass.datasets.jsonl import JsonlDataset
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

next_line_datasets = [
    dict(
        type=JsonlDataset,
        abbr="next_line",
        path="next_line.jsonl",  # under $COMPASS_DATA_CACHE
        reader_cfg=dict(input_columns=["prefix", "A", "B", "C", "D"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={"A": "{prefix}{A}", "B": "{prefix}{B}", "C": "{prefix}{C}", "D": "{prefix}{D}"},
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=PPLInferencer),
        ),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
    )
]
