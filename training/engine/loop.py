"""The loop: for each epoch, for each step, forward, backward, step; then scores, and the best is kept."""

import math
import signal
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

from training.data import class_balance
from training.data.dataset import Dataset
from training.data.formats import Split
from training.data.loader import Batches, TrainingSet
from training.device import uses_bfloat16
from training.distributed import ALONE, Group, exchanging
from training.engine import history
from training.engine import tensorboard as board
from training.engine.checkpoint import Pace, Saved
from training.engine.history import History
from training.engine.mixup import Mixing
from training.engine.optimizer import clip
from training.engine.progress import Epoch, Progress
from training.engine.train_state import Learner
from training.errors import Interrupted, NonFiniteLoss
from training.metrics import classification
from training.metrics.classification import Probabilities, Scores
from training.models import diagnostics, networks
from training.settled import SettledConfig
from training.signals import Interruption
from training.storage import release

TRAINING_IMAGES_SCORED = 5_000
"""For the gap between training and validation, this many training images are scored as they are, not augmented."""
PROBED = 64
"""Training images on which the untrained network's signal and gradients are measured."""
OBSERVED = 128
"""Validation images whose activations are looked at after each epoch; more are hardly more telling, and they take as
long as validating them does."""
DROPOUT_STREAM = 2
"""Keeps these draws apart from others that are made from a seed, an epoch and a number."""


def fit(
    model: nn.Sequential,
    settings: dict[str, JsonValue],
    dataset: Dataset,
    config: SettledConfig,
    device: torch.device,
    group: Group,
    writer: SummaryWriter | None,
    interruption: Interruption,
) -> list[Epoch]:
    """Train; leave `checkpoints/last.pt`, the one before it, and `best.pt`, the best by --best-by on validation.

    Goes on from `last.pt` if there is one. Only the process that has a `writer` writes. Raises NonFiniteLoss,
    CheckpointRefused, Interrupted.
    """
    split = dataset.splits["train"]
    labels, classes = dataset.labels[split], len(dataset.classes)
    training_set = TrainingSet(images=dataset.images, labels=dataset.labels, indices=split)
    batches = Batches(training_set, config, pin_memory=device.type == "cuda", group=group)
    mix = Mixing(classes=classes, seed=config.seed, mixup=config.mixup, cutmix=config.cutmix, borrowed=batches.borrowed)
    weights = class_balance.weights(labels, classes) if config.balance == "loss" else np.ones(classes)
    class_weights = torch.tensor(weights, dtype=torch.float32, device=device)
    seen = replace(history.read(config.run) or look(model, dataset, len(batches)), diverged=None)
    learner = Learner.start(model, config, len(batches), group)
    identity = {"settings": settings, "data": dataset.digest}
    saved = Saved(folder=config.run / "checkpoints", identity=identity, group=group)
    progress = saved.restore(learner)
    if writer is not None:
        history.write(config.run, replace(seen, epochs=progress.history))
    pace = Pace()

    def save_within_epoch() -> None:
        release(dataset.images)  # a checkpoint takes memory, too, while it is written
        saved.write(learner, progress)

    def after_step() -> None:
        pace.keep(save_within_epoch)

    with batches:
        while not progress.ended(config):
            with interruption:
                stopped = run_epoch(
                    learner, batches, mix, class_weights, progress, config, device, group, interruption, after_step
                )
                saved.save(learner, progress)  # so that validation, which may take long, can be left at once
                if stopped:
                    raise Interrupted(interruption.number or signal.SIGTERM)
            validation = score(dataset, "val", answer(learner.average.model, dataset, "val", group))
            with interruption:  # TensorBoard's queue, too, would be left in a state in which it cannot be closed
                line = progress.took_epoch(validation, config, float(learner.schedule.get_last_lr()[0]))
                print(line.line(config), flush=True)
                if writer is not None:
                    board.epoch(writer, line, learner, dataset.images[dataset.splits["val"][:OBSERVED]])
                saved.save(learner, progress)
                if writer is not None:
                    history.write(config.run, replace(seen, epochs=progress.history))
    if progress.epoch < config.epochs:
        print(f"stopped early: no better {config.best_by} on the validation split in {config.patience} epochs")
    return progress.history


def look(model: nn.Sequential, dataset: Dataset, steps_an_epoch: int) -> History:
    """What is known of a network before its first step."""
    split = dataset.splits["train"]
    probed = split[np.linspace(0, len(split) - 1, min(PROBED, len(split)), dtype=int)]
    return History(
        classes=len(dataset.classes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps_an_epoch=steps_an_epoch,
        at_start=diagnostics.at_start(model, dataset.images[probed], dataset.labels[probed]),
        epochs=[],
    )


def run_epoch(
    learner: Learner,
    batches: Batches,
    mix: Mixing,
    class_weights: Tensor,
    progress: Progress,
    config: SettledConfig,
    device: torch.device,
    group: Group,
    interruption: Interruption,
    after_step: Callable[[], None],
) -> bool:
    """One pass over the training images, or what is left of it; True when it was left early, to stop.

    Every process of the group stops after the same step, whichever was asked to. Raises NonFiniteLoss.
    """
    model, epoch = learner.model, progress.epoch
    networks.train_mode(model)
    with tqdm(
        desc=f"epoch {epoch + 1}", initial=progress.step, total=len(batches), unit=" steps", disable=None, leave=False
    ) as bar:
        begun = time.perf_counter()
        for step, parts in enumerate(batches.epoch(epoch, progress.step), progress.step):
            torch.manual_seed(dropout_seed(config.seed, epoch, step, group.rank))
            learner.optimizer.zero_grad()
            images_a_step = len(parts) * batches.size
            loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
            for part, (images, labels) in enumerate(parts):
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                images, targets = mix(images, labels, epoch, step, part)
                with exchanging(learner.parallel, last=part + 1 == len(parts)):
                    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device)):
                        logits: Tensor = learner.parallel(images)
                    loss = cross_entropy(
                        logits.float(), targets, class_weights, label_smoothing=config.label_smoothing, reduction="sum"
                    )
                    # Of the step's images, all processes' together, each counts alike in the mean of the gradients.
                    (loss * (group.size / images_a_step)).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach()
                correct += (logits.argmax(1) == targets.argmax(1)).sum()
            asked = interruption.number is not None
            total, right, asked_of = group.sum(float(loss_sum), float(correct), asked)
            if not math.isfinite(total):
                where = f"the loss is {total / images_a_step} in epoch {epoch + 1}, step {step + 1}"
                raise NonFiniteLoss(where, batches.images(epoch, step))
            norm = float(clip(model, config.clip_norm))
            learner.optimizer.step()
            learner.schedule.step()
            group.average_statistics(model)
            learner.average.update(model)

            begun, seconds = (now := time.perf_counter()), now - begun
            progress.took_step(images=images_a_step, loss_sum=total, correct=int(right), norm=norm, seconds=seconds)
            bar.set_postfix_str(str(progress), refresh=False)
            bar.update()
            after_step()
            if asked_of:
                return True
    return False


def dropout_seed(*key: int) -> int:
    """What dropout draws from in one step, so that no checkpoint has to hold the state of a generator.

    By seed, epoch, step and process: the parts of a batch are not dropped alike.
    """
    return int(np.random.SeedSequence((DROPOUT_STREAM, *key)).generate_state(1, np.uint64)[0])


def answer(model: nn.Module, dataset: Dataset, split: Split, group: Group = ALONE) -> Probabilities:
    """What the model says of one split; of the training split, of its first 5,000 images. Raises NonFiniteLoss.

    The processes of a group take a part each, and all know the whole.
    """
    indices = dataset.splits[split][: TRAINING_IMAGES_SCORED if split == "train" else None]
    mine = group.part(len(indices))
    probabilities = group.gather(networks.predict(model, dataset.images, indices[mine.start : mine.stop]))
    if not np.isfinite(probabilities).all():
        raise NonFiniteLoss(f"the model gives values that are not finite on the {split} split")
    return probabilities


def score(dataset: Dataset, split: Split, answers: Probabilities) -> Scores:
    """Scores of what `answer` gave."""
    return classification.score(dataset.labels[dataset.splits[split][: len(answers)]], answers, dataset.classes)
