import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.contract.card.provenance import PretrainedWeights
from serving.contract.decode import Digest
from tests.support.trainer import After
from training.engine import history
from training.errors import Interrupted, NonFiniteLoss
from training.options.config import TrainConfig
from training.train import train


def test_a_run_leaves_what_every_epoch_saw(run: Path) -> None:
    seen = history.read(run)
    assert seen is not None
    assert seen.diverged is None
    assert [line.epoch for line in seen.epochs] == [1, 2, 3, 4]
    assert seen.parameters == 24 * 24 * 3 * 32 + 32 + 32 * 3 + 3
    assert len(seen.at_start) == 2
    for line in seen.epochs:
        assert line.seconds > 0
        assert line.loss_variance is not None
        assert line.loss_variance > 0


def test_a_run_that_diverges_says_where_and_keeps_what_it_saw(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=photos, out=tmp_path, name="x", model="mlp", hidden=(8,), image_size=16, epochs=2, lr=1e30, clip_norm=None
    )
    with pytest.raises(NonFiniteLoss) as stopped:
        train(config)
    seen = history.read(tmp_path / "x")
    assert seen is not None
    assert seen.diverged == str(stopped.value)
    assert "step" in seen.diverged
    assert len(seen.at_start) == 2


@pytest.mark.parametrize("part", ["", "checkpoints/best.pt"])
def test_pretrained_weights_are_known_by_way_of_a_run_or_its_checkpoint(
    run: Path, photos: Path, tmp_path: Path, part: str
) -> None:
    record = PretrainedWeights(
        architecture="x", name="x.in1k", digest=Digest("0" * 64), source="hub", licence="cc-by-nc-4.0"
    )
    origin = shutil.copytree(run, tmp_path / "origin")
    first = history.read(origin)
    assert first is not None
    history.write(origin, replace(first, weights=record))
    given: dict[str, Any] = {"model": "mlp", "hidden": (32,), "image_size": 24, "init_from": origin / part}
    with pytest.raises(Interrupted):
        train(TrainConfig(data=photos, out=tmp_path, name="x", **given), After(0))
    begun = history.read(tmp_path / "x")
    assert begun is not None
    assert begun.weights == record


def test_there_is_nothing_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    assert history.read(tmp_path) is None
