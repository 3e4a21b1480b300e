import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training import checkpoint, export, train
from training.config import TrainConfig
from training.splits import DataError


def test_it_learns_and_leaves_everything_a_run_should_hold(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["scores"]["test"]["accuracy"] == 1.0
    assert report["history"][-1]["train_loss"] < report["history"][0]["train_loss"]
    names = {
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    }
    assert names == {
        "audit.json",
        "config.yaml",
        "model.onnx",
        "predictions.csv",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "report/report.html",
        "report/report.json",
        "report/report.md",
        "report/figures/accuracy.png",
        "report/figures/accuracy.svg",
        "report/figures/gap.png",
        "report/figures/gap.svg",
        "report/figures/learning_rate.png",
        "report/figures/learning_rate.svg",
        "report/figures/confusion.png",
        "report/figures/confusion.svg",
        "report/figures/loss.png",
        "report/figures/loss.svg",
        "report/figures/reliability.png",
        "report/figures/reliability.svg",
        "report/figures/risk_coverage.png",
        "report/figures/risk_coverage.svg",
    }


def test_latest_points_to_the_run(run: Path) -> None:
    latest = run.parent / "latest"
    assert latest.is_symlink()
    assert latest.resolve() == run.resolve()
    assert not latest.readlink().is_absolute(), "the folder of runs can be moved or mounted elsewhere"


def test_latest_moves_only_after_the_proof_held(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(data=photos, out=tmp_path, model="mlp", hidden=(8,), image_size=16, epochs=1, augment="none")
    first = train.train(_named(config, "first"))
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(export.ExportRefused):
        train.train(_named(config, "second"))
    assert (tmp_path / "latest").resolve() == first.resolve()
    assert not (tmp_path / "second" / "model.onnx").exists()
    monkeypatch.undo()
    third = train.train(_named(config, "third"))
    assert (tmp_path / "latest").resolve() == third.resolve()


def _named(config: TrainConfig, name: str) -> TrainConfig:
    return train.replace(config, name=name)


def test_the_same_seed_gives_the_same_weights_for_any_number_of_workers(photos: Path, tmp_path: Path) -> None:
    weights = []
    for name, workers, seed in (("a", 0, 0), ("b", 2, 0), ("c", 0, 1)):
        config = TrainConfig(
            data=photos,
            out=tmp_path,
            name=name,
            width=8,
            image_size=16,
            epochs=2,
            batch_size=16,
            workers=workers,
            seed=seed,
        )
        state = checkpoint.load(train.train(config) / "checkpoints" / "last.pt", torch.device("cpu"))["model"]
        weights.append(torch.cat([tensor.flatten().float() for tensor in state.values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_stops_early_and_exports_the_best_epoch(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=photos,
        out=tmp_path,
        name="x",
        model="mlp",
        hidden=(16,),
        image_size=16,
        epochs=40,
        patience=2,
        augment="none",
        lr=1e-9,
    )
    history = json.loads((train.train(config) / "report" / "report.json").read_text())["history"]
    best = max(line["epoch"] for line in history if line["best"])
    assert len(history) < 40
    assert len(history) == best + 2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        data=photos,
        out=tmp_path,
        name="x",
        model="mlp",
        hidden=(8,),
        image_size=16,
        epochs=3,
        batch_size=32,
        augment="none",
    )
    real, calls = train.cross_entropy, []

    def poisoned(*arguments: object, **options: object) -> torch.Tensor:
        calls.append(1)
        return real(*arguments, **options) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(train, "cross_entropy", poisoned)
    with pytest.raises(train.NonFiniteLoss, match="epoch 2, step 2"):
        train.train(config)
    state = checkpoint.load(tmp_path / "x" / "checkpoints" / "last.pt", torch.device("cpu"))
    assert state["epoch"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_data_that_is_refused_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train.train(TrainConfig(data=tmp_path / "absent", out=tmp_path / "runs", name="x"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    share = train.warmup_cosine(TrainConfig(epochs=10, warmup_epochs=2), steps_an_epoch=10)
    values = np.array([share(step) for step in range(101)])
    assert values[0] == 1 / 20
    assert values.max() == values[20] == 1
    assert np.all(np.diff(values[:20]) > 0)
    assert np.all(np.diff(values[20:]) < 0)
    assert values[100] == pytest.approx(0, abs=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_the_gpu(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=photos, out=tmp_path, name="x", width=8, epochs=1, device="cuda")
    assert json.loads((train.train(config) / "report" / "report.json").read_text())["parity"]["held"]
