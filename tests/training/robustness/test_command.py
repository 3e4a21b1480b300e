"""The command on a model that looks at the object, and on one that has learned a mark in the corner."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tyro

from tests.support.trainer import command
from training.errors import ConfigError
from training.metrics.classification import score
from training.options.config import TrainConfig
from training.report import html
from training.report.predictions import read_predictions
from training.robustness.changes import DRIFTS, PROBES
from training.robustness.command import RobustnessConfig
from training.robustness.report import DECISIVE, OTHERS, Drop, limit, shortcut
from training.train import train

COLOURS = {"red": (40, 40, 200), "blue": (200, 60, 40)}


def pictures(root: Path, *, mark: bool) -> Path:
    """Two classes of a coloured square on a ground of noise: in the centre, or as a mark in a corner."""
    rng = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (root / label).mkdir(parents=True)
        for number in range(60):
            image = rng.integers(60, 140, (48, 48, 3), np.uint8)
            if mark:
                image[:6, :6] = colour
            else:
                top, left = rng.integers(14, 20, 2)
                image[top : top + 14, left : left + 14] = colour
            assert cv2.imwrite(str(root / label / f"{number}.png"), image)
    return root


def trained(data: Path, out: Path) -> Path:
    config = TrainConfig(
        data=data,
        out=out,
        name="x",
        model="mlp",
        hidden=(32,),
        image_size=24,
        epochs=20,
        promote="never",
        test_fraction=0.3,
    )
    return train(config)


@pytest.mark.long
@pytest.mark.parametrize("mark", [False, True])
def test_a_mark_in_the_corner_is_named_and_an_object_is_not(tmp_path: Path, mark: bool) -> None:
    data = pictures(tmp_path / "data", mark=mark)
    run = trained(data, tmp_path / "runs")
    done = command("robustness", str(run), "--data", str(data), "--out", str(tmp_path / "page"))
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "page" / "robustness.json").read_text())
    drops = {(drop["change"], drop["strength"]): drop for drop in facts["drops"]}
    assert len(drops) == sum(len(change.strengths) for change in (*DRIFTS, *PROBES)) + 2
    recorded = read_predictions(run / "predictions.csv", ("blue", "red"))
    assert recorded is not None
    expected = score(recorded.labels, recorded.probabilities, ("blue", "red")).balanced_accuracy
    assert facts["value"] == pytest.approx(expected)
    assert facts["value"] > 0.9
    for drop in drops.values():
        assert drop["difference"] == pytest.approx(drop["value"] - facts["value"])
    warned = "something at the border may decide" in done.stdout
    assert warned == mark == bool(facts["warnings"])
    assert drops["border only", 1]["value"] > 0.9 if mark else drops["border only", 1]["value"] < 0.7
    assert drops["without colour", 1]["value"] < facts["value"]
    without, elsewhere = (drops[name, 1]["value"] for name in (DECISIVE, OTHERS))
    assert without < elsewhere - 0.2, "what an explanation names is what decides"
    if mark:
        assert without < 0.7 < elsewhere, "the mark is one of the hidden regions"
    page = (tmp_path / "page" / "robustness.html").read_text()
    assert facts["decisive"] in done.stdout
    assert facts["decisive"] in page
    assert facts["drift"]["sentence"] in done.stdout
    assert facts["drift"]["sentence"] in page
    assert ("something at the border may decide" in page) == mark
    assert all(change.name in page for change in (*DRIFTS, *PROBES))


def drop(strength: float, low: float, difference: float, high: float) -> Drop:
    return Drop(change="blur", strength=strength, value=0.5, difference=difference, interval=(low, high))


def test_harm_and_harmlessness_are_what_the_interval_shows() -> None:
    assert drop(1, -0.15, -0.05, -0.01).effect(0.02) == "harmful"
    assert drop(1, -0.15, -0.05, 0.01).effect(0.02) == "undecided"
    assert drop(1, -0.11, -0.01, -0.005).effect(0.02) == "undecided"
    assert drop(1, -0.02, -0.01, -0.005).effect(0.02) == "harmless"
    assert drop(1, -0.01, 0.0, 0.01).effect(0.02) == "harmless"


def test_the_table_says_from_where_on_it_is_not_decided() -> None:
    blur = next(change for change in DRIFTS if change.name == "blur")
    harmless, undecided, harmful = (-0.01, 0.0, 0.01), (-0.1, 0.0, 0.1), (-0.3, -0.2, -0.1)

    def found(*shown: tuple[float, float, float]) -> tuple[object, ...]:
        facts = limit(blur, [drop(number, *each) for number, each in enumerate(shown, 1)], 0.02)
        return facts["harmless"], facts["undecided"], facts["harmful"], facts["sentence"].replace(f" {blur.unit}", "")

    assert found(harmless, harmless) == (2, None, None, "holds up to 2")
    assert found(harmless, undecided, undecided) == (
        *(1, 2, None),
        "holds up to 1; not decided from 2 on: too few images",
    )
    assert found(undecided) == (None, 1, None, "not decided from 1 on: too few images")
    lost = f"-0.200 ({html.interval((-0.3, -0.1))})"
    assert found(harmful, harmless) == (None, None, 1, f"{lost} at 1")
    assert found(harmless, undecided, undecided, harmful, harmless) == (
        *(1, 2, 4),
        f"holds up to 1; not decided at 2, 3: too few images; {lost} at 4",
    )


def test_images_may_be_at_a_url_and_numbers_have_limits() -> None:
    config = tyro.cli(RobustnessConfig, args=["runs/x", "--data", "s3://bucket/images"])
    assert str(config.data) == "s3://bucket/images"
    with pytest.raises(ConfigError, match="--seed: expected 0 or more, got -1"):
        RobustnessConfig(run=Path("x"), seed=-1)
    with pytest.raises(ConfigError, match=r"--margin: expected at least 0 and below 1, got -0\.1"):
        RobustnessConfig(run=Path("x"), margin=-0.1)


@pytest.mark.parametrize(
    ("border", "least", "value", "warned"),
    [(0.6, 0.5, 0.9, True), (0.49, 0.4, 0.9, False), (0.2, 0.15, 0.09, False), (0.6, 0.09, 0.9, False)],
)
def test_a_shortcut_is_more_than_half_of_what_is_above_chance_and_no_chance(
    border: float, least: float, value: float, warned: bool
) -> None:
    assert bool(shortcut((border, least), value, 0.1)) == warned


def test_a_model_of_other_classes_is_refused_before_any_image_is_changed(run: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", mark=True)
    done = command("robustness", str(run), "--data", str(data), "--out", str(tmp_path / "page"))
    assert done.returncode == 3
    assert "classes that the model does not know" in done.stderr
    assert not (tmp_path / "page").exists()
