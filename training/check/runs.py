"""Lines of the check that train: a small run of each family on made images, and its file on every processor."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.contract.card.model_card import TOLERANCE
from serving.contract.files.names import MODEL, int8_of
from serving.contract.model import open_model
from serving.contract.selfcheck import NO_GPU, Result, Skipped
from serving.contract.session import Placement
from training.engine import checkpoint
from training.engine.runs import BEST, REPORT_FACTS
from training.models.prediction import predict
from training.options.config import TrainConfig
from training.train import train

FAMILIES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (64,), "image_size": 32},
    "cnn": {"width": 16, "image_size": 32, "quantize": "int8"},
    "tf_efficientnet_lite0": {"weights": "none", "image_size": 32},
}
"""The options of each family: no weights are read from elsewhere."""
IMAGES, CLASSES, SIDE, EPOCHS = 150, 3, 32, 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    facts: dict[str, Any]
    """Its report.json."""


@dataclass(frozen=True)
class Runs:
    """Small runs in `folder`, whose model files are left in `out`."""

    folder: Path
    out: Path
    done: dict[str, Run] = field(default_factory=dict)
    """By name, those that are finished."""

    def train(self, family: str) -> Result:
        """A run on the device that `auto` takes, with its proof."""
        run = self.run(family, device="auto")
        for file in (run.folder / MODEL, int8_of(run.folder / MODEL)):
            if file.exists():
                shutil.copyfile(file, self.out / file.name.replace("model", family))
        epoch, parity = run.facts["history"][-1], run.facts["parity"]
        difference = max(way["largest_difference"] for way in parity["comparisons"])
        rate, accuracy = epoch["images_per_second"], run.facts["scores"]["test"]["accuracy"]
        return Result(
            detail=f"GPU: {run.facts['environment']['GPU']}; {rate:,.0f} images/s, accuracy {accuracy:.2f}; "
            f"{parity['comparisons'][-1]['way']} within {difference:.0e}",
            numbers={"images/s": rate, "difference": difference},
        )

    def run(self, family: str, device: str) -> Run:
        """Train, unless this run is done."""
        name = f"{family}-{device}"
        if name not in self.done:
            options = FAMILIES[family] | {"device": device, "epochs": EPOCHS, "workers": 0}
            options |= {"promote": "never"}
            folder = train(TrainConfig(model=family, data=self._data(), out=self.folder, name=name, **options))
            facts = json.loads((folder / REPORT_FACTS).read_text(encoding="utf-8"))
            self.done[name] = Run(folder=folder, facts=facts)
        return self.done[name]

    def finished(self, family: str) -> Run:
        """The run of a family; raises Skipped without one."""
        if (run := self.done.get(f"{family}-auto")) is None:
            raise Skipped(f"{family} was not trained")
        return run

    def eight_bits(self) -> Result:
        """The int8 file of the CNN passed the loader; whether its labels agree enough is a matter of the data."""
        run = self.finished("cnn")
        quantized = run.facts["quantized"]
        if quantized is None:
            raise RuntimeError(next(line for line in run.facts["warnings"] if "int8" in line))
        kept = "published" if quantized["published"] else "not published"
        agreement, speed = quantized["agreement"], quantized["speed"]
        return Result(
            detail=f"{agreement:.1%} of the labels agree, {speed:.1f} times as fast on the CPU, {kept}",
            numbers={"agreement": agreement, "speed": speed},
        )

    def _data(self) -> Path:
        """Made images of three classes that differ in colour, as one file."""
        path = self.folder / "images.npz"
        if not path.exists():
            rng = np.random.default_rng(0)
            labels = np.arange(IMAGES) % CLASSES
            images = rng.integers(0, 160, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
            images[np.arange(IMAGES), :, :, labels] += 90
            np.savez(path, train_images=images, train_labels=labels)
        return path


def gpu_is_as_cpu(trained: Runs, device: torch.device) -> Result:
    """The trained weights of each family give the same probabilities on the GPU and on the CPU."""
    worst = max(difference_from_cpu(trained, family, device) for family in FAMILIES)
    if worst > TOLERANCE:
        raise RuntimeError(f"a probability differs by {worst:.1e}; at most {TOLERANCE:g} is allowed")
    if device.type != "cuda":
        raise Skipped(f"{NO_GPU}; the CPU repeats itself within {worst:.1e}")
    return Result(detail=f"largest difference of a probability {worst:.1e}", numbers={"difference": worst})


def difference_from_cpu(trained: Runs, family: str, device: torch.device) -> float:
    """The largest difference of a probability between torch on this device and the exported file on the CPU."""
    folder = trained.finished(family).folder
    served = open_model(folder / MODEL, placement=Placement(on="cpu"))
    card, size = served.card, served.card.preprocessing
    config = TrainConfig(model=family, **FAMILIES[family])
    model = checkpoint.restored(folder / BEST, config, card)
    images = np.random.default_rng(0).integers(0, 256, (64, size.height, size.width, size.channels), dtype=np.uint8)
    return float(np.abs(predict(model.to(device), images) - served.predict(images)).max())


def goldens_of_gpu(trained: Runs, device: torch.device) -> Result:
    """Cards that were evaluated on the device replay on the CPU."""
    for family in FAMILIES:
        open_model(trained.finished(family).folder / MODEL, placement=Placement(on="cpu"))
    if device.type != "cuda":
        raise Skipped(f"{NO_GPU}; the cards of the CPU replay on the CPU")
    return Result(detail=f"{len(FAMILIES)} cards of {torch.cuda.get_device_name(device)} replay on the CPU")


def goldens_of_cpu(trained: Runs, device: torch.device) -> Result:
    """A card that was evaluated on the CPU replays on the GPU, and so does one of the GPU."""
    if device.type != "cuda":
        raise Skipped(NO_GPU)
    for folder in (trained.run("cnn", device="cpu").folder, trained.finished("cnn").folder):
        open_model(folder / MODEL, placement=Placement(on="cuda"))
    return Result(detail="a card of the CPU and one of the GPU replay on the GPU")
