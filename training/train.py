"""The main job: data, model, loop; then scores, export with its proof, report. Read it from top to bottom."""

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from serving.contract import CONTRACT_VERSION, Calibration, ModelCard, Score
from training import audit_report, board, calibration, checkpoint, data, export, models, provenance, report, scores
from training.batches import Batches
from training.config import ConfigError, TrainConfig, default_name
from training.data import Dataset
from training.intervals import bootstrap
from training.report import Epoch, Findings
from training.scores import Scores
from training.splits import SPLITS, DataError, Split

TRAINING_IMAGES_SCORED = 5_000
"""For the gap between training and validation, this many training images are scored as they are, not augmented."""


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number: the weights are lost, the last checkpoint is not."""


class DeviceMissing(RuntimeError):
    """The device asked for is not there; training never falls back silently."""


def train(config: TrainConfig) -> Path:
    """Run the main job and return the run's folder; `runs/latest` points to it only once the export proved itself.

    Raises ConfigError, DataError, DeviceMissing, NonFiniteLoss, ExportRefused, OSError.
    """
    config = replace(config, name=config.name or default_name(config.model))
    device = find_device(config.device)
    open_run(config)
    try:
        dataset = data.load(config)
    except DataError:
        shutil.rmtree(config.run)  # nothing has been done in it, and its name is free again
        raise
    config = config.settled(image_size=dataset.preprocessing.height, training_images=len(dataset.splits["train"]))
    (config.run / "config.yaml").write_text(config.to_yaml())
    audited = audit_report.facts(dataset.audit)
    (config.run / "audit.json").write_text(audit_report.to_json(audited))
    normalization = models.normalization(config, dataset.images[dataset.splits["train"]])
    torch.manual_seed(config.seed)
    model = models.build(config, dataset.preprocessing, normalization, len(dataset.classes))
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(describe(config, dataset, model, device))
    print(audit_report.console(audited))

    best = config.run / "checkpoints" / "best.pt"
    with SummaryWriter(config.run / "tensorboard") as writer:
        history = fit(model, dataset, config, device, writer)
        model.load_state_dict(checkpoint.load(best, device)["model"])
        uncalibrated = score(model, dataset, "test")
        calibrated = calibrate(model, dataset, config)
        scored = {split: score(model, dataset, split) for split in SPLITS}
        test = dataset.splits["test"]
        answers = models.predict(model, dataset.images[test])
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
            scores={
                name: Score(value=value, interval=getattr(intervals, name, None))
                for name, value in scored["test"].headline().items()
            },
            provenance=provenance.collect(config, dataset, best),
        )
        parity = export.export(model, card, dataset, config.run / "model.onnx")
        found = Findings(
            config=config,
            card=card,
            dataset=dataset,
            history=history,
            scores=scored,
            intervals=intervals,
            uncalibrated=uncalibrated,
            parity=parity,
            environment=provenance.environment(device),
        )
        report.write(found)
        board.results(writer, found, models.predict(model, dataset.images[dataset.splits["val"]]))
    publish(config.run)
    return config.run


def fit(
    model: nn.Module, dataset: Dataset, config: TrainConfig, device: torch.device, writer: SummaryWriter
) -> list[Epoch]:
    """Train; leave `checkpoints/last.pt` and `best.pt`, the best by balanced accuracy on the validation split."""
    split = dataset.splits["train"]
    batches = Batches(dataset.images[split], dataset.labels[split], config, pin_memory=device.type == "cuda")
    optimizer = adamw(model, config)
    schedule = LambdaLR(optimizer, warmup_cosine(config, len(batches)))
    history: list[Epoch] = []
    best_rank, best_epoch = (-math.inf, -math.inf), 0
    for epoch in range(config.epochs):
        loss, accuracy, speed = run_epoch(model, batches, epoch, optimizer, schedule, config, device)
        validation = score(model, dataset, "val")
        rank = (validation.balanced_accuracy, -validation.log_loss)
        if is_best := rank > best_rank:
            best_rank, best_epoch = rank, epoch
        history.append(
            Epoch(
                epoch=epoch + 1,
                train_loss=loss,
                train_accuracy=accuracy,
                val_loss=validation.log_loss,
                val_accuracy=validation.accuracy,
                val_balanced_accuracy=validation.balanced_accuracy,
                lr=float(schedule.get_last_lr()[0]),
                images_per_second=speed,
                best=is_best,
            )
        )
        print(history[-1].line(config.epochs))
        board.epoch(writer, history[-1], model)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch,
        }
        checkpoint.save(state, config.run / "checkpoints" / "last.pt")
        if is_best:
            checkpoint.save(state, config.run / "checkpoints" / "best.pt")
        if config.patience is not None and epoch - best_epoch >= config.patience:
            print(f"stopped early: no better validation score in {config.patience} epochs")
            break
    return history


def run_epoch(
    model: nn.Module,
    batches: Batches,
    epoch: int,
    optimizer: Optimizer,
    schedule: LambdaLR,
    config: TrainConfig,
    device: torch.device,
) -> tuple[float, float, float]:
    """One pass over the training images: mean loss, accuracy, images a second. Raises NonFiniteLoss."""
    model.train()
    start, seen, loss_sum, correct = time.perf_counter(), 0, 0.0, 0
    with tqdm(desc=f"epoch {epoch + 1}", total=len(batches), unit=" steps", disable=None, leave=False) as progress:
        for step, (images, labels) in enumerate(batches.epoch(epoch), 1):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device)):
                logits: Tensor = model(images)
                loss = cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            if not math.isfinite(loss_value := loss.item()):
                raise NonFiniteLoss(f"the loss is {loss_value} in epoch {epoch + 1}, step {step}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

            seen += len(labels)
            loss_sum += loss_value * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            speed = seen / (time.perf_counter() - start)
            shown = f"loss {loss_sum / seen:.3f}, accuracy {correct / seen:.1%}, {speed:,.0f} images/s"
            progress.set_postfix_str(shown, refresh=False)
            progress.update()
    return loss_sum / seen, correct / seen, speed


def calibrate(model: nn.Sequential, dataset: Dataset, config: TrainConfig) -> Calibration:
    """Fit temperature and prediction sets on the validation split; the temperature becomes the model's last layer."""
    val = dataset.splits["val"]
    calibrated = calibration.fit(
        dataset.labels[val], models.logits(model, dataset.images[val]), config.confidence_level
    )
    if calibrated.threshold is None:
        print(f"warning: {len(val)} validation images are too few for prediction sets at {config.confidence_level:.0%}")
    model.append(models.Temperature(calibrated.temperature).to(next(model.parameters()).device))
    return calibrated


def score(model: nn.Module, dataset: Dataset, split: Split) -> Scores:
    """Scores of one split; of the training split, those of its first 5,000 images. Raises NonFiniteLoss."""
    indices = dataset.splits[split][: TRAINING_IMAGES_SCORED if split == "train" else None]
    probabilities = models.predict(model, dataset.images[indices])
    if not np.isfinite(probabilities).all():
        raise NonFiniteLoss(f"the model gives values that are not finite on the {split} split")
    return scores.score(dataset.labels[indices], probabilities, dataset.classes)


def adamw(model: nn.Module, config: TrainConfig) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), fused; biases and normalisation layers are not decayed."""
    assert config.lr is not None
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def warmup_cosine(config: TrainConfig, steps_an_epoch: int) -> Callable[[int], float]:
    """The share of --lr in force at a step: a linear rise, then half a cosine to zero (Loshchilov and Hutter 2017)."""
    total = config.epochs * steps_an_epoch
    warmup = min(round(config.warmup_epochs * steps_an_epoch), total // 2)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return share


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


def open_run(config: TrainConfig) -> None:
    """Make the run's folder before anything else, so that a folder that cannot be written to costs no time."""
    try:
        config.run.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"--name {config.name}: there is a run of that name in {config.out}") from error
    (config.run / "checkpoints").mkdir()


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


def publish(run: Path) -> None:
    """Point `latest` beside the run to it, in one step: whoever opens it sees the old model or the new one."""
    link = run.parent / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(run.name)
    link.replace(run.parent / "latest")
