"""The loop: for each epoch, for each step, forward, backward, step; then scores, and the best is kept."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training import activations, balance, board, history, models, scores
from training.batches import Batches
from training.cache import release
from training.checkpoint import Saved
from training.config import TrainConfig
from training.data import Dataset
from training.device import uses_bfloat16
from training.history import History
from training.interruption import Interrupted, Interruption
from training.learner import Learner
from training.mixing import Mixing
from training.optimizer import clip
from training.progress import Epoch, Progress
from training.scores import Scores
from training.splits import Split

TRAINING_IMAGES_SCORED = 5_000
"""For the gap between training and validation, this many training images are scored as they are, not augmented."""
PROBED = 64
"""Training images on which the untrained network's signal and gradients are measured."""
SAVE_EVERY_S = 600
"""Within an epoch, too, a checkpoint is made at least this often: no more is lost when the process is killed."""


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number: the weights are lost, the last checkpoint is not."""


def fit(
    model: nn.Sequential,
    settings: dict[str, JsonValue],
    dataset: Dataset,
    config: TrainConfig,
    device: torch.device,
    writer: SummaryWriter,
    interruption: Interruption,
) -> list[Epoch]:
    """Train; leave `checkpoints/last.pt`, the one before it, and `best.pt`, the best by --best-by on validation.

    Goes on from `last.pt` if there is one. Raises NonFiniteLoss, CheckpointRefused, Interrupted.
    """
    split = dataset.splits["train"]
    labels, classes = dataset.labels[split], len(dataset.classes)
    batches = Batches(dataset.images, dataset.labels, split, config, pin_memory=device.type == "cuda")
    mix = Mixing(classes=classes, seed=config.seed, mixup=config.mixup, cutmix=config.cutmix)
    weights = balance.weights(labels, classes) if config.balance == "loss" else np.ones(classes)
    class_weights = torch.tensor(weights, dtype=torch.float32, device=device)
    learner = Learner.start(model, config, len(batches))
    probed = split[np.linspace(0, len(split) - 1, min(PROBED, len(split)), dtype=int)]
    seen = History(
        classes=classes,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps_an_epoch=len(batches),
        at_start=activations.at_start(model, dataset.images[probed], dataset.labels[probed]),
        epochs=[],
    )
    history.write(config.run, seen)
    saved = Saved(folder=config.run / "checkpoints", identity={"settings": settings, "data": dataset.digest})
    progress = saved.restore(learner, device)

    kept = time.monotonic()

    def after_step() -> None:
        nonlocal kept
        asked = interruption.number
        if asked is not None or time.monotonic() - kept >= SAVE_EVERY_S:
            saved.save(learner, progress)
            kept = time.monotonic()
        if asked is not None:
            raise Interrupted(asked)

    while not progress.ended(config):
        with interruption:
            run_epoch(learner, batches, mix, class_weights, progress, config, device, after_step)
            saved.save(learner, progress)  # so that validation, which may take long, can be left at once
        release(dataset.images)  # in the end, all of them would count as this process's memory
        validation = score(learner.average.model, dataset, "val")
        line = progress.took_epoch(validation, config, float(learner.schedule.get_last_lr()[0]))
        print(line.line(config), flush=True)
        board.epoch(writer, line, learner, dataset.images[dataset.splits["val"][: models.BATCH]])
        with interruption:
            saved.save(learner, progress)
        history.write(config.run, replace(seen, epochs=progress.history))
    if progress.epoch < config.epochs:
        print(f"stopped early: no better {config.best_by} on the validation split in {config.patience} epochs")
    return progress.history


def run_epoch(
    learner: Learner,
    batches: Batches,
    mix: Mixing,
    class_weights: Tensor,
    progress: Progress,
    config: TrainConfig,
    device: torch.device,
    after_step: Callable[[], None],
) -> None:
    """One pass over the training images, or what is left of it. Raises NonFiniteLoss."""
    model, epoch = learner.model, progress.epoch
    models.train_mode(model)
    with tqdm(
        desc=f"epoch {epoch + 1}",
        initial=progress.step,
        total=len(batches),
        unit=" steps",
        disable=None,
        leave=False,
    ) as bar:
        begun = time.perf_counter()
        for step, parts in enumerate(batches.epoch(epoch, progress.step), progress.step):
            seen, loss_sum, correct = 0, 0.0, 0
            learner.optimizer.zero_grad()
            for part, (images, labels) in enumerate(parts):
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                images, targets = mix(images, labels, epoch, step, part)
                with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device)):
                    logits: Tensor = model(images)
                loss = cross_entropy(logits.float(), targets, class_weights, label_smoothing=config.label_smoothing)
                if not math.isfinite(loss_value := loss.item()):
                    raise NonFiniteLoss(f"the loss is {loss_value} in epoch {epoch + 1}, step {step + 1}")
                (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
                seen += len(labels)
                loss_sum += loss_value * len(labels)
                correct += int((logits.argmax(1) == targets.argmax(1)).sum())
            norm = float(clip(model, config.clip_norm))
            learner.optimizer.step()
            learner.schedule.step()
            learner.average.update(model)

            begun, seconds = (now := time.perf_counter()), now - begun
            progress.took_step(images=seen, loss_sum=loss_sum, correct=correct, norm=norm, seconds=seconds)
            bar.set_postfix_str(str(progress), refresh=False)
            bar.update()
            after_step()


def score(model: nn.Module, dataset: Dataset, split: Split) -> Scores:
    """Scores of one split; of the training split, those of its first 5,000 images. Raises NonFiniteLoss."""
    indices = dataset.splits[split][: TRAINING_IMAGES_SCORED if split == "train" else None]
    probabilities = models.predict(model, dataset.images, indices)
    if not np.isfinite(probabilities).all():
        raise NonFiniteLoss(f"the model gives values that are not finite on the {split} split")
    return scores.score(dataset.labels[indices], probabilities, dataset.classes)
