"""What TensorBoard shows of a run: one folder a run, so that the curves of several overlay."""

from dataclasses import asdict
from typing import Any

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from training.data.dataset import Dataset
from training.data.formats import Split
from training.engine.progress import Epoch
from training.engine.train_state import Learner
from training.metrics.classification import Probabilities, reliability, risk_coverage
from training.models import diagnostics
from training.report import figures
from training.report import run as report
from training.settled import SettledConfig

GALLERY = 24
HISTOGRAMS_EVERY = 5
PLACES = ("out", "name", "cache", "resume", "init_from")
FIRST_COLUMNS = ("model", "augment", "epochs", "lr", "batch_size")
"""Hyperparameters shown before anybody ticks more: TensorBoard shows five, first those marked as differing."""


def augmented(writer: SummaryWriter, config: SettledConfig, dataset: Dataset) -> None:
    """What augmentation does to training images, seen before the first step."""
    sheet = report.augmented(config, dataset)
    if sheet is not None:
        writer.add_figure("train/augmented", sheet)


def epoch(writer: SummaryWriter, line: Epoch, learner: Learner, images: np.ndarray) -> None:
    """Scalars of one epoch, among them gradients of its last step by layer, and dead ReLUs of these images.

    Histograms of weights and activations in the first and every fifth epoch.
    """
    scalars = {
        "loss/train": line.train_loss,
        "loss/val": line.val_loss,
        "accuracy/train": line.train_accuracy,
        "accuracy/val": line.val_accuracy,
        "accuracy/val_balanced": line.val_balanced_accuracy,
        "accuracy/gap": line.train_accuracy - line.val_accuracy,
        "training/learning_rate": line.lr,
        "training/images_per_second": line.images_per_second,
        "training/gradient_norm_mean": line.gradient_norm_mean,
        "training/gradient_norm_max": line.gradient_norm_max,
    }
    for name, parameter in learner.model.named_parameters():
        if parameter.grad is not None and parameter.ndim > 1:
            scalars[f"gradients/{name}"] = float(parameter.grad.norm())
    observed = diagnostics.observe(learner.average.model, images)
    scalars |= {f"dead_relus/{seen.layer}": seen.dead for seen in observed if seen.dead is not None}
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, line.epoch)
    if line.epoch == 1 or line.epoch % HISTOGRAMS_EVERY == 0:
        for seen in observed:
            writer.add_histogram(f"activations/{seen.layer}", seen.values, line.epoch)
        for name, parameter in learner.average.model.named_parameters():
            writer.add_histogram(f"weights/{name}", parameter.detach().float().cpu().numpy(), line.epoch)


def results(writer: SummaryWriter, found: "report.Findings", validation: Probabilities) -> None:
    """What the exported weights do on the validation and test splits: pictures, tables, scores, hyperparameters.

    `validation` are the answers on the validation split; the images shown are of it.
    """
    dataset, served = found.dataset, found.parity.served
    val = dataset.splits["val"]
    assert len(validation) == len(val)
    shown = min(GALLERY, len(val))
    for tag, rows in {
        "val/examples": np.arange(shown) * len(val) // shown,  # over all of it: the keys may be sorted by class
        "val/worst_mistakes": report.worst_mistakes(dataset.labels[val], validation, GALLERY),
    }.items():
        if len(rows):
            writer.add_figure(tag, report.answers(dataset, val[rows], validation[rows]))
    answered: dict[Split, Probabilities] = {"val": validation, "test": served}
    for split, probabilities in answered.items():
        labels, scores = dataset.labels[dataset.splits[split]], found.scores[split]
        writer.add_figure(f"{split}/confusion_matrix", figures.confusion(scores))
        writer.add_figure(
            f"{split}/reliability", figures.reliability(reliability(labels, probabilities), f"{split} images")
        )
        writer.add_text(f"{split}/classification_report", report.class_table(scores))
    test = dataset.labels[dataset.splits["test"]]
    writer.add_figure("test/risk_coverage", figures.risk_coverage(risk_coverage(test, served)))
    writer.add_text("configuration", f"```yaml\n{found.config.to_yaml()}```")
    _hyperparameters(writer, found)


def _hyperparameters(writer: SummaryWriter, found: "report.Findings") -> None:
    """Into the run's own folder: `add_hparams` would open a second run beside it.

    TensorBoard takes the columns of all runs from one of them, so each names every column, also those it leaves empty.
    """
    settings = {
        name: value if value is None or isinstance(value, (bool, int, float)) else str(value)
        for name, value in (asdict(found.config) | {"data": found.dataset.name}).items()
        if name not in PLACES
    }
    final = {
        f"scores/{split}_{name}": value
        for split in ("test", "val")
        for name, value in found.scores[split].headline().items()
    }
    every = {name: 0 if value is None else value for name, value in settings.items()}
    columns = hparams(every, final)[0]  # type: ignore[no-untyped-call]
    table = HParamsPluginData.FromString(columns.value[0].metadata.plugin_data.content)
    for column in table.experiment.hparam_infos:
        column.differs = column.name in FIRST_COLUMNS
    columns.value[0].metadata.plugin_data.content = table.SerializeToString()
    _, start, end = hparams(settings, {})  # type: ignore[no-untyped-call]
    file: Any = writer.file_writer
    for summary in (columns, start, end):
        file.add_summary(summary)
    for tag, value in final.items():
        if value is not None:
            writer.add_scalar(tag, value)
