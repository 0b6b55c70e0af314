"""How OpenCompass runs a suite: all sets of a model in one process, on this machine.

By default each of the 119 subjects of C-Eval and CMMLU gets its own process, 8 to 15 s each. `opencompass CONFIG
--slurm -p PARTITION` replaces the partitioner and the runner given here.
"""

from opencompass.partitioners import NaivePartitioner
from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask

infer = dict(
    partitioner=dict(type=NaivePartitioner, n=1000), runner=dict(type=LocalRunner, task=dict(type=OpenICLInferTask))
)
eval = dict(
    partitioner=dict(type=NaivePartitioner, n=1000), runner=dict(type=LocalRunner, task=dict(type=OpenICLEvalTask))
)
