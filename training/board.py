"""What TensorBoard shows of a run: one folder a run, so that the curves of several overlay."""

from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from training import figures, report
from training.config import TrainConfig
from training.data import Dataset
from training.scores import Probabilities, Scores
from training.splits import Split

GALLERY = 24
HISTOGRAMS_EVERY = 5


def epoch(writer: SummaryWriter, line: "report.Epoch", model: nn.Module) -> None:
    """Scalars of one epoch; weight histograms of the first and of every fifth."""
    scalars = {
        "loss/train": line.train_loss,
        "loss/val": line.val_loss,
        "accuracy/train": line.train_accuracy,
        "accuracy/val": line.val_accuracy,
        "balanced_accuracy/val": line.val_balanced_accuracy,
        "learning_rate": line.lr,
        "images_per_second": line.images_per_second,
    }
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, line.epoch)
    if line.epoch == 1 or line.epoch % HISTOGRAMS_EVERY == 0:
        for name, parameter in model.named_parameters():
            writer.add_histogram(f"weights/{name}", parameter.detach().float().cpu().numpy(), line.epoch)


def results(
    writer: SummaryWriter,
    config: TrainConfig,
    dataset: Dataset,
    scores: dict[Split, Scores],
    validation: Probabilities,
) -> None:
    """Validation images with true and predicted label, confusion matrix, classification report, hyperparameters."""
    indices = dataset.splits["val"]
    for tag, rows in {
        "validation/examples": np.arange(min(GALLERY, len(indices))),
        "validation/worst_mistakes": report.worst_mistakes(dataset.labels[indices], validation, GALLERY),
    }.items():
        assert len(validation) == len(indices)
        if len(rows):
            writer.add_figure(tag, report.answers(dataset, indices[rows], validation[rows]))
    writer.add_figure("validation/confusion_matrix", figures.confusion(scores["val"]))
    writer.add_figure("test/confusion_matrix", figures.confusion(scores["test"]))
    for split in ("val", "test"):
        writer.add_text(f"{split}/classification_report", report.class_table(scores[split]))
    writer.add_text("configuration", f"```yaml\n{config.to_yaml()}```")
    _hyperparameters(writer, config, scores)


def _hyperparameters(writer: SummaryWriter, config: TrainConfig, scores: dict[Split, Scores]) -> None:
    """Into the run's own folder: `add_hparams` would open a second run beside it."""
    settings = {
        key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in asdict(config).items()
    }
    metrics = {
        f"hparam/{split}_{name}": getattr(scores[split], name)
        for split in ("val", "test")
        for name in ("accuracy", "balanced_accuracy")
    }
    file: Any = writer.file_writer
    for summary in hparams(settings, metrics):  # type: ignore[no-untyped-call]
        file.add_summary(summary)
    for name, value in metrics.items():
        writer.add_scalar(name, value)
