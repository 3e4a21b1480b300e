"""What TensorBoard shows of a run: one folder a run, so that the curves of several overlay."""

from dataclasses import asdict
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from training import activations, figures, report
from training.config import TrainConfig
from training.data import Dataset
from training.learner import Learner
from training.scores import Probabilities, Scores
from training.splits import Split

GALLERY = 24
HISTOGRAMS_EVERY = 5


def augmented(writer: SummaryWriter, config: TrainConfig, dataset: Dataset) -> None:
    """What augmentation does to training images, seen before the first step."""
    sheet = report.augmented(config, dataset)
    if sheet is not None:
        writer.add_figure("training/augmented", sheet)


def epoch(writer: SummaryWriter, line: "report.Epoch", learner: Learner, images: np.ndarray) -> None:
    """Scalars of one epoch, among them gradients of its last step by layer, and dead ReLUs of these images.

    Histograms of weights and activations in the first and every fifth epoch.
    """
    scalars = {
        "loss/train": line.train_loss,
        "loss/val": line.val_loss,
        "accuracy/train": line.train_accuracy,
        "accuracy/val": line.val_accuracy,
        "balanced_accuracy/val": line.val_balanced_accuracy,
        "learning_rate": line.lr,
        "gradient_norm/mean": line.gradient_norm_mean,
        "gradient_norm/max": line.gradient_norm_max,
        "images_per_second": line.images_per_second,
    }
    for name, parameter in learner.model.named_parameters():
        if parameter.grad is not None and parameter.ndim > 1:
            scalars[f"gradient_norm_by_layer/{name}"] = float(parameter.grad.norm())
    observed = activations.observe(learner.average.model, images)
    scalars |= {f"dead_relus/{seen.layer}": seen.dead for seen in observed if seen.dead is not None}
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, line.epoch)
    if line.epoch == 1 or line.epoch % HISTOGRAMS_EVERY == 0:
        for seen in observed:
            writer.add_histogram(f"activations/{seen.layer}", seen.values, line.epoch)
        for name, parameter in learner.average.model.named_parameters():
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
