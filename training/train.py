"""The main job: data, model, loop; then evaluation, export with its proof, report. Read it from top to bottom."""

import gc
import shutil
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from traceback import clear_frames

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from serving.contract.files.names import MODEL
from training import failures
from training.data.dataset import Dataset, digest_of_test, load_dataset
from training.device import find_device, full_float32, sound_kernels, training_dtype
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
from training.export.candidate import export
from training.export.card import build_card
from training.export.features import with_features
from training.export.measures.views import measure_views
from training.export.onnx import check_exports
from training.export.parity import ExpectedOutputs
from training.folds import final
from training.metrics.evaluation import Evaluation, evaluate_best, evaluate_plain
from training.models import backbones, networks, views, weights
from training.models.initialization import initialize
from training.models.normalization import normalization
from training.models.weights import Weights
from training.options.config import TrainConfig, default_name
from training.options.settled import SettledConfig
from training.promotion import outcome
from training.promotion.eight_bits import eight_bits
from training.report import tensorboard
from training.report.audit import audit_facts, audit_json, audit_lines
from training.report.looks import look_of_run
from training.report.run import write_report
from training.report.run_facts import ReportInput
from training.settling import decide_options
from training.signals import Interruption
from training.storage import digest, write_atomically
from training.validation import check_options, check_source


def train(config: TrainConfig, interruption: Interruption | None = None, group: Group = ALONE) -> Path:
    """Run the main job and return the run's folder; `runs/latest` moves to it only after the export's proof.

    It does not where the rule of --promote is not kept, which is no error.

    With --resume it continues where the run stopped, and does nothing when the run is finished. Every process of a
    group must call it; the first one writes. Raises ConfigError, DataError, CheckpointRefused, DeviceMissing,
    NonFiniteLoss, OutOfMemory, DeviceFailed, WorkerLost, ProcessLost, ExportRefused, OSError, Interrupted.
    """
    name = group.broadcast(lambda: config.name or default_name(config.model))
    config, run = replace(config, name=name), config.out / name
    device = find_device(config.device, group)
    folder = runs.opened(run, resume=config.resume is not None) if group.first else nullcontext()
    arithmetic = full_float32() if config.precision == "float32" else nullcontext()
    with failures.explain_errors(run, device), folder, arithmetic, ExitStack() as until_the_end:
        if group.broadcast(lambda: outcome.finish(run, config.promote)):
            print(f"{run} is finished: there is nothing to resume")
            return run
        group.broadcast(lambda: check(config))
        is_new = group.broadcast(lambda: not (run / runs.CONFIG).exists())
        try:
            context = load(config, device, group, interruption or Interruption())
            model = start(context)
        except BaseException:
            if is_new and group.first:
                shutil.rmtree(run, ignore_errors=True)  # the run has no result yet, and its name is free again
            raise
        announce(context, model)
        until_the_end.enter_context(sound_kernels(model))
        with SummaryWriter(run / "tensorboard") if group.first else nullcontext() as writer:
            if writer is not None and is_new:
                tensorboard.write_augmented(writer, context.config, context.dataset)
            try:
                dataset = with_frozen_features(model, context) if config.freeze else context.dataset
                epochs = fit(model, dataset, context, writer)
                if writer is not None:
                    conclude(model, dataset, context, epochs, writer)
            except NonFiniteLoss as error:
                history.mark_diverged(error, context)
                raise
            except (MemoryError, RuntimeError) as error:
                if failures.is_short_of_memory(error):
                    clear_frames(error.__traceback__)  # they hold what the failed step computed
                    if size := fitting_batch(model, context):
                        error.add_note(f"--batch-size {size} fits: it was tried")
                raise
        group.barrier()
    return run


def check(config: TrainConfig) -> None:
    """Refuse, before the weights and the data are read, what needs neither. Raises ConfigError, OSError."""
    check_options(config)
    if config.from_folds is not None:
        final.runs_of(config.from_folds)


def load(config: TrainConfig, device: torch.device, group: Group, interruption: Interruption) -> RunContext:
    """Read the weights and the data, and decide by them the options that were left open.

    Raises ConfigError, DataError, WeightsMissing, CheckpointRefused.
    """
    resumes = runs.has_checkpoint(config.out / (config.name or ""))
    config = backbones.check(config if resumes else inherit(config))
    # The checkpoint has the weights of a run that resumes. Before the data, which takes longer to read.
    pretrained = None if resumes else find_weights(config, group)
    dataset = load_dataset(config, lambda source: group.broadcast(lambda: check_source(config, source)))
    if dataset.sizing.reason:
        print(f"auto   {dataset.sizing.model} ({dataset.sizing.reason})")
    config = replace(config, model=dataset.sizing.model, image_size=dataset.sizing.side)
    if pretrained is None and not resumes:
        pretrained = find_weights(config, group)  # of the model that `auto` has become
    settled = group.broadcast(lambda: decide_options(config, dataset, pretrained, group))
    return RunContext(
        config=settled,
        dataset=dataset,
        normalization=normalization(settled, dataset.images, dataset.splits["train"]),
        weights=pretrained,
        device=device,
        group=group,
        interruption=interruption,
        revision=provenance.source_revision(),
    )


def find_weights(config: TrainConfig, group: Group) -> Weights | None:
    """The pretrained weights to start from; None without any, and while the model is not known.

    None in all processes but the first, from which the others receive them. Raises WeightsMissing, CheckpointRefused.
    """
    if not group.first or not config.pretrained or config.model == "auto":
        return None
    return weights.find(config)


def start(context: RunContext) -> nn.Sequential:
    """The network before its first step, on the device of the run.

    Weights of others are not read again for a run that has a checkpoint. Raises ConfigError, CheckpointRefused.
    """
    config, dataset = context.config, context.dataset
    torch.manual_seed(config.seed)
    model = networks.build(config, dataset.preprocessing, context.normalization, len(dataset.classes))
    initialize(model, config.init, scale=config.init_scale, zero_biases=config.zero_biases)
    resumes = runs.has_checkpoint(config.run)
    if not config.own_network and not resumes:
        size = dataset.preprocessing
        shape = (size.height, size.width, size.channels)
        context.group.broadcast(lambda: check_exports(model, config.model, shape))
    if config.init_from is not None and not resumes:
        settings = networks.settings(config, dataset.preprocessing, context.normalization, dataset.classes)
        print(transfer(model, settings, config.init_from))
    if context.weights is not None:
        print(weights.load(model, context.weights, config))
    parallel.broadcast_weights(model, context.group)  # with --freeze nothing else would share the body's
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
        (config.run / runs.AUDIT).write_text(audit_json(audited), encoding="utf-8")
    print(describe(context, model))
    print(audit_lines(audited))


def describe(context: RunContext, model: nn.Module) -> str:
    """The data, the model and the device of a run, in three lines."""
    config, dataset, device, group = context.config, context.dataset, context.device, context.group
    sizes = ", ".join(f"{split} {len(indices):,}" for split, indices in dataset.splits.items())
    preprocessing = dataset.preprocessing
    together = f" in each of {group.size} processes" if group.size > 1 else ""
    arithmetic = str(training_dtype(config, model)).removeprefix("torch.")
    return (
        f"data   {dataset.name}: {len(dataset.keys):,} images, {len(dataset.classes)} classes ({sizes})\n"
        f"model  {config.model}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters, "
        f"images of {preprocessing.height} x {preprocessing.width} x {preprocessing.channels}\n"
        f"device {device.type}, {arithmetic}, {torch.get_num_threads()} threads{together}"
    )


def conclude(
    model: nn.Sequential, dataset: Dataset, context: RunContext, epochs: list[Epoch], writer: SummaryWriter
) -> None:
    """Evaluate, judge, export and report the best epoch; then `latest` may move to it.

    Raises ExportRefused, OSError.
    """
    config, images, run = context.config, context.dataset, context.config.run
    evaluation = evaluate_best_epoch(model, dataset, context)
    judge = outcome.run_judge(context, evaluation)
    judgement = judge(evaluation.probabilities["test"], evaluation.intervals) if judge else None
    certificate = judgement.certificate if judgement else None
    card = build_card(model, context, evaluation, certificate, final.statement(config))
    parity = export(model, card, images, ExpectedOutputs.of(evaluation), run / MODEL)
    measured_views = measure_views(model, evaluation, images, config.views)
    quantized, no_int8 = eight_bits(config, images, judge)
    tested, weights_digest = len(images.splits["test"]), digest(run / runs.BEST)
    report_input = ReportInput(
        config=config,
        card=card,
        dataset=images,
        history=epochs,
        scores=evaluation.scores,
        intervals=evaluation.intervals,
        uncalibrated=evaluation.uncalibrated,
        validation=evaluation.validation,
        out_of_fold=None if evaluation.by_final_model is None else evaluation.probabilities["test"],
        parity=parity,
        views=measured_views,
        quantized=quantized,
        no_int8=no_int8,
        leak_free=evaluation.leak_free,
        blank=evaluation.novelty.blank if evaluation.novelty else {},
        looks=look_of_run(run, digest_of_test(images), tested, weights_digest),
        environment=provenance.environment(context.device, context.group.size),
        promotion=outcome.not_settled(run, config.promote, judgement),
    )
    tensorboard.write_results(writer, report_input)
    writer.flush()
    outcome.leave_pending(run, config.promote, judgement)
    write_report(report_input)  # last, because a run with a report is finished
    outcome.settle(run, config.promote)


def evaluate_best_epoch(model: nn.Sequential, dataset: Dataset, context: RunContext) -> Evaluation:
    """Load the weights of the best epoch, calibrate and score them; of a final model, by the folds' answers."""
    config = context.config
    if context.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # ONNX Runtime allocates beside PyTorch, which keeps what training needed
    model.load_state_dict(checkpoint.load(config.run / runs.BEST, context.device)["model"])
    plain = evaluate_plain(model, dataset, config) if has_gain(config) else None
    dataset = with_views(model, dataset, context)
    if config.from_folds is None:
        return evaluate_best(model, dataset, config, plain)
    return final.evaluate_out_of_fold(model, networks.learning_part(model, config), dataset, config)


def has_gain(config: SettledConfig) -> bool:
    """Whether the test split says what --views gain; for a final model the folds' own reports do."""
    return config.views != "none" and config.from_folds is None


def with_views(model: nn.Sequential, dataset: Dataset, context: RunContext) -> Dataset:
    """Let the trained model answer by the mean over --views; with --freeze the dataset gets the features of these."""
    views.average(model, context.config.views)
    if context.config.views == "none" or not context.config.freeze:
        return dataset
    return with_features(context.dataset, networks.features_and_head(model)[0], ALONE)
