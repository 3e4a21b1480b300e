"""Lines of the check about a model file: that it opens, and that every processor gives the same."""

from collections.abc import Callable
from time import perf_counter

import numpy as np

from serving.contract.card.model_card import TOLERANCE
from serving.contract.files.names import int8_of
from serving.contract.model import Classifier, open_model
from serving.contract.selfcheck import Result, Skipped
from serving.contract.session import Placement
from serving.settings import Settings

Attempt = Callable[[Settings], Result]
IMAGES = 64


def opens_on_gpu(settings: Settings, number: int = 0) -> Result:
    """The file opens on this GPU alone and replays its goldens, wherever they come from."""
    return _opens(settings, Placement(on="cuda", device_id=number, gpu_mem_limit=settings.gpu_mem_limit))


def opens_on_cpu(settings: Settings) -> Result:
    """The file opens on the CPU and replays its goldens, wherever they come from."""
    return _opens(settings, Placement(on="cpu"))


def gpu_is_as_cpu(settings: Settings) -> Result:
    """Probabilities of random images on the GPU and on the CPU, within the tolerance of the goldens."""
    on_gpu, on_cpu = (
        open_model(settings.file, placement=Placement(on=on), key=settings.public_key) for on in ("cuda", "cpu")
    )
    images = random_images(on_gpu, IMAGES)
    difference = float(np.abs(on_gpu.predict(images) - on_cpu.predict(images)).max())
    if difference > TOLERANCE:
        raise RuntimeError(f"a probability differs by {difference:.1e}; at most {TOLERANCE:g} is allowed")
    return Result(detail=f"{IMAGES} images, largest difference {difference:.1e}", numbers={"difference": difference})


def eight_bits(settings: Settings) -> Result:
    """The int8 file beside the model opens, on the CPU, and replays its goldens."""
    path = int8_of(settings.file)
    if not path.exists():
        raise Skipped(f"{path} does not exist; --quantize int8 makes one")
    return _opens(settings.model_copy(update={"model": path}), Placement())


def random_images(classifier: Classifier, number: int) -> np.ndarray:
    """Uint8 images `[number, height, width, channels]` of noise, the same each time."""
    size = classifier.card.preprocessing
    shape = (number, size.height, size.width, size.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _opens(settings: Settings, placement: Placement) -> Result:
    start = perf_counter()
    classifier = open_model(settings.file, placement=placement, key=settings.public_key)
    seconds = perf_counter() - start
    card = classifier.card
    size = f"{card.preprocessing.height} x {card.preprocessing.width} px"
    goldens = f"{len(card.goldens)} goldens replayed"
    detail = f"{settings.file.name}, {size}, on {classifier.provider.removesuffix('ExecutionProvider')}: {goldens}"
    return Result(detail=detail, numbers={"seconds": seconds})
