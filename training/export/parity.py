"""The proof of an export: the file that will be served computes what was evaluated.

Three ways compute the probabilities of every test image. Each of the last two replaces a part of the first by another
implementation, and starts from the original image, read anew:

    way          resize                        normalize         network
    evaluated    contract, stored by the run   first layer       torch
    witness      Albumentations                Albumentations    torch, the layers after the first
    served       contract                      first layer       ONNX Runtime, in the service's own loader

The proof holds when

1. `witness` and `served` have the pixels of `evaluated`, equal to the last bit;
2. no probability is further from `evaluated` than the contract's tolerance;
3. no predicted label differs from `evaluated`, except between labels that are equally probable there (a tie), which are
   those whose probabilities differ by no more than the same tolerance;
4. the first layer, in torch and inside the finished file, computes what `A.Normalize` computes.
5. novelty, computed in numpy from what torch gives the last linear layer, and in the finished file, differs by no more
   than a share of 0.01, and no image is unfamiliar in one alone, except where its novelty is that close to the limit;
6. training images, asked about in the finished file, are as far from their own rows of the index as 16 bits round.

Pixels are compared exactly. Probabilities cannot be: torch and ONNX Runtime add in different orders. Which of two tied
labels is predicted depends on that order, hence on the device, on its algorithm for convolutions and on the batch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from serving.contract.card.decisions import Familiarity
from serving.contract.model import open_model
from serving.contract.neighbours.index import TrainingIndex
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.export.first_layer import NormalizationCheck, check_normalization
from training.export.ways import WayCheck, recompute
from training.metrics.classification import Probabilities
from training.metrics.evaluation import Evaluation
from training.metrics.familiarity.novelty import Detector, Novelty
from training.metrics.familiarity.training_index import faults_of_index
from training.storage import copy_rows

NORMALIZED_IMAGES = 64
"""Test images over which the first layer is compared where it measures each image; 64 of 224 px hold 9.6 M values."""
NOVELTY_TOLERANCE = 1e-2
"""Largest difference of two novelties as a share of the limit, or of the novelty where that is larger."""


@dataclass(frozen=True, kw_only=True)
class ExpectedOutputs:
    """What was evaluated on the test split, how its novelty is computed, and the index; None where there is none."""

    probabilities: Probabilities
    detector: Detector | None = None
    novelty: Novelty | None = None
    index: TrainingIndex | None = None
    """Index of the training images."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> "ExpectedOutputs":
        """What the file must compute: the answers of its own model, also where the scores are of others."""
        novelty = evaluation.novelty
        return cls(
            probabilities=evaluation.probabilities["test"]
            if evaluation.by_final_model is None
            else evaluation.by_final_model,
            detector=novelty.detector if novelty else None,
            novelty=novelty.test if novelty else None,
            index=novelty.index if novelty else None,
        )


@dataclass(frozen=True, kw_only=True)
class NoveltyCheck:
    """Novelty of the test images in the finished file, compared with the evaluated one."""

    largest_difference: float
    """As a share of the limit, or of the novelty where that is larger."""
    decisions_differ: int
    """Images that are unfamiliar in one alone, although their novelty is not close to the limit."""

    @property
    def holds(self) -> bool:
        """No decision differs, no novelty differs by more than the tolerance."""
        return self.decisions_differ == 0 and self.largest_difference <= NOVELTY_TOLERANCE

    def __str__(self) -> str:
        """One line for the message of ExportRefused."""
        return (
            f"novelty: {self.decisions_differ} decisions differ, largest difference a share of "
            f"{self.largest_difference:.2g} (at most {NOVELTY_TOLERANCE:g})"
        )


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The result of the proof on a test split of `images` images."""

    images: int
    normalization: NormalizationCheck
    ways: tuple[WayCheck, ...]
    novelty: NoveltyCheck | None
    """None where the model has none."""
    served: Probabilities
    """What the service will answer, a row for each test image."""
    served_novelty: Novelty | None

    @property
    def faults(self) -> list[str]:
        """A line for each check that does not hold; empty when the proof holds."""
        checks: list[NormalizationCheck | WayCheck | NoveltyCheck] = [self.normalization, *self.ways]
        checks += [] if self.novelty is None else [self.novelty]
        return [str(check) for check in checks if not check.holds]


def prove(model: nn.Sequential, path: Path, dataset: Dataset, evaluated: ExpectedOutputs) -> Parity:
    """Prove the finished file at `path` against what was `evaluated` of `model` on the test split of `dataset`.

    Raises ExportRefused with a line for each check that fails, and ModelRefused where the service would refuse the
    file.
    """
    classifier = open_model(path, threads=0)
    test = dataset.splits["test"]
    witness, served, novelty = recompute(model, classifier, dataset)
    some = copy_rows(dataset.images, test[:NORMALIZED_IMAGES])
    parity = Parity(
        images=len(test),
        normalization=check_normalization(model, path, classifier.card, some),
        ways=(witness.check(evaluated.probabilities), served.check(evaluated.probabilities)),
        novelty=check_novelty(classifier.card.familiarity, evaluated.novelty, novelty),
        served=served.probabilities,
        served_novelty=novelty,
    )
    faults = parity.faults
    if evaluated.index is not None:
        faults += faults_of_index(evaluated.index, classifier, dataset)
    if faults:
        raise ExportRefused("\n".join(faults))
    return parity


def check_novelty(
    familiarity: Familiarity | None, evaluated: Novelty | None, served: Novelty | None
) -> NoveltyCheck | None:
    """Compare novelty of the same images; None where there is none."""
    if familiarity is None or evaluated is None or served is None:
        return None
    share = np.abs(served - evaluated) / np.maximum(evaluated, familiarity.threshold)
    near = np.abs(evaluated - familiarity.threshold) <= NOVELTY_TOLERANCE * familiarity.threshold
    differ = familiarity.unfamiliar(served) != familiarity.unfamiliar(evaluated)
    return NoveltyCheck(largest_difference=float(share.max()), decisions_differ=int((differ & ~near).sum()))
