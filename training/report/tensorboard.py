"""The pictures, texts and hyperparameters of a run in TensorBoard; its curves are written by the engine."""

from dataclasses import asdict
from typing import Any

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from training.data.dataset import Dataset
from training.data.sources.source import Split
from training.options.settled import SettledConfig
from training.report import figures
from training.report.decisions import CURVES_SHOWN
from training.report.predictions import class_table, gallery, worst_mistakes
from training.report.run import augmentation_sheet
from training.report.run_facts import ReportInput

GALLERY = 24
PLACES = ("out", "name", "cache", "resume", "init_from")
FIRST_COLUMNS = ("model", "augment", "epochs", "lr", "batch_size")
"""The columns that TensorBoard shows first; it shows five, beginning with those marked as differing."""


def write_augmented(writer: SummaryWriter, config: SettledConfig, dataset: Dataset) -> None:
    """Training images before and after augmentation, before the first step."""
    sheet = augmentation_sheet(config, dataset)
    if sheet is not None:
        writer.add_figure("train/augmented", sheet)


def write_results(writer: SummaryWriter, report_input: ReportInput) -> None:
    """Validation images with their true and predicted labels, confusion matrices, classification reports.

    Also the precision-recall curve of each class on the test split, and the hyperparameters. Of the exported weights.
    """
    dataset, validation = report_input.dataset, report_input.validation.probabilities
    val = dataset.splits["val"]
    assert len(validation) == len(val)
    shown = min(GALLERY, len(val))
    for tag, rows in {
        "val/examples": np.arange(shown) * len(val) // shown,  # from all of it: the keys may be sorted by class
        "val/worst_mistakes": worst_mistakes(dataset.labels[val], validation, GALLERY),
    }.items():
        if len(rows):
            writer.add_figure(tag, gallery(dataset, val[rows], validation[rows]))
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        writer.add_figure(f"{split}/confusion_matrix", figures.confusion(report_input.scores[split]))
        writer.add_text(f"{split}/classification_report", class_table(report_input.scores[split]))
    test = report_input.scored("test")
    for label, name in enumerate(dataset.classes[:CURVES_SHOWN]):
        # Its own 127 thresholds are at equal distances; those of the report are all that there are.
        writer.add_pr_curve(f"test/precision_recall/{name}", test.labels == label, test.probabilities[:, label])
    writer.add_text("configuration", f"```yaml\n{report_input.config.to_yaml()}```")
    _write_hyperparameters(writer, report_input)


def _write_hyperparameters(writer: SummaryWriter, report_input: ReportInput) -> None:
    """Into the run's own folder: `add_hparams` would open a second run beside it.

    TensorBoard takes the columns of all runs from one of them, so each run names every column, also an empty one.
    """
    settings = {
        name: value if value is None or isinstance(value, (bool, int, float)) else str(value)
        for name, value in (asdict(report_input.config) | {"data": report_input.dataset.name}).items()
        if name not in PLACES
    }
    final = {
        f"scores/{split}_{name}": value
        for split in ("test", "val")
        for name, value in report_input.scores[split].headline().items()
    }
    every = {name: 0 if value is None else value for name, value in settings.items()}
    columns = hparams(every, final)[0]  # type: ignore[no-untyped-call]
    table = HParamsPluginData.FromString(columns.value[0].metadata.plugin_data.content)
    for column in table.experiment.hparam_infos:
        column.differs = column.name in FIRST_COLUMNS
    columns.value[0].metadata.plugin_data.content = table.SerializeToString()
    _, start, end = hparams(settings, {})  # type: ignore[no-untyped-call]
    file: Any = writer.file_writer
    for summary in (columns, start, end):
        file.add_summary(summary)
    for tag, value in final.items():
        if value is not None:
            writer.add_scalar(tag, value)
