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
   than a share of 0.01, and no image is unfamiliar in one alone, except where its novelty is that close to the limit.

Pixels are compared exactly. Probabilities cannot be: torch and ONNX Runtime add in different orders. Which of two tied
labels is predicted depends on that order, hence on the device, on its algorithm for convolutions and on the batch.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from serving.contract.card import INPUT_NAME, TOLERANCE, Familiarity, ModelCard
from serving.contract.decode import Preprocessing
from serving.contract.model import Classifier, open_model
from training.data.dataset import Dataset
from training.device import full_float32
from training.errors import ExportRefused
from training.export.onnx import FIRST_LAYER
from training.metrics.classification import Probabilities
from training.metrics.novelty import Detector, Novelty
from training.models.prediction import inference_batch
from training.storage import copied

NORMALIZED_IMAGES = 64
"""Test images over which the first layer is compared where it measures each image; 64 of 224 px hold 9.6 M values."""
NORMALIZATION_TOLERANCE = 1e-5
NORMALIZED = "normalized"
NOVELTY_TOLERANCE = 1e-2
"""Largest difference of two novelties as a share of the limit, or of the novelty where that is larger."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What was evaluated on the test split, and how its novelty is computed; both None where it is not."""

    probabilities: Probabilities
    detector: Detector | None = None
    novelty: Novelty | None = None


@dataclass(frozen=True, kw_only=True)
class WayCheck:
    """One way of computing the probabilities of the test split, compared with the evaluated one."""

    way: str
    pixels_equal: float | None
    """Share of the images whose resized pixels all equal the evaluated ones; None: they were not compared."""
    largest_difference: float
    """Of a probability."""
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


@dataclass(frozen=True, kw_only=True)
class NormalizationCheck:
    """The first layer, in torch and in the finished file, compared with `A.Normalize`.

    In mode `standard` a value depends on its byte and channel only. All 256 bytes of every channel are compared,
    exactly, so equality is a proof. The other modes measure each image: there test images are compared, within 1e-5.
    """

    mode: str
    compared: int
    """Values compared."""
    equal_in_torch: int
    equal_in_onnx: int

    @property
    def holds(self) -> bool:
        """Every value is equal in both."""
        return self.equal_in_torch == self.equal_in_onnx == self.compared

    def __str__(self) -> str:
        """One line for the message of ExportRefused."""
        return (
            f"first layer against A.Normalize, mode {self.mode}: of {self.compared} values "
            f"{self.equal_in_torch} equal in torch, {self.equal_in_onnx} in ONNX Runtime"
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


def prove(model: nn.Sequential, path: Path, dataset: Dataset, evaluated: Evaluated) -> Parity:
    """Prove the finished file at `path` against what was `evaluated` of `model` on the test split of `dataset`.

    Raises ExportRefused with a line for each check that fails, and ModelRefused where the service would refuse the
    file.
    """
    classifier = open_model(path, threads=0)
    test = dataset.splits["test"]
    witness, served, novelty = _recompute(model, classifier, dataset)
    some = copied(dataset.images, test[:NORMALIZED_IMAGES])
    parity = Parity(
        images=len(test),
        normalization=check_normalization(model, path, classifier.card, some),
        ways=(witness.check(evaluated.probabilities), served.check(evaluated.probabilities)),
        novelty=_check_novelty(classifier.card.familiarity, evaluated.novelty, novelty),
        served=served.probabilities,
        served_novelty=novelty,
    )
    if parity.faults:
        raise ExportRefused("\n".join(parity.faults))
    return parity


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


def _check_novelty(
    familiarity: Familiarity | None, evaluated: Novelty | None, served: Novelty | None
) -> NoveltyCheck | None:
    if familiarity is None or evaluated is None or served is None:
        return None
    share = np.abs(served - evaluated) / np.maximum(evaluated, familiarity.threshold)
    near = np.abs(evaluated - familiarity.threshold) <= NOVELTY_TOLERANCE * familiarity.threshold
    differ = familiarity.unfamiliar(served) != familiarity.unfamiliar(evaluated)
    return NoveltyCheck(largest_difference=float(share.max()), decisions_differ=int((differ & ~near).sum()))


def check_normalization(model: nn.Sequential, path: Path, card: ModelCard, images: np.ndarray) -> NormalizationCheck:
    """Compare the first layer of `model` and of the file at `path` with `A.Normalize`.

    `images`, uint8 `[images, height, width, channels]`, are what it is compared on unless the mode is `standard`.
    """
    from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

    standard = card.normalization.mode == "standard"
    if standard:
        images = _every_value(card.preprocessing)
    witness = pipeline.reference(card.preprocessing, card.normalization)
    expected = torch.stack([witness(image=image)["image"] for image in images]).float()
    in_torch = copy.deepcopy(model[0]).cpu()(torch.from_numpy(images))
    in_onnx = torch.from_numpy(_with_first_layer_as_output(path).run([NORMALIZED], {INPUT_NAME: images})[0])

    def equal(computed: Tensor) -> Tensor:
        """Which values are equal, `[channels, values]`."""
        close = (computed - expected).abs() <= (0.0 if standard else NORMALIZATION_TOLERANCE)
        by_channel = close.transpose(0, 1).flatten(1)
        return by_channel[:, :256] if standard else by_channel  # later values repeat the first

    return NormalizationCheck(
        mode=card.normalization.mode,
        compared=equal(expected).numel(),
        equal_in_torch=int(equal(in_torch).sum()),
        equal_in_onnx=int(equal(in_onnx).sum()),
    )


class _Recomputed:
    """What one way computes, collected batch by batch."""

    def __init__(self, way: str) -> None:
        self.way = way
        self._pixels_equal: list[np.ndarray] = []
        self._probabilities: list[Probabilities] = []

    @property
    def probabilities(self) -> Probabilities:
        return np.concatenate(self._probabilities)

    def add(self, pixels: np.ndarray, evaluated: np.ndarray, probabilities: Probabilities) -> None:
        self._pixels_equal.append((pixels == evaluated).all((1, 2, 3)))
        self._probabilities.append(probabilities)

    def check(self, evaluated: Probabilities) -> WayCheck:
        equal = float(np.concatenate(self._pixels_equal).mean())
        return check_way(self.way, equal, evaluated, self.probabilities)


def _recompute(
    model: nn.Sequential, classifier: Classifier, dataset: Dataset
) -> tuple[_Recomputed, _Recomputed, Novelty | None]:
    """Both other ways over the test split, `witness` and `served`, and the novelty of the last one."""
    from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

    reference = pipeline.reference(dataset.preprocessing, classifier.card.normalization)
    resize = pipeline.resizing(dataset.preprocessing)
    witness = _Recomputed("torch, pixels resized and normalised by Albumentations")
    served = _Recomputed(f"model.onnx in the service's loader ({classifier.provider})")
    novelty: list[Novelty | None] = []

    def views(index: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        original = dataset.original(index)  # one at a time: a batch of original photographs may take gigabytes
        resized = resize(image=original)["image"]
        return dataset.preprocessing.fitted(original), resized, reference(image=original)["image"]

    test = dataset.splits["test"]
    size = inference_batch(dataset.preprocessing.height, dataset.preprocessing.width)
    for start in range(0, len(test), size):
        indices = test[start : start + size]
        evaluated = copied(dataset.images, indices)
        fitted, resized, normalized = zip(*(views(int(index)) for index in indices), strict=True)
        witness.add(np.stack(resized), evaluated, _predict_normalized(model, torch.stack(normalized).float()))
        answers = classifier.answers(pixels := np.stack(fitted))
        served.add(pixels, evaluated, answers.probabilities)
        novelty.append(answers.novelty)
    found = [values for values in novelty if values is not None]
    return witness, served, np.concatenate(found) if found else None


def _predict_normalized(model: nn.Sequential, images: Tensor) -> Probabilities:
    """Probabilities of normalised images, float32 `[batch, channels, height, width]`: the first layer is left out."""
    device = next(model.parameters()).device
    with torch.inference_mode(), full_float32():
        probabilities: Probabilities = model[1:].eval()(images.to(device)).softmax(1).cpu().numpy()
    return probabilities


def _every_value(preprocessing: Preprocessing) -> np.ndarray:
    """The fewest images that hold each of the 256 values in every channel; their first 256 pixels do, in order."""
    pixels = preprocessing.height * preprocessing.width
    values = np.arange(-(-256 // pixels) * pixels) % 256
    images = values.astype(np.uint8).reshape(-1, preprocessing.height, preprocessing.width, 1)
    return np.repeat(images, preprocessing.channels, axis=3)


def _with_first_layer_as_output(path: Path) -> onnxruntime.InferenceSession:
    """A session of the finished file that also gives what leaves its first layer, as `normalized`."""
    graph = onnx.load(path)
    last = [node for node in graph.graph.node if node.name.startswith(FIRST_LAYER)][-1]
    graph.graph.node.append(onnx.helper.make_node("Identity", [last.output[0]], [NORMALIZED]))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(NORMALIZED, onnx.TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
