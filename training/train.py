"""The main job: data, model, loop; then scores, export with its proof, report. Read it from top to bottom."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from serving.contract.card import CONTRACT_VERSION, Calibration, ModelCard, Normalization
from training import failures
from training.config import TrainConfig, default_name
from training.data import augmentation
from training.data import dataset as data
from training.data.dataset import Dataset
from training.data.formats import SPLITS
from training.device import find_device, uses_bfloat16
from training.distributed import ALONE, Group
from training.engine import checkpoint, history, runs
from training.engine import tensorboard as board
from training.engine.loop import answer, fit, score
from training.engine.progress import Epoch
from training.engine.transfer import transfer
from training.errors import NonFiniteLoss
from training.export import drift_reference, provenance
from training.export.goldens import goldens
from training.export.publication import export
from training.export.quantization import quantize
from training.metrics import calibration
from training.metrics.bootstrap import bootstrap, card_scores
from training.models import networks
from training.models.initialization import initialize
from training.report import audit as audit_report
from training.report import run as report
from training.report.run import Findings
from training.settled import SettledConfig, settle
from training.signals import Interruption
from training.storage import digest, write_atomically

IMAGES_NAMED = 5
"""Of the step whose loss is not finite."""


def train(config: TrainConfig, interruption: Interruption | None = None, group: Group = ALONE) -> Path:
    """Run the main job and return the run's folder; `runs/latest` points to it only once the export proved itself.

    With --resume it goes on where the run stopped, and does nothing for one that is finished. Every process of a group
    is to call it; the first one writes. Raises ConfigError, DataError, CheckpointRefused, DeviceMissing, NonFiniteLoss,
    OutOfMemory, WorkerLost, ProcessLost, ExportRefused, OSError, Interrupted.
    """
    name = group.share(lambda: config.name or default_name(config.model))
    config, run = replace(config, name=name), config.out / name
    device = find_device(config.device, group)
    folder = runs.opened(run, go_on=config.resume is not None) if group.first else nullcontext()
    with failures.told(run, device), folder:
        if group.share(lambda: runs.is_finished(run)):
            print(f"{run} is finished: there is nothing to go on with")
        else:
            make(config, run, device, group, interruption or Interruption())
    return run


def make(asked: TrainConfig, run: Path, device: torch.device, group: Group, interruption: Interruption) -> None:
    """Data, model and loop in every process; then, in the first, all that comes of the best epoch."""
    is_new = group.share(lambda: not (run / runs.CONFIG).exists())
    try:
        dataset = data.load(asked)
        config = group.share(lambda: decide(asked, dataset, group))
        normalization = networks.normalization(config, dataset.images, dataset.splits["train"])
        settings = networks.settings(config, dataset.preprocessing, normalization, dataset.classes)
        model = start(config, settings, dataset, normalization)
    except BaseException:
        if is_new and group.first:
            shutil.rmtree(run, ignore_errors=True)  # nothing has been done in it, and its name is free again
        raise
    audited = audit_report.facts(dataset.audit)
    if group.first:
        if is_new:
            write_atomically(config.run / runs.CONFIG, lambda file: file.write(config.to_yaml().encode()))
        (config.run / "audit.json").write_text(audit_report.to_json(audited), encoding="utf-8")
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(describe(config, dataset, model, device, group))
    print(audit_report.console(audited))

    with SummaryWriter(config.run / "tensorboard") if group.first else nullcontext() as writer:
        if writer is not None and is_new:
            board.augmented(writer, config, dataset)
        try:
            epochs = fit(model, settings, dataset, config, device, group, writer, interruption)
            if writer is not None:
                conclude(model, normalization, dataset, config, device, group, epochs, writer)
        except NonFiniteLoss as error:
            if error.images:
                named = ", ".join(dataset.keys[image] for image in error.images[:IMAGES_NAMED])
                error.add_note(f"of that step's {len(error.images)} images the first are {named}")
            if group.first:
                history.diverged(config.run, str(error))
            raise
    group.meet()


def conclude(
    model: nn.Sequential,
    normalization: Normalization,
    dataset: Dataset,
    config: SettledConfig,
    device: torch.device,
    group: Group,
    epochs: list[Epoch],
    writer: SummaryWriter,
) -> None:
    """Scores of the best epoch, export with its proof, report; then `latest` points to the run."""
    best = config.run / "checkpoints" / "best.pt"
    model.load_state_dict(checkpoint.load(best, device)["model"])
    uncalibrated = score(dataset, "test", answer(model, dataset, "test"))
    calibrated = calibrate(model, dataset, config)
    answers = {split: answer(model, dataset, split) for split in SPLITS}
    scored = {split: score(dataset, split, answers[split]) for split in SPLITS}
    test = dataset.splits["test"]
    intervals = bootstrap(dataset.labels[test], answers["test"], dataset.components[test], dataset.classes)
    card = ModelCard(
        contract_version=CONTRACT_VERSION,
        name=config.run.name,
        version=digest(best)[:12],
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        normalization=normalization,
        calibration=calibrated,
        goldens=goldens(model, dataset),
        scores=card_scores(scored["test"], intervals),
        reference=drift_reference.of_test_split(dataset, answers["test"]),
        provenance=provenance.collect(config, dataset, best),
    )
    parity = export(model, card, dataset, config.run / "model.onnx")
    quantized = None
    if config.quantize == "int8":
        quantized = quantize(config.run / "model.onnx", config.run / "model.int8.onnx", dataset)
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
        environment=provenance.environment(device, group.size),
    )
    board.results(writer, found, answers["val"])
    writer.flush()
    report.write(found)  # last, because a run that has one is finished
    runs.publish(config.run)


def start(
    config: SettledConfig, settings: dict[str, JsonValue], dataset: Dataset, normalization: Normalization
) -> nn.Sequential:
    """The network before its first step. Raises CheckpointRefused."""
    torch.manual_seed(config.seed)
    model = networks.build(config, dataset.preprocessing, normalization, len(dataset.classes))
    initialize(model, config.init, scale=config.init_scale, zero_biases=config.zero_biases)
    if config.init_from is not None:
        print(transfer(model, settings, config.init_from))
    if config.freeze:
        networks.freeze(model)
    return model


def calibrate(model: nn.Sequential, dataset: Dataset, config: SettledConfig) -> Calibration:
    """Fit temperature and prediction sets on the validation split; the temperature becomes the model's last layer."""
    val = dataset.splits["val"]
    calibrated = calibration.fit(
        dataset.labels[val], networks.logits(model, dataset.images, val), config.confidence_level
    )
    if calibrated.threshold is None:
        print(f"warning: {len(val)} validation images are too few for prediction sets at {config.confidence_level:.0%}")
    model.append(networks.Temperature(calibrated.temperature).to(next(model.parameters()).device))
    return calibrated


def decide(config: TrainConfig, dataset: Dataset, group: Group) -> SettledConfig:
    """Decide what was left open; raises ConfigError where that does not fit the data or the number of processes."""
    settled = settle(
        config,
        image_size=dataset.preprocessing.height,
        training_images=len(dataset.splits["train"]),
        processes=group.size,
        on_this_machine=group.local_size,
    )
    return keep_pipeline(settled)


def keep_pipeline(config: SettledConfig) -> SettledConfig:
    """Train by a copy of the --augment file in the run's folder, so that the run can be made again.

    Raises ConfigError when the pipeline does not fit the run's images.
    """
    if not isinstance(config.augment, Path):
        return config
    augmentation.check(config.augment, config.image_size, config.channels)
    kept = config.run / f"augment{config.augment.suffix}"
    if config.augment != kept:  # it is when the run goes on
        shutil.copyfile(config.augment, kept)
    return replace(config, augment=kept)


def describe(config: SettledConfig, dataset: Dataset, model: nn.Module, device: torch.device, group: Group) -> str:
    """What is about to be trained on what, in three lines."""
    sizes = ", ".join(f"{split} {len(indices):,}" for split, indices in dataset.splits.items())
    made = dataset.preprocessing
    together = f" in each of {group.size} processes" if group.size > 1 else ""
    arithmetic = "bfloat16" if uses_bfloat16(config, device) else "float32"
    return (
        f"data   {dataset.name}: {len(dataset.keys):,} images, {len(dataset.classes)} classes ({sizes})\n"
        f"model  {config.model}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters, "
        f"images of {made.height} x {made.width} x {made.channels}\n"
        f"device {device.type}, {arithmetic}, {torch.get_num_threads()} threads{together}"
    )
