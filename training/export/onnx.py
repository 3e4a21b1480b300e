"""Write the ONNX file and prove it: what was evaluated is what will be served.

The finished file is opened with the service's own loader and scores the whole test split, read anew from where it
came. Three ways must agree: torch on the contract's pixels, torch on Albumentations' own pixels, and the file.
"""

import copy
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from serving.contract.card import INPUT_NAME, METADATA_KEY, OUTPUT_NAME, TOLERANCE, Golden, ModelCard
from serving.contract.decode import Preprocessing, pixel_digest
from serving.contract.model import ModelRefused, open_model
from training.data import augmentation
from training.data.dataset import Dataset
from training.errors import ExportRefused
from training.metrics.classification import Probabilities
from training.models.networks import predict
from training.storage import copied, sync, write_atomically

OPSET = 17
FIRST_LAYER = "/model/model.0/"  # how the exporter names the nodes of `_Probabilities.model[0]`
NORMALIZED = "normalized"
GOLDENS = 4
GOLDEN_SIDE = 96
BATCH = 256
NORMALIZED_IMAGES = 64
NORMALIZATION_TOLERANCE = 1e-5
TIE = 1e-5
"""Two labels of an image that are no further apart are equally probable: which of them is the answer depends on the
order of sums, so on the device and on the batch. Among 10,000 images there may well be one."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One way of computing the test split's answers, against the evaluated model on the contract's pixels."""

    way: str
    pixels_equal: float
    """Share of the images whose resized pixels are the same to the last one."""
    largest_difference: float
    labels_differ: int
    """Images that get another label, without ties."""
    ties: int
    """Images that get another label, which the evaluated model has as equally probable."""

    @property
    def holds(self) -> bool:
        """Equal pixels, no label that differs but by a tie, no probability further away than the contract tolerates."""
        return self.pixels_equal == 1 and self.labels_differ == 0 and self.largest_difference <= TOLERANCE


@dataclass(frozen=True, kw_only=True)
class NormalizationProof:
    """The first layer, in torch and in the finished file, against A.Normalize.

    In mode `standard` over all 256 values of every channel, so equality there is a proof; in the modes that measure
    the image, over images of the test split, within 1e-5.
    """

    mode: str
    compared: int
    equal_in_torch: int
    equal_in_onnx: int

    @property
    def holds(self) -> bool:
        """Every value is equal on both sides."""
        return self.equal_in_torch == self.equal_in_onnx == self.compared


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The proof: every way compared, over `images` images; `served` is what the service will answer."""

    images: int
    normalization: NormalizationProof
    comparisons: tuple[Comparison, ...]
    served: Probabilities

    @property
    def faults(self) -> list[str]:
        """Whatever does not agree; empty when the proof holds."""
        parts: tuple[NormalizationProof | Comparison, ...] = (self.normalization, *self.comparisons)
        return [str(part) for part in parts if not part.holds]


class _Probabilities(nn.Module):
    """What the graph computes: uint8 images -> probabilities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.softmax(1)


def export(model: nn.Sequential, card: ModelCard, dataset: Dataset, path: Path) -> Parity:
    """Write `path` and prove it on the test split; on any disagreement nothing is published.

    Raises ExportRefused with the comparison that failed.
    """
    candidate = path.with_name(f".{path.name}.candidate")
    try:
        write_atomically(candidate, lambda file: file.write(_graph(model, card)))
        parity = prove(model, candidate, dataset)
        if parity.faults:
            raise ExportRefused("; ".join(parity.faults))
        candidate.replace(path)
        sync(path.parent)
    except ModelRefused as error:
        raise ExportRefused(f"the service would refuse the file: {error}") from error
    finally:
        candidate.unlink(missing_ok=True)
    return parity


def goldens(model: nn.Sequential, dataset: Dataset) -> tuple[Golden, ...]:
    """Examples for the service to replay, one from each of the first classes: four PNG, and one JPEG of the first.

    They are cut from the middle of the original images, so that resizing is replayed too; the JPEG is there because
    two builds of a JPEG decoder may differ by a grey level, which the service must notice.
    """
    test = dataset.splits["test"]
    _, first = np.unique(dataset.labels[test], return_index=True)
    chosen = list(test[first]) + [index for index in test if index not in test[first]]
    crops = [_middle(dataset.original(int(index))) for index in chosen[:GOLDENS]]
    while len(crops) < GOLDENS:  # a test split of fewer images: turned copies will do
        crops.append(np.rot90(crops[-1]))
    encoded = [_encode(crop, ".png") for crop in crops] + [_encode(crops[0], ".jpg")]
    return tuple(_golden(model, dataset.preprocessing, image) for image in encoded)


def prove(model: nn.Sequential, path: Path, dataset: Dataset) -> Parity:
    """Compare three ways of computing the probabilities of the test split, each from the original images."""
    classifier = open_model(path, threads=0)
    witness = augmentation.reference(dataset.preprocessing, classifier.card.normalization)
    test = dataset.splits["test"]
    expected = predict(model, dataset.images, test)
    witnessed, served, same = [], [], []

    def small(index: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        pixels = dataset.original(index)  # one at a time: a batch of photographs as they are may take gigabytes
        resized = witness.transforms[0](image=pixels)["image"]
        return dataset.preprocessing.fit(pixels), resized, witness(image=pixels)["image"]

    for start in range(0, len(test), BATCH):
        indices = test[start : start + BATCH]
        ours, theirs, tensors = zip(*(small(int(index)) for index in indices), strict=True)
        fitted, resized, normalized = np.stack(ours), np.stack(theirs), torch.stack(tensors).float()
        evaluated = copied(dataset.images, indices)
        same.append([(fitted == evaluated).all((1, 2, 3)), (resized == evaluated).all((1, 2, 3))])
        witnessed.append(_predict_normalized(model, normalized))
        served.append(classifier.predict(fitted))
    read_anew, by_witness = np.concatenate(same, axis=1).mean(1)
    answers = np.concatenate(served)
    return Parity(
        images=len(test),
        normalization=_prove_normalization(model, path, classifier.card, dataset.images[test[:NORMALIZED_IMAGES]]),
        comparisons=(
            _compare(
                "torch, pixels resized and normalised by Albumentations",
                by_witness,
                expected,
                np.concatenate(witnessed),
            ),
            _compare(f"model.onnx in the service's loader ({classifier.provider})", read_anew, expected, answers),
        ),
        served=answers,
    )


def _prove_normalization(model: nn.Sequential, path: Path, card: ModelCard, images: np.ndarray) -> NormalizationProof:
    tolerance = NORMALIZATION_TOLERANCE
    if card.normalization.mode == "standard":
        images, tolerance = _ramp(card.preprocessing), 0.0
    witness = augmentation.reference(card.preprocessing, card.normalization)
    expected = torch.stack([witness(image=image)["image"] for image in images]).float()
    in_torch = copy.deepcopy(model[0]).cpu()(torch.from_numpy(images))
    in_onnx = torch.from_numpy(_tapped(path).run([NORMALIZED], {INPUT_NAME: images})[0])
    equal = [(ours - expected).abs().le(tolerance).transpose(0, 1).flatten(1) for ours in (in_torch, in_onnx)]
    if card.normalization.mode == "standard":
        equal = [shares[:, :256] for shares in equal]
    return NormalizationProof(
        mode=card.normalization.mode,
        compared=equal[0].numel(),
        equal_in_torch=int(equal[0].sum()),
        equal_in_onnx=int(equal[1].sum()),
    )


def _ramp(preprocessing: Preprocessing) -> np.ndarray:
    """As many images as it takes to hold each of the 256 values once in every channel, in order."""
    pixels = preprocessing.height * preprocessing.width
    values = np.arange(-(-256 // pixels) * pixels) % 256
    images = values.astype(np.uint8).reshape(-1, preprocessing.height, preprocessing.width, 1)
    return np.repeat(images, preprocessing.channels, axis=3)


def _tapped(path: Path) -> onnxruntime.InferenceSession:
    """The finished file with what leaves its first layer as one more output."""
    graph = onnx.load(path)
    last = [node for node in graph.graph.node if node.name.startswith(FIRST_LAYER)][-1]
    graph.graph.node.append(onnx.helper.make_node("Identity", [last.output[0]], [NORMALIZED]))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(NORMALIZED, onnx.TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def _graph(model: nn.Sequential, card: ModelCard) -> bytes:
    """The ONNX file's bytes: one file, opset pinned, batch dynamic, the card in its metadata."""
    shape = (1, card.preprocessing.height, card.preprocessing.width, card.preprocessing.channels)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but the new one needs another package and has exported
        # networks like these wrongly (pytorch issue 169178); the parity gate judges what comes out.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Probabilities(copy.deepcopy(model).cpu()).eval(),
            (torch.zeros(shape, dtype=torch.uint8),),
            buffer,  # type: ignore[arg-type]  # a file object works too
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
        )
    graph = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(graph, {METADATA_KEY: card.to_json()})
    onnx.checker.check_model(graph, full_check=True)
    return bytes(graph.SerializeToString())


def _golden(model: nn.Sequential, preprocessing: Preprocessing, image: bytes) -> Golden:
    pixels = preprocessing(image)
    [probabilities] = predict(model, pixels[np.newaxis])
    return Golden(image=image, pixels=pixel_digest(pixels), probabilities=tuple(map(float, probabilities)))


def _middle(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    top, left = max(0, (height - GOLDEN_SIDE) // 2), max(0, (width - GOLDEN_SIDE) // 2)
    return pixels[top : top + GOLDEN_SIDE, left : left + GOLDEN_SIDE]


def _encode(pixels: np.ndarray, ending: str) -> bytes:
    done, encoded = cv2.imencode(ending, pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels)
    assert done
    return bytes(encoded)


def _predict_normalized(model: nn.Sequential, images: Tensor) -> Probabilities:
    """Probabilities of float32 images `[batch, channels, height, width]` that are normalised already."""
    device = next(model.parameters()).device
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        probabilities: Probabilities = model[1:].eval()(images.to(device)).softmax(1).cpu().numpy()
    return probabilities


def _compare(way: str, pixels_equal: float, expected: Probabilities, answers: Probabilities) -> Comparison:
    [differing] = np.nonzero(answers.argmax(1) != expected.argmax(1))
    lead = expected[differing].max(1) - expected[differing, answers[differing].argmax(1)]
    return Comparison(
        way=way,
        pixels_equal=float(pixels_equal),
        largest_difference=float(np.abs(answers - expected).max()),
        labels_differ=int((lead > TIE).sum()),
        ties=int((lead <= TIE).sum()),
    )
