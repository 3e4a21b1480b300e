"""The main job: data, model, loop; then scores, export with its proof, report. Read it from top to bottom."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from serving.contract import CONTRACT_VERSION, Calibration, ModelCard, Normalization
from training import (
    activations,
    audit_report,
    augment,
    balance,
    board,
    calibration,
    checkpoint,
    data,
    export,
    history,
    models,
    provenance,
    quantization,
    report,
    runs,
    scores,
)
from training.batches import Batches
from training.cache import release
from training.checkpoint import CheckpointRefused, Saved
from training.config import ConfigError, TrainConfig, default_name
from training.data import Dataset
from training.history import History
from training.initialization import initialize
from training.interruption import Interrupted, Interruption
from training.intervals import bootstrap, card_scores
from training.learner import Learner
from training.mixing import Mixing
from training.optimizer import clip
from training.progress import Epoch, Progress
from training.report import Findings
from training.scores import Scores
from training.splits import SPLITS, DataError, Split
from training.transfer import transfer

TRAINING_IMAGES_SCORED = 5_000
"""For the gap between training and validation, this many training images are scored as they are, not augmented."""
PROBED = 64
"""Training images on which the untrained network's signal and gradients are measured."""


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number: the weights are lost, the last checkpoint is not."""


class DeviceMissing(RuntimeError):
    """The device asked for is not there; training never falls back silently."""


def train(config: TrainConfig, interruption: Interruption | None = None) -> Path:
    """Run the main job and return the run's folder; `runs/latest` points to it only once the export proved itself.

    With --resume it goes on where the run stopped, and does nothing for one that is finished. Raises ConfigError,
    DataError, CheckpointRefused, DeviceMissing, NonFiniteLoss, ExportRefused, OSError, Interrupted.
    """
    config = replace(config, name=config.name or default_name(config.model))
    device = find_device(config.device)
    with runs.opened(config.run, go_on=config.resume is not None):
        if runs.is_finished(config.run):
            print(f"{config.run} is finished: there is nothing to go on with")
        else:
            try:
                make(config, device, interruption or Interruption())
            except NonFiniteLoss as error:
                history.diverged(config.run, str(error))
                raise
            runs.publish(config.run)
    return config.run


def make(config: TrainConfig, device: torch.device, interruption: Interruption) -> None:
    """Data, model, loop, scores, export with its proof, report, in the run's folder."""
    is_new = not (config.run / runs.CONFIG).exists()
    try:
        dataset = data.load(config)
        trained_on = dataset.splits["train"]
        config = config.settled(image_size=dataset.preprocessing.height, training_images=len(trained_on))
        config = keep_pipeline(config)
        normalization = models.normalization(config, dataset.images, trained_on)
        settings = models.settings(config, dataset.preprocessing, normalization, dataset.classes)
        model = start(config, settings, dataset, normalization)
    except (ConfigError, DataError, CheckpointRefused, OSError):
        if is_new:
            shutil.rmtree(config.run)  # nothing has been done in it, and its name is free again
        raise
    if is_new:
        checkpoint.write_atomically(config.run / runs.CONFIG, lambda file: file.write(config.to_yaml().encode()))
    audited = audit_report.facts(dataset.audit)
    (config.run / "audit.json").write_text(audit_report.to_json(audited))
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(describe(config, dataset, model, device))
    print(audit_report.console(audited))

    best = config.run / "checkpoints" / "best.pt"
    with SummaryWriter(config.run / "tensorboard") as writer:
        board.augmented(writer, config, dataset)
        epochs = fit(model, settings, dataset, config, device, writer, interruption)
        model.load_state_dict(checkpoint.load(best, device)["model"])
        uncalibrated = score(model, dataset, "test")
        calibrated = calibrate(model, dataset, config)
        scored = {split: score(model, dataset, split) for split in SPLITS}
        test = dataset.splits["test"]
        answers = models.predict(model, dataset.images, test)
        intervals = bootstrap(dataset.labels[test], answers, dataset.components[test], dataset.classes)
        card = ModelCard(
            contract_version=CONTRACT_VERSION,
            name=config.run.name,
            version=checkpoint.digest(best)[:12],
            classes=dataset.classes,
            preprocessing=dataset.preprocessing,
            normalization=normalization,
            calibration=calibrated,
            goldens=export.goldens(model, dataset),
            scores=card_scores(scored["test"], intervals),
            provenance=provenance.collect(config, dataset, best),
        )
        parity = export.export(model, card, dataset, config.run / "model.onnx")
        quantized = None
        if config.quantize == "int8":
            quantized = quantization.export(config.run / "model.onnx", config.run / "model.int8.onnx", dataset)
        found = Findings(
            config=config,
            card=card,
            dataset=dataset,
            history=epochs,
            scores=scored,
            intervals=intervals,
            uncalibrated=uncalibrated,
            parity=parity,
            quantized=quantized,
            environment=provenance.environment(device),
        )
        report.write(found)
        board.results(writer, found, models.predict(model, dataset.images, dataset.splits["val"]))


def start(
    config: TrainConfig, settings: dict[str, JsonValue], dataset: Dataset, normalization: Normalization
) -> nn.Sequential:
    """The network before its first step. Raises CheckpointRefused."""
    torch.manual_seed(config.seed)
    model = models.build(config, dataset.preprocessing, normalization, len(dataset.classes))
    initialize(model, config.init)
    if config.init_from is not None:
        print(transfer(model, settings, config.init_from))
    if config.freeze:
        models.freeze(model)
    return model


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
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps_an_epoch=len(batches),
        at_start=activations.at_start(model, dataset.images[probed], dataset.labels[probed]),
        epochs=[],
    )
    history.write(config.run, seen)
    saved = Saved(folder=config.run / "checkpoints", identity={"settings": settings, "data": dataset.digest})
    progress = saved.restore(learner, device)

    def after_step() -> None:
        if interruption.number is not None:
            saved.save(learner, progress)
            raise Interrupted(interruption.number)

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


def calibrate(model: nn.Sequential, dataset: Dataset, config: TrainConfig) -> Calibration:
    """Fit temperature and prediction sets on the validation split; the temperature becomes the model's last layer."""
    val = dataset.splits["val"]
    calibrated = calibration.fit(
        dataset.labels[val], models.logits(model, dataset.images, val), config.confidence_level
    )
    if calibrated.threshold is None:
        print(f"warning: {len(val)} validation images are too few for prediction sets at {config.confidence_level:.0%}")
    model.append(models.Temperature(calibrated.temperature).to(next(model.parameters()).device))
    return calibrated


def score(model: nn.Module, dataset: Dataset, split: Split) -> Scores:
    """Scores of one split; of the training split, those of its first 5,000 images. Raises NonFiniteLoss."""
    indices = dataset.splits[split][: TRAINING_IMAGES_SCORED if split == "train" else None]
    probabilities = models.predict(model, dataset.images, indices)
    if not np.isfinite(probabilities).all():
        raise NonFiniteLoss(f"the model gives values that are not finite on the {split} split")
    return scores.score(dataset.labels[indices], probabilities, dataset.classes)


def find_device(name: str) -> torch.device:
    """The device of --device. Raises DeviceMissing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing("--device cuda: torch sees no GPU; --device cpu trains without one")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def uses_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether training computes in bfloat16: when asked to, or where the device has instructions for it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_pipeline(config: TrainConfig) -> TrainConfig:
    """Train by a copy of the --augment file in the run's folder, so that the run can be made again.

    Raises ConfigError when the pipeline does not fit the run's images.
    """
    if not isinstance(config.augment, Path):
        return config
    assert config.image_size is not None
    augment.check(config.augment, config.image_size, config.channels)
    kept = config.run / f"augment{config.augment.suffix}"
    if config.augment != kept:  # it is when the run goes on
        shutil.copyfile(config.augment, kept)
    return replace(config, augment=kept)


def describe(config: TrainConfig, dataset: Dataset, model: nn.Module, device: torch.device) -> str:
    """What is about to be trained on what, in three lines."""
    sizes = ", ".join(f"{split} {len(indices):,}" for split, indices in dataset.splits.items())
    made = dataset.preprocessing
    arithmetic = "bfloat16" if uses_bfloat16(config, device) else "float32"
    return (
        f"data   {dataset.name}: {len(dataset.keys):,} images, {len(dataset.classes)} classes ({sizes})\n"
        f"model  {config.model}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters, "
        f"images of {made.height} x {made.width} x {made.channels}\n"
        f"device {device.type}, {arithmetic}, {torch.get_num_threads()} threads"
    )
