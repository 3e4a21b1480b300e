"""How fast training is beside other loops: python -m tests.bench.training --data DIR (make bench-training).

In every round each loop trains for some seconds on the same images, with the same network and batch size, in an order
that is drawn. Reported are images a second and their ratios within a round.

    assignment   reads and decodes each file again in every epoch, Albumentations an image, Adam that is not fused
    plain        images decoded once, Albumentations an image in worker processes, fused AdamW
    ours         the trainer's own epoch: order, batches, augmentation, checks, progress
    step         the trainer's own step alone, again and again on one batch
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import joblib
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from training.data.augmentation import pipeline
from training.data.dataset import Dataset, load_dataset
from training.data.loader import Batches, TrainingSet
from training.device import find_device, training_dtype
from training.engine.loop import StepBatch, train_step
from training.engine.objective import Objective
from training.engine.progress import RunProgress
from training.engine.train_state import TrainState
from training.models import networks
from training.models.normalization import normalization
from training.options.config import TrainConfig
from training.options.settled import SettledConfig, settle_options

ASSIGNMENT, PLAIN, OURS, STEP = "assignment", "plain", "ours", "step"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time the trainer beside other loops."""

    data: Path
    """Images with labels, in any layout that training takes."""
    models: tuple[str, ...] = ("mlp", "cnn")
    augment: str = "light"
    rounds: int = 5
    seconds: float = 4.0
    """Of each loop in a round, after its first batch."""


class Originals(TorchDataset[tuple[Tensor, int]]):
    """An image a call, as most tutorials write it: resized or already so, augmented, normalised, a tensor."""

    def __init__(self, dataset: Dataset, config: SettledConfig, *, decoded: bool) -> None:
        self.dataset, self.decoded = dataset, decoded
        self.augment = pipeline.policy(config)
        self.reference = pipeline.reference(dataset.preprocessing, normalization(config, dataset.images, np.arange(1)))
        self.train = dataset.splits["train"]

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        index = int(self.train[place])
        if self.decoded:
            image = np.array(self.dataset.images[index])
        else:
            image = self.dataset.unresized(index)  # the file, read and decoded
            size = (self.dataset.preprocessing.width, self.dataset.preprocessing.height)
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if self.augment is not None:
            image = self.augment(image=image)["image"]
        return self.reference(image=image)["image"], int(self.dataset.labels[index])


def build(config: SettledConfig, dataset: Dataset) -> nn.Sequential:
    torch.manual_seed(0)
    first = normalization(config, dataset.images, dataset.splits["train"])
    model = networks.build(config, dataset.preprocessing, first, len(dataset.classes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def other(config: SettledConfig, dataset: Dataset, *, plain: bool) -> Iterator[int]:
    """Yields the images of each step of a loop that is not ours."""
    model = build(config, dataset)[1:].train()
    workers = max(1, joblib.cpu_count() - 1) if plain else 0
    batches = DataLoader(
        Originals(dataset, config, decoded=plain), config.batch_size, True, num_workers=workers, drop_last=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True) if plain else torch.optim.Adam(model.parameters())
    dtype = training_dtype(config, model) if plain else torch.float32
    while True:
        for images, labels in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                logits = model(images)
            loss = cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(images)


def state_and_batches(config: SettledConfig, dataset: Dataset) -> tuple[TrainState, Batches]:
    model = build(config, dataset)
    training_set = TrainingSet(images=dataset.images, labels=dataset.labels, indices=dataset.splits["train"])
    batches = Batches(training_set, config, torch.device("cpu"))
    labels = dataset.labels[dataset.splits["train"]]
    objective = Objective.of(config, labels, len(dataset.classes), model, batches)
    return TrainState.start(model.train(), config, objective, len(batches)), batches


def ours(config: SettledConfig, dataset: Dataset) -> Iterator[int]:
    """The steps of the trainer's epochs, with all that is done in between."""
    state, batches = state_and_batches(config, dataset)
    progress, epoch = RunProgress(), 0
    with batches:
        while True:
            for step, parts in enumerate(batches.epoch(epoch)):
                batch = StepBatch(epoch=epoch, step=step, parts=parts, images=len(parts) * batches.size)
                progress.add_steps([train_step(state, batch)])
                yield batch.images
            epoch += 1


def step(config: SettledConfig, dataset: Dataset) -> Iterator[int]:
    """The trainer's step on one batch that stays in memory."""
    state, batches = state_and_batches(config, dataset)
    with batches:
        parts = next(iter(batches.epoch(0)))
    batch = StepBatch(epoch=0, step=0, parts=parts, images=len(parts) * batches.size)
    while True:
        train_step(state, batch)
        yield batch.images


def images_per_second(steps: Iterator[int], seconds: float) -> float:
    next(steps)
    images, start = 0, time.perf_counter()
    while (now := time.perf_counter() - start) < seconds:
        images += next(steps)
    return images / now


def measure(options: Options, model: str, folder: Path) -> dict[str, list[float]]:
    """Images a second of each loop, a value a round."""
    config = TrainConfig(data=options.data, out=folder, model=model, image_size=64, augment=options.augment)  # type: ignore[arg-type]
    dataset = load_dataset(config)
    settled = settle_options(config, training_images=len(dataset.splits["train"]))
    loops: dict[str, Callable[[], Iterator[int]]] = {
        ASSIGNMENT: lambda: other(settled, dataset, plain=False),
        PLAIN: lambda: other(settled, dataset, plain=True),
        OURS: lambda: ours(settled, dataset),
        STEP: lambda: step(settled, dataset),
    }
    figures: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(options.rounds):
        names = list(loops)
        random.Random(number).shuffle(names)
        for name in names:
            with closing(loops[name]()) as steps:  # type: ignore[type-var]
                figures[name].append(images_per_second(steps, options.seconds))
    return figures


def table(model: str, figures: dict[str, list[float]]) -> Iterator[str]:
    yield f"| {model} | images/s | lowest to highest |"
    yield "|---|---:|---:|"
    for name, values in figures.items():
        yield f"| {name} | {median(values):,.0f} | {min(values):,.0f} to {max(values):,.0f} |"
    for above, below in ((STEP, OURS), (OURS, PLAIN), (OURS, ASSIGNMENT)):
        ratios = [one / another for one, another in zip(figures[above], figures[below], strict=True)]
        yield f"| {above} / {below} | {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"


def main() -> None:
    options = tyro.cli(Options)
    find_device("cpu")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {options.rounds} rounds of {options.seconds:g} s\n")
    with TemporaryDirectory() as folder:
        for model in options.models:
            print("\n".join(table(model, measure(options, model, Path(folder)))), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
