"""Which of four lines comes next: each is scored after what stands before it, the likeliest one is the answer.

Chance is 25 %. The text scored is prefix + choice, nothing between.
"""

from mmengine.config import read_base
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from eval_configs.choice_inferencer import ChoiceInferencer
from eval_configs.next_line_dataset import NextLine

with read_base():
    from .settings import limit, questions

next_line_datasets = [
    dict(
        type=NextLine,
        abbr="next_line",
        path=questions,
        limit=limit,
        reader_cfg=dict(input_columns=["prefix", "A", "B", "C", "D"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={"A": "{prefix}{A}", "B": "{prefix}{B}", "C": "{prefix}{C}", "D": "{prefix}{D}"},
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=ChoiceInferencer),
        ),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)),
    )
]
