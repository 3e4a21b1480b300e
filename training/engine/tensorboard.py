"""The curves and histograms of a run in TensorBoard: one folder a run, so that the curves of several overlay."""

from torch.utils.tensorboard import SummaryWriter

from training.data.dataset import Dataset
from training.engine.progress import Epoch
from training.engine.train_state import TrainState
from training.metrics.classification import Scores
from training.models import diagnostics

HISTOGRAMS_EVERY = 5
OBSERVED = 128
"""Validation images whose activations are measured after each epoch; as many take as long as validation does."""


def write_epoch(writer: SummaryWriter, line: Epoch, validation: Scores, state: TrainState, dataset: Dataset) -> None:
    """Scalars of one epoch, among them the gradient norms of its last step by layer, and the shares of dead ReLUs.

    `validation/score` is what --best-by judges the epoch by.

    In the first and every fifth epoch also histograms of weights and activations. Activations are those of the first
    128 validation images.
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
    judged = validation.headline() | {"score": line.val_score}
    scalars |= {f"validation/{name}": value for name, value in judged.items() if value is not None}
    for name, parameter in state.model.named_parameters():
        if parameter.grad is not None and parameter.ndim > 1:
            scalars[f"gradients/{name}"] = float(parameter.grad.norm())
    observed = diagnostics.observe(state.average.model, dataset.images[dataset.splits["val"][:OBSERVED]])
    scalars |= {f"dead_relus/{layer.layer}": layer.dead for layer in observed if layer.dead is not None}
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, line.epoch)
    if line.epoch == 1 or line.epoch % HISTOGRAMS_EVERY == 0:
        for layer in observed:
            writer.add_histogram(f"activations/{layer.layer}", layer.values, line.epoch)
        for name, parameter in state.average.model.named_parameters():
            writer.add_histogram(f"weights/{name}", parameter.detach().float().cpu().numpy(), line.epoch)
