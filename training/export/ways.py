"""Two further ways to compute the probabilities of the test split, each from the original images, read anew."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from serving.contract.card.model_card import TOLERANCE
from serving.contract.model import Answers, Classifier
from training.data.dataset import Dataset
from training.device import full_float32
from training.metrics.classification import Probabilities
from training.metrics.familiarity.novelty import Novelty
from training.models import views
from training.models.prediction import inference_batch
from training.storage import copy_rows


@dataclass(frozen=True, kw_only=True)
class WayCheck:
    """One way of computing the probabilities of the test split, compared with the evaluated one."""

    way: str
    pixels_equal: float | None
    """Share of the images whose resized pixels all equal the evaluated ones; None: they were not compared."""
    largest_difference: float
    """Largest difference of a probability."""
    labels_differ: int
    """Images with another predicted label, without ties."""
    ties: int
    """Images with another predicted label that is as probable as the evaluated one."""

    @property
    def holds(self) -> bool:
        """All pixels equal, no label differs, no probability differs by more than the tolerance."""
        return self.pixels_equal in (1, None) and self.labels_differ == 0 and self.largest_difference <= TOLERANCE

    def __str__(self) -> str:
        """One line for a message."""
        pixels = "" if self.pixels_equal is None else f"pixels equal in {self.pixels_equal:.1%} of the images, "
        return (
            f"{self.way}: {pixels}{self.labels_differ} labels differ, "
            f"largest difference of a probability {self.largest_difference:.2g} (at most {TOLERANCE:g})"
        )


def check_way(way: str, pixels_equal: float | None, evaluated: Probabilities, recomputed: Probabilities) -> WayCheck:
    """Compare probabilities `[images, classes]`; a label that differs is a tie where the evaluated ones are equal."""
    [differing] = np.nonzero(recomputed.argmax(1) != evaluated.argmax(1))
    lead = evaluated[differing].max(1) - evaluated[differing, recomputed[differing].argmax(1)]
    return WayCheck(
        way=way,
        pixels_equal=pixels_equal,
        largest_difference=float(np.abs(recomputed - evaluated).max()),
        labels_differ=int((lead > TOLERANCE).sum()),
        ties=int((lead <= TOLERANCE).sum()),
    )


class RecomputedSplit:
    """What one way computes, collected batch by batch."""

    def __init__(self, way: str) -> None:
        self.way = way
        self._pixels_equal: list[np.ndarray] = []
        self._probabilities: list[Probabilities] = []

    @property
    def probabilities(self) -> Probabilities:
        """A row for each image of all batches."""
        return np.concatenate(self._probabilities)

    def add(self, pixels: np.ndarray, evaluated: np.ndarray, probabilities: Probabilities) -> None:
        """Add a batch: uint8 pixels `[batch, height, width, channels]` of this way and of the evaluated one."""
        self._pixels_equal.append((pixels == evaluated).all((1, 2, 3)))
        self._probabilities.append(probabilities)

    def check(self, evaluated: Probabilities) -> WayCheck:
        """Compare all batches with what was evaluated."""
        equal = float(np.concatenate(self._pixels_equal).mean())
        return check_way(self.way, equal, evaluated, self.probabilities)


def recompute(
    model: nn.Sequential, classifier: Classifier, dataset: Dataset
) -> tuple[RecomputedSplit, RecomputedSplit, Novelty | None]:
    """Both other ways over the test split, `witness` and `served`, and the novelty of the last one."""
    from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

    reference = pipeline.reference(dataset.preprocessing, classifier.card.normalization)
    resize = pipeline.resizing(dataset.preprocessing)
    witness = RecomputedSplit("torch, pixels resized and normalised by Albumentations")
    served = RecomputedSplit(f"model.onnx in the service's loader ({classifier.provider})")
    answers: list[Answers] = []

    def seen(index: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        original = dataset.unresized(index)  # one at a time: a batch of original photographs may take gigabytes
        resized = resize(image=original)["image"]
        return dataset.preprocessing.fitted(original), resized, reference(image=original)["image"]

    test = dataset.splits["test"]
    size = inference_batch(dataset.preprocessing.height, dataset.preprocessing.width, views.count(model))
    for start in range(0, len(test), size):
        indices = test[start : start + size]
        evaluated = copy_rows(dataset.images, indices)
        fitted, resized, normalized = zip(*(seen(int(index)) for index in indices), strict=True)
        witness.add(np.stack(resized), evaluated, _predict_normalized(model, torch.stack(normalized).float()))
        answers.append(classifier.answers(pixels := np.stack(fitted)))
        served.add(pixels, evaluated, answers[-1].probabilities)
    return witness, served, Answers.concatenate(answers).novelty


def _predict_normalized(model: nn.Sequential, images: Tensor) -> Probabilities:
    """Probabilities of normalised images, float32 `[batch, channels, height, width]`: the first layer is left out."""
    device = next(model.parameters()).device
    with torch.inference_mode(), full_float32():
        probabilities: Probabilities = model[1:].eval()(images.to(device)).softmax(1).cpu().numpy()
    return probabilities
