"""The loop: for each epoch, for each batch, forward, backward, step; then evaluate, and keep the best."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.data.dataset import Dataset
from training.data.loader import Batches, TrainingSet
from training.engine import history, optimizer, parallel, tensorboard
from training.engine.checkpoint import CheckpointFolder, CheckpointInterval
from training.engine.objective import Objective
from training.engine.progress import Epoch, RunProgress, StepResult
from training.engine.train_state import RunContext, TrainState
from training.errors import Interrupted, NonFiniteLoss
from training.metrics.evaluation import validate
from training.signals import Interruption
from training.storage import release

STEPS_BETWEEN_READS = {"cuda": 16}
"""By kind of device, 1 of others: a GPU would stand still until the host has read its numbers and sent a new step."""
DROPOUT_STREAM = 2
"""Separates these draws from others that are made from a seed, an epoch and a number."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The images of one step of the optimizer: --accumulate batches, of each the part of this process."""

    epoch: int
    step: int
    parts: Sequence[Sequence[Tensor]]
    images: int
    """Number of images of all processes together."""


def fit(model: nn.Sequential, dataset: Dataset, context: RunContext, writer: SummaryWriter | None) -> list[Epoch]:
    """Train, and leave `checkpoints/last.pt`, the one before it, and `best.pt`, the best by --best-by on validation.

    `dataset` is what the part that learns sees: images, or with --freeze the features that the body makes of them.
    Continues from `last.pt` if it exists. Only the process that has a `writer` writes. Raises NonFiniteLoss,
    CheckpointRefused, Interrupted.
    """
    config, group, interruption = context.config, context.group, context.interruption
    train, classes = dataset.splits["train"], len(dataset.classes)
    checkpoints = CheckpointFolder.of(context)
    training_set = TrainingSet(images=dataset.images, labels=dataset.labels, indices=train)
    batches = Batches(training_set, config, context.device, group)
    objective = Objective.of(config, dataset.labels[train], classes, model, batches)
    record = replace(history.read(config.run) or history.begin(model, context, len(batches)), diverged=None)
    state = TrainState.start(model, config, objective, len(batches), group)
    progress = checkpoints.restore(state)
    if writer is not None:
        history.write(config.run, replace(record, epochs=progress.history))

    def save_within_epoch() -> None:
        release(dataset.images)  # writing a checkpoint takes memory, too
        checkpoints.write(state, progress)

    interval = CheckpointInterval(save_within_epoch)
    with batches:
        while not progress.ended(config):
            stopped = False
            try:
                with interruption.deferred():
                    stopped = run_epoch(state, batches, progress, interruption, interval)
                if stopped:
                    raise Interrupted(interruption.number or signal.SIGTERM)
                validation, ranked = validate(state.average.model, dataset, config, group)
            except Interrupted:
                with interruption.deferred():
                    # Steps end in all processes alike; validation, which may take long, in this one alone.
                    (checkpoints.save if stopped else checkpoints.write)(state, progress)
                raise
            with interruption.deferred():  # TensorBoard's queue, interrupted, could not be closed
                line = progress.close_epoch(validation, ranked, config, float(state.schedule.get_last_lr()[-1]))
                print(line.line(config), flush=True)
                if writer is not None:
                    tensorboard.write_epoch(writer, line, validation, state, dataset)
                checkpoints.save(state, progress, best=line.best)
                if writer is not None:
                    history.write(config.run, replace(record, epochs=progress.history))
    if config.best_epoch is None and progress.epoch < config.epochs:
        print(f"stopped early: no better {config.best_by} on the validation split in {config.patience} epochs")
    return progress.history


def run_epoch(
    state: TrainState,
    batches: Batches,
    progress: RunProgress,
    interruption: Interruption,
    interval: CheckpointInterval | None = None,
) -> bool:
    """One pass over the training images, or the rest of it; True when it was left early because of a signal.

    All processes stop after the same step, whichever of them received the signal. A GPU is not waited for but every
    few steps: then its numbers are read, a checkpoint may be due, and a signal is seen. Raises NonFiniteLoss.
    """
    epoch, first = progress.epoch, progress.step
    steps_between_reads = STEPS_BETWEEN_READS.get(state.objective.class_weights.device.type, 1)
    set_modes(state, frozen=epoch < state.config.freeze_epochs)
    with tqdm(
        desc=f"epoch {epoch + 1}", initial=first, total=len(batches), unit=" steps", disable=None, leave=False
    ) as bar:
        started, results = time.perf_counter(), []
        for step, parts in enumerate(batches.epoch(epoch, first), first):
            batch = StepBatch(epoch=epoch, step=step, parts=parts, images=len(parts) * batches.size)
            results.append(train_step(state, batch))
            if len(results) < steps_between_reads and step + 1 < len(batches):
                continue
            try:
                progress.add_steps(results, state.group)  # waits for the device
            except NonFiniteLoss as error:
                error.images = batches.images(epoch, error.step)
                raise
            now = time.perf_counter()
            progress.seconds += now - started
            bar.set_postfix_str(str(progress), refresh=False)
            bar.update(len(results))
            started, results = now, []
            if interval is not None:
                interval.save_if_due()
            if state.group.any(interruption.number is not None):
                return True
    return False


def set_modes(state: TrainState, *, frozen: bool) -> None:
    """All layers as they train; frozen ones, all but the last, as they predict and without gradients.

    Without a learning rate, the running statistics of batch normalisation would still follow the batches, and the
    optimizer's averages gradients that come from a last layer which has learned nothing yet.
    """
    state.model.train()
    for layer in [*state.model.children()][:-1] if frozen else ():
        layer.eval()
    for parameter in optimizer.of_body(state.optimizer):
        parameter.requires_grad_(not frozen)


def train_step(state: TrainState, batch: StepBatch) -> StepResult:
    """Forward, backward and one step of the optimizer; nothing here waits for a GPU."""
    config, device = state.config, state.objective.class_weights.device
    frozen = batch.epoch < config.freeze_epochs
    torch.manual_seed(dropout_seed(config.seed, batch.epoch, batch.step, state.group.rank))
    state.optimizer.zero_grad()
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    for part, images_and_labels in enumerate(batch.parts):
        with parallel.gradient_sync(state.parallel, enabled=part + 1 == len(batch.parts) and not frozen):
            loss, hits = state.objective(state.parallel, images_and_labels, batch.epoch, batch.step, part)
            # In the mean of the processes' gradients, every image of the step has the same weight.
            state.scaler.scale(loss * (state.group.size / batch.images)).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
        correct += hits
    if frozen:  # the wrapper of several processes exchanges all gradients or none
        parallel.average_gradients(state.model, state.group)
    state.scaler.unscale_(state.optimizer)
    norm = optimizer.clip(state.model, config.clip_norm)
    state.scaler.step(state.optimizer)  # leaves out a step whose gradients overflowed, and then scales less
    state.scaler.update()
    state.schedule.step()
    parallel.average_statistics(state.model, state.group)
    state.average.update(state.model)
    return StepResult(step=batch.step, images=batch.images, measured=torch.stack([loss_sum, correct, norm.detach()]))


def dropout_seed(*key: int) -> int:
    """The seed of dropout in one step, so that a checkpoint need not hold the state of a generator.

    `key` is seed, epoch, step and process: each part of a batch has its own draws.
    """
    return int(np.random.SeedSequence((DROPOUT_STREAM, *key)).generate_state(1, np.uint64)[0])
