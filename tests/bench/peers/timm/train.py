"""Fine-tune the backbone of a finished run with timm's own parts, and compare the answers on the same test images.

python -m tests.bench.peers.timm.train runs/photos

Data, split, backbone, weights, image and batch size, epochs and learning rate are the run's; the rest is the recipe of
timm's train.py: RandomResizedCrop, flip, colour jitter, label smoothing 0.1, AdamW, cosine with warm-up, an average of
the weights with warm-up, the epoch with the best accuracy on the validation split.
https://huggingface.co/docs/timm/training_script
"""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from training.data.dataset import Dataset, load_dataset
from training.engine.runs import load_config
from training.metrics.classification import Probabilities, score
from training.metrics.comparison import compare
from training.models import backbones, weights

SMOOTHING = 0.1
WEIGHT_DECAY = 0.05
"""Of timm's recipes with AdamW; with SGD, the default of train.py, 2e-5."""
SCORES = ("accuracy", "balanced_accuracy", "roc_auc")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Fine-tune the backbone of a finished run with timm's own parts."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run of a timm architecture with pretrained weights and `--views none`."""
    data: Path | None = None
    """Where the run's images are now. None: where its config.yaml says."""
    lr: float | None = None
    """Highest learning rate. None: the run's."""
    epochs: int | None = None
    """None: the run's."""
    images: int | None = None
    """Train on this number of images, evenly spread over the training split, to try the script. None: all."""
    seed: int = 0


class Pictures(TorchDataset[tuple[Any, int]]):
    """The originals of a split; timm's loader sets `transform`."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.transform: Any = None
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        index = int(self._indices[position])
        return self.transform(Image.fromarray(self._dataset.unresized(index))), int(self._dataset.labels[index])


def main() -> None:
    options = tyro.cli(Options)
    config = load_config(options.run)
    if config.views != "none":
        raise SystemExit(f"{options.run} answers by the mean over views, timm's script by one: expected --views none")
    config = replace(config, data=options.data or config.data, epochs=options.epochs or config.epochs)
    torch.manual_seed(options.seed)
    dataset = load_dataset(config)
    timm, found = backbones.timm(), weights.find(config)
    from timm import data, loss, optim, scheduler, utils  # only after backbones.timm()

    whole = timm.get_pretrained_cfg(config.model).num_classes
    overlay = {"state_dict": found.tensors, "num_classes": whole, "custom_load": False}
    side = dataset.preprocessing.height
    model = backbones.make(config, side, 3, whole, pretrained=True, pretrained_cfg_overlay=overlay)
    model.reset_classifier(len(dataset.classes))  # type: ignore[operator]
    average = utils.ModelEmaV3(model, decay=0.9998, use_warmup=True)
    optimizer = optim.create_optimizer_v2(model, opt="adamw", lr=options.lr or config.lr, weight_decay=WEIGHT_DECAY)
    settings = data.resolve_data_config(
        {"input_size": (3, side, side), "mean": found.mean, "std": found.std}, model=model
    )
    shared = {name: settings[name] for name in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    shared |= {"num_workers": config.workers or 1, "use_prefetcher": False, "batch_size": config.batch_size}
    splits = {name: dataset.splits[name] for name in ("train", "val", "test")}
    if options.images is not None:
        spread = np.linspace(0, len(splits["train"]) - 1, options.images).astype(int)
        splits["train"] = splits["train"][spread]
    train, val, test = (
        data.create_loader(Pictures(dataset, indices), is_training=name == "train", **shared)
        for name, indices in splits.items()
    )
    steps = len(train)
    schedule, epochs = scheduler.create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=1,
        warmup_lr=1e-6,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    criterion = loss.LabelSmoothingCrossEntropy(SMOOTHING)
    best, answers, speeds, step = -1.0, np.zeros(0), [], 0
    for epoch in range(epochs):
        start = perf_counter()
        model.train()
        for images, labels in train:
            schedule.step_update(num_updates=step)
            step += 1
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
            average.update(model, step=step)
        speeds.append(steps * config.batch_size / (perf_counter() - start))
        accuracy = float((predict(average.module, val).argmax(1) == dataset.labels[dataset.splits["val"]]).mean())
        print(f"epoch {epoch + 1}/{epochs}  val accuracy {accuracy:.1%}  {speeds[-1]:,.0f} images/s", flush=True)
        if accuracy > best:
            best, answers = accuracy, predict(average.module, test)
    report(options.run, dataset, answers, median(speeds))


def predict(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> Probabilities:
    """Probabilities float32 `[images, classes]`, in the order of the split."""
    model.eval()
    with torch.inference_mode():
        rows: Probabilities = torch.cat([model(images).softmax(1) for images, _ in loader]).numpy()
    return rows


def report(run: Path, dataset: Dataset, theirs: Probabilities, images_a_second: float) -> None:
    """Print the scores of both on the test split, their training speeds, and the intervals of the differences."""
    test = dataset.splits["test"]
    labels, ours = dataset.labels[test], predictions(run / "predictions.csv", dataset)
    scored = score(labels, theirs, dataset.classes), score(labels, ours, dataset.classes)
    history = json.loads((run / "history.json").read_text())["epochs"]
    speeds = images_a_second, median(line["images_per_second"] for line in history)
    for name, scores, speed in zip(("timm", "ours"), scored, speeds, strict=True):
        values = {figure: getattr(scores, figure) for figure in SCORES}
        print(json.dumps({"trainer": name, "images": len(test)} | values | {"training images/s": round(speed, 1)}))
    comparison = compare(labels, (theirs, ours), scored, dataset.components[test])
    for figure in SCORES:
        difference = comparison.differences[figure]
        print(f"ours - timm, {figure}: {difference.value}, 95 % interval {difference.interval}")


def predictions(path: Path, dataset: Dataset) -> Probabilities:
    """What the run answered on its test images, float64 `[images, classes]`, in the order of the split."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: [float(row[name]) for name in dataset.classes] for row in csv.DictReader(file)}
    return np.array([rows[dataset.keys[index]] for index in dataset.splits["test"]])


if __name__ == "__main__":
    main()
