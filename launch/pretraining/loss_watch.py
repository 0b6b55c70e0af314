"""Check the loss of every step before the weights are updated, and name the documents of a bad batch.

Runs in the rank that computes losses. The run stops on a loss that is NaN or infinite, on a spike, or on a first loss
that an untrained model cannot have. The weights are not updated in that step, so resuming from the last checkpoint is
safe.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from artifacts.errors import UserError
from launch.pretraining.training_log import first_loss_fault

REMEMBERED = 100  # last steps whose mean a spike is compared with
NEEDED = 20  # steps before the first comparison
SHOWN = 12  # documents named in a message
LEARNT = 0.9  # share of ln(vocabulary) that the first loss of imported weights must stay below


class Numbered:
    """A map-style dataset that adds to each sample its number, so that `documents_of` can find its documents."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.split = dataset, getattr(dataset, "split", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "sample": index}


def documents_of(dataset: Any, samples: list[int]) -> str:
    """The documents that make up these samples, as text, for each source: `prefix: id, id, …`."""
    found: dict[str, list[int]] = {}
    for sample in samples:
        part, index = dataset, sample
        if hasattr(dataset, "dataset_sample_index"):  # a blend of several
            part, index = dataset.datasets[dataset.dataset_index[sample]], dataset.dataset_sample_index[sample]
        _, documents, _ = part._query_document_sample_shuffle_indices(int(index))
        known = found.setdefault(str(part.dataset.path_prefix), [])
        known.extend(int(d) for d in documents if int(d) not in known)
    shown = []
    for prefix, documents in found.items():
        more = f" and {len(documents) - SHOWN} more" if len(documents) > SHOWN else ""
        shown.append(f"{prefix}: {', '.join(map(str, documents[:SHOWN]))}{more}")
    return "; ".join(shown)


class LossWatch:
    """Check the loss of each step.

    Args:
        spike: stop if the loss is this many nats above the mean of the last 100 steps; None: never.
        vocabulary: number of ids; the first loss is compared with its logarithm.
        imported: the run starts from imported weights, whose first loss must be lower.
        documents: function that names the documents of some samples.
    """

    def __init__(
        self,
        spike: float | None,
        vocabulary: int,
        imported: bool = False,
        documents: Callable[[list[int]], str] = lambda samples: f"those of samples {samples}",
    ) -> None:
        self.spike, self.vocabulary, self.imported, self.documents = spike, vocabulary, imported, documents
        self.past: deque[float] = deque(maxlen=REMEMBERED)

    def look(self, loss: float, step: int, samples: list[int]) -> None:
        """Check a step's mean loss in nats, before the weights are updated.

        Args:
            samples: numbers of this rank's samples in the step.

        Raises:
            UserError: the run must stop; the message names the step, the documents and what to do.
        """
        if not math.isfinite(loss):
            self._stop(
                step, samples, f"the loss is {loss}", "lower lr, lengthen lr-warmup-iters, or check the documents"
            )
        if step == 1:
            self._first(loss)
        if self.spike is not None and len(self.past) >= NEEDED:
            usual = sum(self.past) / len(self.past)
            if loss > usual + self.spike:
                self._stop(
                    step,
                    samples,
                    f"the loss rose to {loss:.3f} from a mean of {usual:.3f}",
                    "lower lr, or check the documents; stop-at-spike sets the limit in nats",
                )
        self.past.append(loss)

    def _first(self, mean: float) -> None:
        uniform = math.log(self.vocabulary)
        if not self.imported:
            if fault := first_loss_fault(mean, self.vocabulary):
                raise UserError(fault)
        elif mean > LEARNT * uniform:
            raise UserError(
                f"the first loss is {mean:.3f}, that of an untrained model (ln(vocabulary) = {uniform:.3f}): the "
                "imported weights and the run's tokenizer do not belong together; use the imported model's tokenizer"
            )

    def _stop(self, step: int, samples: list[int], what: str, advice: str) -> None:
        raise UserError(
            f"step {step}: {what}; the batch's documents are {self.documents(samples)}. Nothing of this step was "
            f"saved. {advice}; to skip the step, --set 'iterations-to-skip=[{step}]'; run the same command to resume"
        )
