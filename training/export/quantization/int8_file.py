"""The published file quantised to eight bits (int8): smaller, faster, and published only if its labels agree."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import onnx
from jaxtyping import Bool

from serving.contract.card.certificate import Certificate
from serving.contract.card.decisions import Familiarity
from serving.contract.card.model_card import (
    EMBEDDING_NAME,
    INPUT_NAME,
    METADATA_KEY,
    OUTPUT_NAME,
    TOLERANCE,
    VIEWS,
    Golden,
    ModelCard,
)
from serving.contract.model import Answers, Classifier, open_model
from serving.contract.scene import decoded
from serving.contract.session import Placement, open_session
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.export import drift_reference, parity
from training.export.candidate import candidate, commit, refusals
from training.export.measures.timing import median_ratio
from training.export.novelty_graph import add_outputs
from training.export.quantization.graph import CALIBRATION_BATCH, quantized_graph
from training.metrics import calibration, classification, operating_points
from training.metrics.classification import Probabilities, ScoredImages, Scores
from training.metrics.evaluation import scored_indices
from training.metrics.familiarity import novelty
from training.metrics.familiarity.novelty import Detector, Novelty
from training.metrics.intervals.bootstrap import Intervals, bootstrap, card_scores
from training.models.prediction import Features, Images, Indices, batches


@runtime_checkable
class Verdict(Protocol):
    """What the rule of promotion says of answers."""

    @property
    def certificate(self) -> Certificate | None:
        """None where the rule does not hold."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Why not, each a part of a sentence."""


Judge = Callable[[Probabilities, Intervals], Verdict]
"""The rule of promotion, for probabilities of the test split and their intervals."""


@dataclass(frozen=True, kw_only=True)
class Int8Comparison:
    """The int8 file compared with the float32 file, both in the service's loader, over the test split."""

    images: int
    agreement: float
    """Share of the images with the same label."""
    least_agreement: float
    """Least `agreement` of a file that is published."""
    largest_difference: float
    """Largest difference of a probability."""
    scores: Scores
    intervals: Intervals
    speed: float
    """Seconds of the float32 file for one image on one thread, divided by those of the int8 file."""
    size: float
    """Bytes of the int8 file divided by those of the float32 file."""
    lost_decisions: tuple[str, ...]
    """Classes with an operating point in the float32 file whose demand no threshold of the int8 file reaches."""

    certificate: Certificate | None
    """By the file's own answers; None where the rule of promotion does not hold for them, or was not asked."""
    faults: tuple[str, ...]
    """Why the rule does not hold for them."""

    @property
    def published(self) -> bool:
        """Whether the file agrees enough to be published, and the rule of promotion, if asked, holds for it."""
        return self.agreement >= self.least_agreement and not self.faults


class _Computed(NamedTuple):
    """What the quantised graph gives for images."""

    probabilities: Probabilities
    embeddings: Features
    """As the last linear layer reads them."""


class _Session:
    """A graph in ONNX Runtime that makes `views` of each image, with its embedding as one more output."""

    def __init__(self, graph: onnx.ModelProto, views: int) -> None:
        probe = onnx.ModelProto()
        probe.CopyFrom(graph)
        add_outputs(probe, None)
        self._session = open_session(probe.SerializeToString(), Placement(on="cpu"), threads=0)
        self._views = views

    def run(self, images: Images, indices: Indices) -> _Computed:
        """Compute the images `indices`."""
        shown = batches(images, indices, self._views)
        outputs = [self._session.run([OUTPUT_NAME, EMBEDDING_NAME], {INPUT_NAME: batch}) for batch in shown]
        probabilities, embeddings = (np.concatenate(values) for values in zip(*outputs, strict=True))
        return _Computed(probabilities, embeddings)


@dataclass(frozen=True, kw_only=True)
class _TestSplit:
    """Probabilities of the quantised graph on the test split, and their scores."""

    probabilities: Probabilities
    scores: Scores
    intervals: Intervals
    verdict: Verdict | None
    """None: the rule of promotion was not asked."""


@dataclass(frozen=True, kw_only=True)
class _QuantizedNovelty:
    """Novelty of the quantised graph's embeddings."""

    detector: Detector
    familiarity: Familiarity
    familiar: Bool[np.ndarray, " validation"]
    """Which validation images are familiar: their like have prediction sets."""
    test: Novelty
    """Novelty of the test images."""


def quantize(
    source: Path, path: Path, dataset: Dataset, *, least_agreement: float, judge: Judge | None = None
) -> Int8Comparison:
    """Write the published float32 file `source` as an int8 file to `path`, if the labels of both agree.

    `least_agreement` is the share of the test images that must have the same label.

    Where `latest` may move to the run, `judge` applies the rule of promotion to the answers of the int8 file, too: a
    file for which it does not hold is not published, because `latest` would lead to it.

    The card of the new file has its own version, prediction sets, goldens, scores, drift reference and limit of
    novelty, which the graph computes of its own embeddings. A file that agrees too little is not published, and the
    result says so. The loader opens both on the CPU, where alone eight bits are computed in integers. Raises
    ExportRefused when ONNX Runtime cannot quantise the graph, and when the service's loader refuses the file or gives
    other probabilities than the graph did. Raises OSError.
    """
    with refusals():
        float32 = open_model(source, placement=Placement(on="cpu"))  # as the int8 file, with which it is compared
        views = VIEWS[float32.card.views]
        graph = quantized_graph(source, dataset, float32.card.images_at_once(CALIBRATION_BATCH))
        session = _Session(graph, views)
        val, test = (session.run(dataset.images, dataset.splits[split]) for split in ("val", "test"))
        evaluated = _evaluate(test.probabilities, dataset, judge)
        int8_novelty = _quantized_novelty(session, val, test, dataset, float32.card.familiarity)
        card = _card(float32.card, val.probabilities, dataset, evaluated, int8_novelty)
        card = replace(card, goldens=tuple(_golden(golden, card, session) for golden in card.goldens))
    add_outputs(graph, int8_novelty.detector if int8_novelty else None)
    onnx.helper.set_model_props(graph, {METADATA_KEY: card.to_json()})
    with candidate(path, graph.SerializeToString()) as file:
        int8 = open_model(file)
        served = _served(int8, dataset)
        _check(served, evaluated, int8_novelty)
        quantized = _compare((float32, int8), served.probabilities, dataset, evaluated, least_agreement)
        if quantized.published:
            commit(file, path)
        else:
            path.unlink(missing_ok=True)  # of the same run, before it was killed
    return quantized


def _card(
    card: ModelCard,
    probabilities: Probabilities,
    dataset: Dataset,
    evaluated: _TestSplit,
    int8_novelty: _QuantizedNovelty | None,
) -> ModelCard:
    """The card of the quantised file but for its goldens: what depends on probabilities is computed again.

    `probabilities` are those of the validation images.
    """
    val, calibrated = dataset.splits["val"], card.calibration
    labels, components = dataset.labels[val], dataset.components[val]
    if calibrated.threshold is not None:
        validation = ScoredImages(labels=labels, probabilities=probabilities, components=components)
        familiar = validation.chosen(int8_novelty.familiar) if int8_novelty else validation
        calibrated = calibration.with_thresholds(calibrated, familiar, by_class=bool(calibrated.class_thresholds))
    targets = map(operating_points.TargetScore.of, card.operating_points)
    return replace(
        card,
        familiarity=int8_novelty.familiarity if int8_novelty else None,
        neighbours=None,  # its embeddings are others than those of the float32 file
        operating_points=operating_points.choose(targets, card.classes, labels, probabilities),
        certificate=evaluated.verdict.certificate if evaluated.verdict else None,
        version=f"{card.version}-int8",
        calibration=calibrated,
        scores=card_scores(evaluated.scores, evaluated.intervals),
        reference=drift_reference.of_test_split(dataset, evaluated.probabilities),
    )


def _quantized_novelty(
    session: _Session, val: _Computed, test: _Computed, dataset: Dataset, familiarity: Familiarity | None
) -> _QuantizedNovelty | None:
    """Novelty by the graph's own embeddings, of as many false alarms as that of the float32 file; None without it."""
    if familiarity is None:
        return None
    train = scored_indices(dataset, "train")
    detector = novelty.fit(session.run(dataset.images, train).embeddings, dataset.labels[train])
    validation = detector.novelty(val.embeddings)
    limit = novelty.choose(validation, dataset.components[dataset.splits["val"]], familiarity.false_alarms)
    assert limit is not None  # of as many validation images as in float32
    familiar = ~limit.unfamiliar(validation)
    return _QuantizedNovelty(
        detector=detector, familiarity=limit, familiar=familiar, test=detector.novelty(test.embeddings)
    )


def _served(classifier: Classifier, dataset: Dataset) -> Answers:
    """What the service's loader gives for the test images."""
    shown = batches(dataset.images, dataset.splits["test"], VIEWS[classifier.card.views])
    return Answers.concatenate([classifier.answers(batch) for batch in shown])


def _check(served: Answers, evaluated: _TestSplit, int8_novelty: _QuantizedNovelty | None) -> None:
    """Raise ExportRefused where the finished file does not answer what was evaluated."""
    difference = float(np.abs(served.probabilities - evaluated.probabilities).max())
    if difference > TOLERANCE:
        raise ExportRefused(
            f"a probability of the int8 file differs by {difference:.2g} from the evaluated one; "
            f"at most {TOLERANCE:g} is allowed"
        )
    check = parity.check_novelty(int8_novelty.familiarity, int8_novelty.test, served.novelty) if int8_novelty else None
    if check is not None and not check.holds:
        raise ExportRefused(f"the int8 file, {check}")


def _golden(golden: Golden, card: ModelCard, session: _Session) -> Golden:
    pixels = card.preprocessing.fitted(decoded(golden.image, card.preprocessing))
    [probabilities] = session.run(pixels[np.newaxis], np.arange(1)).probabilities
    return replace(golden, probabilities=tuple(map(float, probabilities)))


def _evaluate(probabilities: Probabilities, dataset: Dataset, judge: Judge | None) -> _TestSplit:
    test = dataset.splits["test"]
    labels = dataset.labels[test]
    intervals = bootstrap(labels, probabilities, dataset.components[test], dataset.classes)
    return _TestSplit(
        probabilities=probabilities,
        scores=classification.score(labels, probabilities, dataset.classes),
        intervals=intervals,
        verdict=judge(probabilities, intervals) if judge else None,
    )


def _compare(
    files: tuple[Classifier, Classifier],
    probabilities: Probabilities,
    dataset: Dataset,
    evaluated: _TestSplit,
    least_agreement: float,
) -> Int8Comparison:
    """Compare float32 and int8 in the service's loader, which gives `probabilities` for the test images by int8."""
    float32, int8 = files
    test, expected = dataset.splits["test"], _served(float32, dataset).probabilities
    image = dataset.images[test[:1]]
    decided = [[point.label for point in classifier.card.operating_points] for classifier in files]
    return Int8Comparison(
        images=len(test),
        agreement=float((probabilities.argmax(1) == expected.argmax(1)).mean()),
        least_agreement=least_agreement,
        largest_difference=float(np.abs(probabilities - expected).max()),
        scores=evaluated.scores,
        intervals=evaluated.intervals,
        speed=median_ratio(partial(float32.predict, image), partial(int8.predict, image)),
        size=int8.path.stat().st_size / float32.path.stat().st_size,
        lost_decisions=tuple(label for label in decided[0] if label not in decided[1]),
        certificate=evaluated.verdict.certificate if evaluated.verdict else None,
        faults=evaluated.verdict.faults if evaluated.verdict else (),
    )
