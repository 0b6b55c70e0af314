"""The dataset for a file of questions: four choices are scored after the same prefix, and the likeliest is the answer.

Chance is 25 %. The scored text is prefix + choice, with nothing between them. The set has the name of the file:
`tasks/next.jsonl` is the set `next`. Without a file there is no set.
"""

from mmengine.config import read_base
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from eval_configs.choice_inferencer import ChoiceInferencer
from eval_configs.questions_dataset import Questions

with read_base():
    from .settings import limit, only, questions

own_datasets = [
    dict(
        type=Questions,
        abbr="questions-" + questions.rpartition("/")[2].rpartition(".")[0],
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
] * bool(questions and (not only or "questions" in only))
