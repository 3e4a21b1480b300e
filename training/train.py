"""The main job: data, model, loop; then evaluation, export with its proof, report. Read it from top to bottom."""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from traceback import clear_frames

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from serving.contract.card import ModelCard
from training import failures
from training.data.dataset import Dataset, digest_of_test, load_dataset
from training.device import find_device, full_float32, training_dtype
from training.distributed import ALONE, Group
from training.engine import checkpoint, history, parallel, runs
from training.engine.checkpoint import CheckpointFolder
from training.engine.loop import fit
from training.engine.memory import fitting_batch
from training.engine.progress import Epoch
from training.engine.train_state import RunContext
from training.engine.transfer import inherit, transfer
from training.errors import NonFiniteLoss
from training.export import provenance
from training.export.card import build_card
from training.export.features import with_features
from training.export.parity import Evaluated
from training.export.publication import export
from training.folds import final
from training.metrics import costs, operating_points, slices
from training.metrics.evaluation import Evaluation, evaluate_best
from training.models import backbones, networks, weights
from training.models.initialization import initialize
from training.models.normalization import normalization
from training.models.weights import Weights
from training.options.choices import Symmetry
from training.options.config import TrainConfig, default_name
from training.options.settled import Processes, SettledConfig, one_sided, settle
from training.promotion import floors, log, outcome
from training.promotion.eight_bits import with_eight_bits
from training.report import tensorboard
from training.report.audit import audit_facts, audit_json, audit_lines
from training.report.looks import look_of_run
from training.report.run import write_report
from training.report.run_facts import ReportInput
from training.signals import Interruption
from training.storage import digest, write_atomically

IMAGES_NAMED = 5
"""Number of images that are named of the step whose loss is not finite."""


def train(config: TrainConfig, interruption: Interruption | None = None, group: Group = ALONE) -> Path:
    """Run the main job and return the run's folder; `runs/latest` moves to it only after the export's proof.

    It does not where the rule of --promote is not kept, which is no error.

    With --resume it continues where the run stopped, and does nothing when the run is finished. Every process of a
    group must call it; the first one writes. Raises ConfigError, DataError, CheckpointRefused, DeviceMissing,
    NonFiniteLoss, OutOfMemory, DeviceFailed, WorkerLost, ProcessLost, ExportRefused, OSError, Interrupted.
    """
    name = group.share(lambda: config.name or default_name(config.model))
    config, run = replace(config, name=name), config.out / name
    device = find_device(config.device, group)
    folder = runs.opened(run, resume=config.resume is not None) if group.first else nullcontext()
    arithmetic = full_float32() if config.precision == "float32" else nullcontext()
    with failures.explain_errors(run, device), folder, arithmetic:
        if group.share(lambda: ready(run, config)):
            print(f"{run} is finished: there is nothing to resume")
            return run
        is_new = group.share(lambda: not (run / runs.CONFIG).exists())
        try:
            context = load(config, device, group, interruption or Interruption())
            model = start(context)
        except BaseException:
            if is_new and group.first:
                shutil.rmtree(run, ignore_errors=True)  # the run has no result yet, and its name is free again
            raise
        announce(context, model)
        with SummaryWriter(run / "tensorboard") if group.first else nullcontext() as writer:
            if writer is not None and is_new:
                tensorboard.write_augmented(writer, context.config, context.dataset)
            try:
                dataset = with_frozen_features(model, context) if config.freeze else context.dataset
                epochs = fit(model, dataset, context, writer)
                if writer is not None:
                    conclude(model, dataset, context, epochs, writer)
            except NonFiniteLoss as error:
                record_divergence(error, context)
                raise
            except (MemoryError, RuntimeError) as error:
                if failures.is_short_of_memory(error):
                    clear_frames(error.__traceback__)  # they hold what the failed step computed
                    if size := fitting_batch(model, context):
                        error.add_note(f"--batch-size {size} fits: it was tried")
                raise
        group.meet()
    return run


def ready(run: Path, config: TrainConfig) -> bool:
    """Whether the run is finished already; if not, that its demands are understood and its promotion can be logged.

    Raises ConfigError, OSError.
    """
    if outcome.finished(run):
        return True
    for text in config.floor:
        floors.parse(text)
    operating_points.parse_all(config.operate)
    if config.costs is not None:
        costs.table(config.costs)
    if config.promote != "never":
        log.check(config.out)
    return False


def load(config: TrainConfig, device: torch.device, group: Group, interruption: Interruption) -> RunContext:
    """Read the weights and the data, and decide by them the options that were left open.

    Raises ConfigError, DataError, WeightsMissing, CheckpointRefused.
    """
    if not runs.has_checkpoint(config.out / (config.name or "")):
        config = inherit(config)
    config = backbones.check(config)
    found = find_weights(config, group)  # before the data, which takes longer to read
    dataset = load_dataset(config)
    if dataset.sizing.reason:
        print(f"auto   {dataset.sizing.model} ({dataset.sizing.reason})")
    config = replace(config, model=dataset.sizing.model, image_size=dataset.sizing.side)
    found = found or find_weights(config, group)
    settled = group.share(lambda: decide(config, dataset, found, group))
    return RunContext(
        config=settled,
        dataset=dataset,
        normalization=normalization(settled, dataset.images, dataset.splits["train"]),
        weights=found,
        device=device,
        group=group,
        interruption=interruption,
    )


def find_weights(config: TrainConfig, group: Group) -> Weights | None:
    """The pretrained weights to start from.

    None without any, before the model is known, for a run that has a checkpoint, and in all processes but the first,
    whose weights the others receive. Raises WeightsMissing, CheckpointRefused.
    """
    started = config.model == "auto" or not config.pretrained or runs.has_checkpoint(config.out / (config.name or ""))
    return None if started or not group.first else weights.find(config)


def decide(config: TrainConfig, dataset: Dataset, found: Weights | None, group: Group) -> SettledConfig:
    """The settled options; a file of --augment is copied into the run's folder, so that the run can be repeated.

    Raises ConfigError where an option does not fit the data or the number of processes.
    """
    config = final.with_best_epoch(config)
    floors.check_classes(config.floor, dataset.classes)
    slices.slices(dataset, config.slices, dataset.splits["test"])
    operating_points.check_classes(config.operate, dataset.classes, dataset.labels[dataset.splits["val"]], dataset.name)
    settled = settle(
        weights.normalized(config, found) if found else config,
        training_images=len(dataset.splits["train"]),
        classes=dataset.classes,
        has_drop_path=config.fine_tunes and backbones.has_drop_path(config.model),
        processes=Processes(group.size, group.local_size),
    )
    final.check(settled, dataset)
    settled = keep_costs(settled, dataset.classes)
    if config.symmetry is None and config.fine_tunes and not isinstance(settled.augment, Path):
        print(f"auto   --symmetry {settled.symmetry} ({_why(settled.symmetry, dataset.classes)})")
    if not isinstance(settled.augment, Path):
        return settled
    from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

    pipeline.check(settled.augment, settled.image_size, settled.channels)
    kept = settled.run / f"augment{settled.augment.suffix}"
    if settled.augment != kept:  # they are equal when the run resumes
        shutil.copyfile(settled.augment, kept)
    return replace(settled, augment=kept)


def keep_costs(config: SettledConfig, classes: Sequence[str]) -> SettledConfig:
    """Check the file of --costs, and copy it into the run's folder. Raises ConfigError."""
    if config.costs is None:
        return config
    matrix, kept = costs.read(config.costs, classes), config.run / "costs.csv"
    costs.write(kept, matrix, classes)
    return replace(config, costs=kept)


def _why(symmetry: Symmetry, classes: Sequence[str]) -> str:
    if symmetry == "none":
        return f"a mirror may change what class {one_sided(classes)!r} means"
    return "left and right are swapped at random; none, where that changes a label"


def start(context: RunContext) -> nn.Sequential:
    """The network before its first step, on the device of the run.

    Weights of others are not read again for a run that has a checkpoint. Raises CheckpointRefused.
    """
    config, dataset = context.config, context.dataset
    torch.manual_seed(config.seed)
    model = networks.build(config, dataset.preprocessing, context.normalization, len(dataset.classes))
    initialize(model, config.init, scale=config.init_scale, zero_biases=config.zero_biases)
    if config.init_from is not None and not runs.has_checkpoint(config.run):
        settings = networks.settings(config, dataset.preprocessing, context.normalization, dataset.classes)
        print(transfer(model, settings, config.init_from))
    if context.weights is not None:
        print(weights.load(model, context.weights, config))
    parallel.share_weights(model, context.group)  # with --freeze nothing else would share the body's
    return model.to(context.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def with_frozen_features(model: nn.Sequential, context: RunContext) -> Dataset:
    """The features that the body makes of all images. Raises CheckpointRefused."""
    CheckpointFolder.of(context).restore_weights(model)  # the body's weights decide the features
    return with_features(context.dataset, networks.features_and_head(model)[0], context.group)


def announce(context: RunContext, model: nn.Module) -> None:
    """Write the options and the audit into the run's folder, and print what is about to be trained."""
    config, audited = context.config, audit_facts(context.dataset.audit)
    if context.group.first:
        if not (config.run / runs.CONFIG).exists():
            write_atomically(config.run / runs.CONFIG, lambda file: file.write(config.to_yaml().encode()))
        (config.run / "audit.json").write_text(audit_json(audited), encoding="utf-8")
    print(describe(context, model))
    print(audit_lines(audited))


def describe(context: RunContext, model: nn.Module) -> str:
    """The data, the model and the device of a run, in three lines."""
    config, dataset, device, group = context.config, context.dataset, context.device, context.group
    sizes = ", ".join(f"{split} {len(indices):,}" for split, indices in dataset.splits.items())
    made = dataset.preprocessing
    together = f" in each of {group.size} processes" if group.size > 1 else ""
    arithmetic = str(training_dtype(config, model)).removeprefix("torch.")
    return (
        f"data   {dataset.name}: {len(dataset.keys):,} images, {len(dataset.classes)} classes ({sizes})\n"
        f"model  {config.model}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters, "
        f"images of {made.height} x {made.width} x {made.channels}\n"
        f"device {device.type}, {arithmetic}, {torch.get_num_threads()} threads{together}"
    )


def record_divergence(error: NonFiniteLoss, context: RunContext) -> None:
    """Name images of the step whose loss is not finite, and record in the history that the run diverged."""
    if error.images:
        named = ", ".join(context.dataset.keys[image] for image in error.images[:IMAGES_NAMED])
        error.add_note(f"of that step's {len(error.images)} images the first are {named}")
    if context.group.first:
        history.mark_diverged(context.config.run, str(error))


def conclude(
    model: nn.Sequential, dataset: Dataset, context: RunContext, epochs: list[Epoch], writer: SummaryWriter
) -> None:
    """Evaluate, judge, export and report the best epoch; then `latest` may move to it.

    Raises ExportRefused, OSError.
    """
    run = context.config.run
    model.load_state_dict(checkpoint.load(run / "checkpoints" / "best.pt", context.device)["model"])
    if context.config.from_folds is None:
        evaluation = evaluate_best(model, dataset, context.config)
    else:
        learner = networks.learning_part(model, context.config)
        evaluation = final.evaluate_out_of_fold(model, learner, dataset, context.config)
    judge = outcome.run_judge(context, evaluation)
    judgement = judge(evaluation.probabilities["test"], evaluation.intervals) if judge else None
    certificate = judgement.certificate if judgement else None
    card = build_card(model, context, evaluation, certificate, final.statement(context.config))
    report_input = export_model(model, context, evaluation, card, epochs)
    report_input = with_eight_bits(report_input, judge)
    report_input = replace(report_input, promotion=outcome.not_settled(run, context.config.promote, judgement))
    tensorboard.write_results(writer, report_input)
    writer.flush()
    outcome.leave_pending(run, context.config.promote, judgement)
    write_report(report_input)  # last, because a run with a report is finished
    outcome.settle(run)


def export_model(
    model: nn.Sequential, context: RunContext, evaluation: Evaluation, card: ModelCard, epochs: list[Epoch]
) -> ReportInput:
    """Write `model.onnx` and prove that it predicts what the model predicts. Raises ExportRefused."""
    config, dataset = context.config, context.dataset
    unknown = evaluation.unknown
    evaluated = Evaluated(
        probabilities=evaluation.probabilities["test"] if evaluation.own is None else evaluation.own,
        detector=unknown.detector if unknown else None,
        novelty=unknown.test if unknown else None,
    )
    parity = export(model, card, dataset, evaluated, config.run / "model.onnx")
    return ReportInput(
        config=config,
        card=card,
        dataset=dataset,
        history=epochs,
        scores=evaluation.scores,
        intervals=evaluation.intervals,
        uncalibrated=evaluation.uncalibrated,
        validation=evaluation.probabilities["val"],
        out_of_fold=None if evaluation.own is None else evaluation.probabilities["test"],
        parity=parity,
        quantized=None,
        no_int8=None,
        leak_free=evaluation.leak_free,
        strange=unknown.strange if unknown else {},
        looks=look_of_run(
            config.run,
            digest_of_test(dataset),
            len(dataset.splits["test"]),
            digest(config.run / "checkpoints" / "best.pt"),
        ),
        environment=provenance.environment(context.device, context.group.size),
        promotion=outcome.not_settled(config.run, config.promote, None),
    )
