"""Watch the loss of every step before its weights are changed, and name the documents of a batch that breaks it.

Runs in the rank that computes losses. A loss that is no number, a spike, or a first loss that no untrained model has
stops the run: the last checkpoint is older than the damage, so going on from it is safe.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from artifacts.errors import UserError
from launch.pretraining.training_log import first_loss_fault

REMEMBERED = 100  # steps whose mean a spike is measured against
NEEDED = 20  # steps before there is a mean worth the name
SHOWN = 12  # documents named in a message
LEARNT = 0.9  # of ln(vocabulary): weights that were imported must do better than this


class Numbered:
    """A map-style dataset that tells for each sample its number, by which `documents_of` finds where it came from."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.split = dataset, getattr(dataset, "split", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "sample": index}


def documents_of(dataset: Any, samples: list[int]) -> str:
    """The documents that make up some samples of a blend: `prefix: id, id, …` by source."""
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
    """Judge each step's loss.

    Args:
        spike: nats above the mean of the last steps that stop the run; None: never.
        vocabulary: for the first loss of a run from nothing.
        imported: the run goes on from imported weights, whose first loss must be lower.
        documents: names the documents of some samples.
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
        """Take in a step's mean loss in nats, before its weights are changed.

        Args:
            samples: numbers of the samples that this rank had in the step.

        Raises:
            UserError: naming the step, the documents, and what to do.
        """
        if not math.isfinite(loss):
            self._stop(step, samples, f"the loss is {loss}", "lower lr, lengthen the warm-up, or look at the documents")
        if step == 1:
            self._first(loss)
        if self.spike is not None and len(self.past) >= NEEDED:
            usual = sum(self.past) / len(self.past)
            if loss > usual + self.spike:
                self._stop(
                    step,
                    samples,
                    f"the loss rose to {loss:.3f} from a mean of {usual:.3f}",
                    "lower lr, or look at the documents; stop-at-spike sets how much is too much",
                )
        self.past.append(loss)

    def _first(self, mean: float) -> None:
        uniform = math.log(self.vocabulary)
        if not self.imported:
            if fault := first_loss_fault(mean, self.vocabulary):
                raise UserError(fault)
        elif mean > LEARNT * uniform:
            raise UserError(
                f"the first loss is {mean:.3f}, that of a model that knows nothing (ln(vocabulary) = {uniform:.3f}): "
                "the imported weights and the run's tokenizer do not belong together"
            )

    def _stop(self, step: int, samples: list[int], what: str, advice: str) -> None:
        raise UserError(
            f"step {step}: {what}; the batch's documents are {self.documents(samples)}. Nothing of this step was "
            f"saved. {advice}; to leave steps out, --set 'iterations-to-skip=[{step}]'; the same command goes on"
        )
