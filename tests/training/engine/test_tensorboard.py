import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from tests.support.pictures import opened
from training.options.config import TrainConfig
from training.report.tensorboard import FIRST_COLUMNS
from training.train import train

HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")
EPOCH = {
    "loss/train",
    "loss/val",
    "accuracy/train",
    "accuracy/val",
    "accuracy/val_balanced",
    "accuracy/gap",
    "training/learning_rate",
    "training/images_per_second",
    "training/gradient_norm_mean",
    "training/gradient_norm_max",
    "gradients/1.1.weight",
    "gradients/2.0.weight",
    "dead_relus/1.2",
    *(f"validation/{name}" for name in (*HEADLINE, "score")),
}


LEFT_OPEN = {
    *("best_epoch", "clip_norm", "corrections", "costs", "fold", "from_folds", "images_per_class", "mean_std"),
    *("slices", "weights", "zero_biases"),
}
"""Options that are None in the configuration of a run of the MLP."""


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0, "images": 0, "scalars": 0})
    return events.Reload()


def hyperparameters(events: EventAccumulator, tag: str) -> HParamsPluginData:
    return HParamsPluginData.FromString(events.summary_metadata[tag].plugin_data.content)


def facts_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report" / "report.json").read_text())


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    return events_of(run)


@pytest.fixture(scope="module")
def one_class_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on noise, of which it can learn nothing; its validation split is of one class and so has no ROC AUC."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    noise: dict[str, Any] = {
        f"{split}_images": rng.integers(0, 256, (40, 16, 16, 3), np.uint8) for split in ("train", "val", "test")
    }
    labels: dict[str, Any] = {
        "train_labels": np.arange(40) % 3,
        "val_labels": np.ones(40, int),
        "test_labels": np.arange(40) % 3,
    }
    np.savez(folder / "noise.npz", **noise, **labels)
    return train(
        TrainConfig(
            data=folder / "noise.npz", out=folder, name="x", model="mlp", hidden=(8,), epochs=1, patience=5, lr=1e-9
        )
    )


def test_it_holds_every_kind_of_evidence_in_one_folder(events: EventAccumulator, run: Path) -> None:
    tags = events.Tags()
    scores = {f"scores/{split}_{name}" for split in ("val", "test") for name in HEADLINE}
    assert set(tags["scalars"]) == EPOCH | scores
    mistakes = facts_of(run)["scores"]["val"]["accuracy"] < 1
    assert set(tags["images"]) == {
        "val/examples",
        "val/confusion_matrix",
        "test/confusion_matrix",
    } | ({"val/worst_mistakes"} if mistakes else set())
    texts = ("configuration", "val/classification_report", "test/classification_report")
    assert {f"{name}/text_summary" for name in texts} <= set(tags["tensors"])
    weights = {f"weights/{layer}.{part}" for layer in ("1.1", "2.0") for part in ("weight", "bias")}
    assert set(tags["histograms"]) == weights | {"activations/1.2"}
    assert len(list((run / "tensorboard").iterdir())) == 1, "one folder a run"


def test_pictures_hold_more_than_a_white_page(events: EventAccumulator) -> None:
    for tag in events.Tags()["images"]:
        [image] = events.Images(tag)
        pixels = opened(image.encoded_image_string)
        assert 300 < pixels.shape[1] < 1500, tag
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, tag


def test_scalars_are_what_the_report_says(events: EventAccumulator, run: Path) -> None:
    facts = facts_of(run)
    written = {tag: [scalar.value for scalar in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    history = facts["history"]
    assert [scalar.step for scalar in events.Scalars("loss/val")] == [1, 2, 3, 4]
    assert written["loss/train"] == pytest.approx([line["train_loss"] for line in history])
    gaps = [line["train_accuracy"] - line["val_accuracy"] for line in history]
    assert written["accuracy/gap"] == pytest.approx(gaps, abs=1e-6)
    for name in ("gradient_norm_mean", "gradient_norm_max"):
        assert written[f"training/{name}"] == pytest.approx([line[name] for line in history])
        assert min(written[f"training/{name}"]) > 0
    by_layer = np.array([written["gradients/1.1.weight"], written["gradients/2.0.weight"]])
    assert (by_layer > 0).all()
    assert (np.linalg.norm(by_layer, axis=0) <= np.array(written["training/gradient_norm_max"]) + 1e-6).all()
    assert written["validation/log_loss"] == pytest.approx([line["val_loss"] for line in history])
    assert written["validation/score"] == pytest.approx([line["val_score"] for line in history])
    for split in ("val", "test"):
        for name in HEADLINE:
            assert written[f"scores/{split}_{name}"] == pytest.approx([facts["scores"][split][name]])


@pytest.mark.slow
def test_histograms_are_of_the_first_and_every_fifth_epoch(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=photos, out=tmp_path, name="x", width=8, image_size=16, epochs=6, batch_size=32, ema=0.9)
    events = events_of(train(config))
    for tag in ("weights/1.0.weight", "activations/1.2", "activations/1.5.activation"):
        assert [histogram.step for histogram in events.Histograms(tag)] == [1, 5]
    assert [scalar.step for scalar in events.Scalars("dead_relus/1.2")] == [1, 2, 3, 4, 5, 6]
    [sheet] = events.Images("train/augmented")
    pixels = opened(sheet.encoded_image_string)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_precision_and_recall_of_each_class_are_a_curve(events: EventAccumulator, run: Path) -> None:
    tags = {tag for tag in events.summary_metadata if tag.startswith("test/precision_recall/")}
    classes = facts_of(run)["card"]["classes"]
    assert tags == {f"test/precision_recall/{name}" for name in classes}
    for tag in tags:
        assert events.summary_metadata[tag].plugin_data.plugin_name == "pr_curves"
        [curve] = events.Tensors(tag)
        *_, precision, recall = make_ndarray(curve.tensor_proto)
        assert recall[0] == 1
        assert precision[0] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_a_score_that_is_undefined_is_not_written(one_class_run: Path) -> None:
    assert facts_of(one_class_run)["scores"]["val"]["roc_auc"] is None
    events = events_of(one_class_run)
    tags = set(events.Tags()["scalars"])
    assert "scores/val_roc_auc" not in tags
    assert {"scores/val_accuracy", "scores/test_roc_auc"} <= tags
    assert all(np.isfinite([scalar.value for scalar in events.Scalars(tag)]).all() for tag in tags)


def test_the_mistakes_of_a_bad_run_are_shown(one_class_run: Path) -> None:
    assert facts_of(one_class_run)["scores"]["val"]["accuracy"] < 1
    assert "val/worst_mistakes" in events_of(one_class_run).Tags()["images"]


def test_the_table_of_runs_has_one_set_of_columns_and_no_none(
    events: EventAccumulator, one_class_run: Path, photos: Path
) -> None:
    other = events_of(one_class_run)
    table, other_table = (hyperparameters(each, EXPERIMENT_TAG).experiment for each in (events, other))
    columns = {column.name for column in table.hparam_infos}
    assert columns == {column.name for column in other_table.hparam_infos}
    assert {column.name for column in table.hparam_infos if column.differs} == set(FIRST_COLUMNS) <= columns
    scores = [column.name.tag for column in table.metric_infos]
    assert scores == [column.name.tag for column in other_table.metric_infos]
    assert scores[:5] == [f"scores/test_{name}" for name in HEADLINE]
    assert scores[5:] == [f"scores/val_{name}" for name in HEADLINE]

    settings, other_settings = (
        hyperparameters(each, SESSION_START_INFO_TAG).session_start_info.hparams for each in (events, other)
    )
    assert set(settings) == columns - {*LEFT_OPEN, "patience"}
    assert set(other_settings) == columns - LEFT_OPEN
    assert settings["data"].string_value == str(photos)
    assert settings["lr"].number_value == 1e-3
    assert "None" not in {value.string_value for value in settings.values()}
