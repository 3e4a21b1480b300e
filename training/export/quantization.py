"""The published file quantised to eight bits (int8): smaller, faster, and published only if its labels agree.

Weights and activations are quantised statically: the scale of every tensor is measured once, on training images. With
dynamic quantisation the scale would be that of the batch, and the result for an image would depend on the other images
of its batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Bool, Float32
from onnx.utils import Extractor
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from serving.contract.card import (
    EMBEDDING_NAME,
    INPUT_NAME,
    METADATA_KEY,
    OUTPUT_NAME,
    TOLERANCE,
    VIEWS,
    Certificate,
    Familiarity,
    Golden,
    ModelCard,
)
from serving.contract.model import Classifier, open_model
from serving.contract.scene import decoded
from serving.contract.session import Placement
from training.data.dataset import Dataset
from training.data.sources.source import SPLITS
from training.errors import ExportRefused
from training.export import drift_reference, parity
from training.export.bias_correction import correct_biases
from training.export.measures.timing import median_ratio
from training.export.novelty_graph import add_outputs
from training.export.onnx import FIRST_LAYER
from training.export.publication import candidate, publish, refusals
from training.metrics import calibration, classification, novelty, operating_points
from training.metrics.bootstrap import Intervals, bootstrap, card_scores
from training.metrics.classification import Probabilities, Scores
from training.metrics.evaluation import scored
from training.metrics.novelty import Detector, Novelty
from training.models.prediction import batches
from training.storage import copied

AGREEMENT = 0.99
"""Share of the test images whose label must be that of the float32 file."""
CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 32
QUANTIZED_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "AveragePool", "GlobalAveragePool"]
"""Clip is ReLU6. Left in float32, it takes tensors out of integers and back: EfficientNet-Lite0 on 316 dermatoscopic
images of 96 px kept 90.8 % of its labels without it and 95.6 % with it, at 1.5 and 2.4 times the speed of float32."""


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
class Quantized:
    """The int8 file compared with the float32 file, both in the service's loader, over the test split."""

    images: int
    agreement: float
    """Share of the images with the same label."""
    largest_difference: float
    """Of a probability."""
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
        return self.agreement >= AGREEMENT and not self.faults


class _Session:
    """A graph in ONNX Runtime that makes `views` of each image, and gives the embedding, too."""

    def __init__(self, graph: onnx.ModelProto, views: int) -> None:
        probe = onnx.ModelProto()
        probe.CopyFrom(graph)
        add_outputs(probe, None)
        self._session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
        self._views = views

    def run(self, output: str, images: np.ndarray, indices: np.ndarray) -> Float32[np.ndarray, "images values"]:
        """One output for the images `indices`."""
        shown = batches(images, indices, self._views)
        return np.concatenate([self._session.run([output], {INPUT_NAME: batch})[0] for batch in shown])


@dataclass(frozen=True, kw_only=True)
class _TestSplit:
    """Probabilities of the quantised graph on the test split, and their scores."""

    probabilities: Probabilities
    scores: Scores
    intervals: Intervals
    verdict: Verdict | None
    """None: the rule of promotion was not asked."""


@dataclass(frozen=True, kw_only=True)
class _Unknown:
    """Novelty of the quantised graph's embeddings."""

    detector: Detector
    familiarity: Familiarity
    known: Bool[np.ndarray, " validation"]
    """Which validation images are familiar: their like have prediction sets."""
    test: Novelty
    """Of the test images."""


def quantize(source: Path, path: Path, dataset: Dataset, judge: Judge | None = None) -> Quantized:
    """Write the published float32 file `source` as an int8 file to `path`, if the labels of both agree.

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
        graph = _quantized_graph(source, dataset, float32.card.images_at_once(CALIBRATION_BATCH))
        session = _Session(graph, views)
        evaluated = _evaluate(session, dataset, judge)
        unknown = _unknown(session, dataset, float32.card.familiarity)
        card = _card(float32.card, session, dataset, evaluated, unknown)
    add_outputs(graph, unknown.detector if unknown else None)
    onnx.helper.set_model_props(graph, {METADATA_KEY: card.to_json()})
    with candidate(path, graph.SerializeToString()) as file:
        int8 = open_model(file)
        _check_novelty(int8, dataset, unknown, views)
        quantized = _compare(float32, int8, dataset, evaluated)
        if quantized.published:
            publish(file, path)
        else:
            path.unlink(missing_ok=True)  # of the same run, before it was killed
    return quantized


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Up to 512 training images, evenly spread over the split, a batch at a time."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self._batches = _calibration_batches(dataset, size)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def _calibration_batches(dataset: Dataset, size: int) -> Iterator[np.ndarray]:
    train = dataset.splits["train"]
    chosen = np.linspace(0, len(train) - 1, min(len(train), CALIBRATION_IMAGES)).astype(int)
    # All of one size: the calibrator stacks the batches.
    size = min(size, len(chosen))
    return (copied(dataset.images, train[chosen[i : i + size]]) for i in range(0, len(chosen) - size + 1, size))


def _quantized_graph(source: Path, dataset: Dataset, size: int) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear around each operator that runs in integers.

    `size` images go through it at a time, each in all its views. See
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
    """
    with TemporaryDirectory() as folder:
        prepared, target = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(_probabilities_alone(onnx.load(source)), prepared, skip_symbolic_shape=True)
        float32 = onnx.load(prepared)
        quantize_static(
            prepared,
            target,
            _Calibration(dataset, size),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            nodes_to_exclude=_kept_in_float32(float32),
            # The mean over the batches of their extremes, so that a single image widens no range: of the labels of
            # EfficientNet-Lite0 on those photographs, 96.1 % were kept instead of 95.1 %.
            extra_options={"CalibMovingAverage": True},
        )
        quantized = onnx.load(target)
    correct_biases(quantized, float32, _calibration_batches(dataset, size))
    return quantized


def _probabilities_alone(file: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without embedding and novelty, whose numbers are of other features than an eight-bit network's."""
    return Extractor(file).extract_model([INPUT_NAME], [OUTPUT_NAME])


def _kept_in_float32(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in float32: normalisation, the first convolution and the head.

    So does a depthwise convolution that follows the first one.

    They take little time, and quantising them loses most labels. The MLP on 2,129 dermatoscopic images kept 97.5 % of
    its labels with them quantised and 99.2 % without; the CNN on digits kept 98.0 % and 99.4 %. With the depthwise
    convolution quantised EfficientNet-Lite0 on 304 photographs of 224 px kept 95.1 %, without 96.1 %, equally fast.
    """
    nodes = graph.graph.node
    normalization = [node.name for node in nodes if node.name.startswith(FIRST_LAYER)]
    convolutions = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    depthwise_second = len(convolutions) > 1 and _groups(nodes[convolutions[1]]) > 1
    leading = convolutions[1 if depthwise_second else 0] + 1 if convolutions else 0
    head = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")][-1]
    return [*normalization, *(node.name for node in nodes[:leading]), head]


def _groups(convolution: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in convolution.attribute if attribute.name == "group"), 1)


def _card(
    card: ModelCard, session: _Session, dataset: Dataset, evaluated: _TestSplit, unknown: _Unknown | None
) -> ModelCard:
    """The card of the quantised file: all that depends on probabilities is computed again, from its own."""
    val, calibrated = dataset.splits["val"], card.calibration
    labels, probabilities = dataset.labels[val], session.run(OUTPUT_NAME, dataset.images, val)
    if calibrated.threshold is not None:
        by_class, known = bool(calibrated.class_thresholds), unknown.known if unknown else np.ones(len(val), bool)
        calibrated = calibration.with_thresholds(calibrated, labels[known], probabilities[known], by_class=by_class)
    demands = map(operating_points.Demand.of, card.operating_points)
    return replace(
        card,
        familiarity=unknown.familiarity if unknown else None,
        neighbours=None,  # its embeddings are others than those of the float32 file
        operating_points=operating_points.choose(demands, card.classes, labels, probabilities),
        certificate=evaluated.verdict.certificate if evaluated.verdict else None,
        version=f"{card.version}-int8",
        calibration=calibrated,
        goldens=tuple(_golden(golden, card, session) for golden in card.goldens),
        scores=card_scores(evaluated.scores, evaluated.intervals),
        reference=drift_reference.of_test_split(dataset, evaluated.probabilities),
    )


def _unknown(session: _Session, dataset: Dataset, familiarity: Familiarity | None) -> _Unknown | None:
    """Novelty by the graph's own embeddings, of as many false alarms as that of the float32 file; None without it."""
    if familiarity is None:
        return None
    train, val, test = (session.run(EMBEDDING_NAME, dataset.images, scored(dataset, split)) for split in SPLITS)
    detector = novelty.fit(train, dataset.labels[scored(dataset, "train")])
    validation = detector.novelty(val)
    own = novelty.choose(validation, familiarity.false_alarms)
    assert own is not None  # of as many validation images as in float32
    known = ~own.unfamiliar(validation)
    return _Unknown(detector=detector, familiarity=own, known=known, test=detector.novelty(test))


def _check_novelty(int8: Classifier, dataset: Dataset, unknown: _Unknown | None, views: int) -> None:
    """Raise ExportRefused where the finished file has another novelty than numpy computes of its embeddings."""
    if unknown is None:
        return
    answers = [int8.answers(batch).novelty for batch in batches(dataset.images, dataset.splits["test"], views)]
    served = np.concatenate([values for values in answers if values is not None])
    check = parity.check_novelty(unknown.familiarity, unknown.test, served)
    if check is not None and not check.holds:
        raise ExportRefused(f"the int8 file, {check}")


def _golden(golden: Golden, card: ModelCard, session: _Session) -> Golden:
    pixels = card.preprocessing.fitted(decoded(golden.image, card.preprocessing))
    [probabilities] = session.run(OUTPUT_NAME, pixels[np.newaxis], np.arange(1))
    return replace(golden, probabilities=tuple(map(float, probabilities)))


def _evaluate(session: _Session, dataset: Dataset, judge: Judge | None) -> _TestSplit:
    test = dataset.splits["test"]
    labels, probabilities = dataset.labels[test], session.run(OUTPUT_NAME, dataset.images, test)
    intervals = bootstrap(labels, probabilities, dataset.components[test], dataset.classes)
    return _TestSplit(
        probabilities=probabilities,
        scores=classification.score(labels, probabilities, dataset.classes),
        intervals=intervals,
        verdict=judge(probabilities, intervals) if judge else None,
    )


def _compare(float32: Classifier, int8: Classifier, dataset: Dataset, evaluated: _TestSplit) -> Quantized:
    """Compare both files in the service's loader. Raises ExportRefused where int8 is not what was evaluated."""
    test, views = dataset.splits["test"], VIEWS[float32.card.views]
    expected, probabilities = (
        np.concatenate([classifier.predict(batch) for batch in batches(dataset.images, test, views)])
        for classifier in (float32, int8)
    )
    difference = float(np.abs(probabilities - evaluated.probabilities).max())
    if difference > TOLERANCE:
        raise ExportRefused(
            f"a probability of the int8 file differs by {difference:.2g} from the evaluated one; "
            f"at most {TOLERANCE:g} is allowed"
        )
    image = dataset.images[test[:1]]
    decided = [[point.label for point in classifier.card.operating_points] for classifier in (float32, int8)]
    return Quantized(
        images=len(test),
        agreement=float((probabilities.argmax(1) == expected.argmax(1)).mean()),
        largest_difference=float(np.abs(probabilities - expected).max()),
        scores=evaluated.scores,
        intervals=evaluated.intervals,
        speed=median_ratio(partial(float32.predict, image), partial(int8.predict, image)),
        size=int8.path.stat().st_size / float32.path.stat().st_size,
        lost_decisions=tuple(label for label in decided[0] if label not in decided[1]),
        certificate=evaluated.verdict.certificate if evaluated.verdict else None,
        faults=evaluated.verdict.faults if evaluated.verdict else (),
    )
