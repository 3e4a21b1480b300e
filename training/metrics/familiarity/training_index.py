"""The index of training images beside a model: made of their features, and tried on the finished file."""

import numpy as np
from jaxtyping import Int64
from torch import nn

from serving.contract.model import Classifier
from serving.contract.neighbours.index import Metric, TrainingIndex
from training.data.dataset import Dataset
from training.metrics.familiarity.novelty import Detector, unit
from training.models import prediction
from training.models.prediction import Features, batches

MOST_ROWS = 100_000
"""Rows; of more training images these are spread evenly. With 1,280 features the file has 257 MB."""
PROVED = 16
"""Training images that are asked about in the finished file; most of the time is that of reading their originals."""
FROM_OWN_ROW = 0.1
"""Largest median distance of images from their own rows, as a share of the limit of novelty: rows have 16 bits, and
torch and ONNX Runtime differ most where embeddings are nearly alike. Other images of a class are some 1.4 away."""


def training_index(body: nn.Module, dataset: Dataset, detector: Detector, known: Features) -> TrainingIndex:
    """The training images by what `body` makes of them.

    `known` are features of training images that were computed already: all, or those that are scored. `dataset` has
    images, or the features of a frozen body.
    """
    chosen = _spread(dataset.splits["train"])
    distance = metric(detector)
    features = iter([known]) if len(known) == len(chosen) else batches(dataset.images, chosen)
    points = [
        distance.points(unit(part if part.ndim == 2 else prediction.outputs(body, part))).astype(np.float16)
        for part in features
    ]
    return TrainingIndex.of(
        distance,
        dataset.classes,
        np.concatenate(points),
        dataset.labels[chosen].astype(np.int32),
        [(dataset.keys[image], dataset.image_set.files[image].digest) for image in chosen.tolist()],
    )


def _spread(train: Int64[np.ndarray, " _"]) -> Int64[np.ndarray, " _"]:
    places = np.linspace(0, len(train) - 1, min(len(train), MOST_ROWS)).astype(int)
    spread: np.ndarray = train[places]
    return spread


def metric(detector: Detector) -> Metric:
    """The distance that a detector measures, of two images."""
    # Its directions have the length sqrt(P - p), with P the precision of all others and p that of the direction.
    lengths = np.linalg.norm(detector.directions.astype(np.float64), axis=0)
    directions = detector.directions / np.where(lengths > 0, lengths, 1)
    precisions = np.maximum(detector.scale - np.square(lengths), 0)
    return Metric(
        centre=detector.centre,
        directions=directions.astype(np.float32),
        shrink=(np.sqrt(precisions / detector.scale) - 1).astype(np.float32),
        scale=float(np.sqrt(detector.scale)),
    )


def faults_of_index(index: TrainingIndex, classifier: Classifier, dataset: Dataset) -> list[str]:
    """A line where training images, read anew, are not in their own rows; the classifier then gives embeddings.

    Raises ModelRefused where the index does not fit the file.
    """
    assert classifier.card.familiarity is not None
    classifier.attach(index)
    rows = np.linspace(0, len(index.paths) - 1, min(len(index.paths), PROVED)).astype(int)
    originals = [dataset.unresized(dataset.keys.index(index.paths[row])) for row in rows]
    embeddings = classifier.answers(np.stack([dataset.preprocessing.fitted(pixels) for pixels in originals])).embeddings
    assert embeddings is not None
    away = float(np.median([index.distances(embedding)[row] for embedding, row in zip(embeddings, rows, strict=True)]))
    most = FROM_OWN_ROW * classifier.card.familiarity.threshold
    return [] if away <= most else [f"training images are {away:.2g} from their own rows (at most {most:.2g})"]
