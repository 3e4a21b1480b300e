import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from serving.contract.decode import Preprocessing
from serving.contract.model import open_model
from tests.support.configs import settled
from tests.support.trainer import After
from training import train
from training.__main__ import options
from training.data.dataset import load_dataset
from training.data.loader import Batches, TrainingSet
from training.engine import checkpoint, loop, optimizer
from training.engine.objective import Objective
from training.engine.progress import RunProgress
from training.engine.train_state import TrainState
from training.errors import CheckpointRefused, DataError, ExportRefused, Interrupted, NonFiniteLoss
from training.export import ways
from training.metrics import classification
from training.models import networks, prediction
from training.models.normalization import normalization
from training.options.choices import Balance, OptimizerName, ScoreName
from training.options.config import TrainConfig
from training.options.config_file import from_yaml
from training.signals import Interruption


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
        "history.json",
        "model.onnx",
        "predictions.csv",
        "predictions-val.csv",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        *(f"checkpoints/{name}.pt.sha256" for name in ("best", "last", "previous")),
        ".lock",
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


@pytest.mark.slow
def test_latest_moves_only_after_the_proof_held(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(data=photos, out=tmp_path, model="mlp", hidden=(8,), image_size=16, epochs=1, augment="none")
    first = train.train(_named(config, "first"))
    monkeypatch.setattr(ways, "TOLERANCE", -1.0)
    with pytest.raises(ExportRefused):
        train.train(_named(config, "second"))
    assert (tmp_path / "latest").resolve() == first.resolve()
    assert not (tmp_path / "second" / "model.onnx").exists()
    monkeypatch.undo()
    third = train.train(_named(config, "third"))
    assert (tmp_path / "latest").resolve() == third.resolve()


def _named(config: TrainConfig, name: str) -> TrainConfig:
    return replace(config, name=name)


LEVERS = {
    "none": {},
    "regularised": {
        "mixup": 0.4,
        "cutmix": 1.0,
        "dropout": 0.3,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "balance": "sampler",
        "accumulate": 2,
        "clip_norm": 1.0,
        "augment": "strong",
    },
    "other": {
        "optimizer": "sgd",
        "schedule": "step",
        "batch_norm": False,
        "init": "he_uniform",
        "activation": "gelu",
        "balance": "loss",
        "precision": "bfloat16",
    },
}


@pytest.mark.parametrize(
    "levers",
    [
        pytest.param(levers, id=name, marks=pytest.mark.slow if name == "regularised" else pytest.mark.long)
        for name, levers in LEVERS.items()
    ],
)
def test_the_same_seed_gives_the_same_weights_for_any_number_of_workers(
    photos: Path, tmp_path: Path, levers: dict[str, Any]
) -> None:
    common: dict[str, Any] = {
        "data": photos,
        "out": tmp_path,
        "width": 8,
        "image_size": 16,
        "epochs": 2,
        "batch_size": 8,
    }
    first = train.train(TrainConfig(**common, **levers, name="a", workers=0))
    again = train.train(TrainConfig(**common, **levers, name="b", workers=2))
    other = train.train(TrainConfig(**common, **levers, name="c", workers=0, seed=1))
    assert torch.equal(_weights(first), _weights(again))
    assert not torch.equal(_weights(first), _weights(other))


@pytest.mark.slow
def test_the_runs_own_configuration_makes_the_same_weights(photos: Path, tmp_path: Path) -> None:
    first = train.train(
        TrainConfig(
            data=photos,
            out=tmp_path,
            name="first",
            model="mlp",
            hidden=(16,),
            image_size=16,
            epochs=2,
            augment="light",
            batch_norm=True,
            dropout=0.2,
            ema=0.9,
            mixup=0.2,
            seed=3,
        )
    )
    arguments = ["--config", str(first / "config.yaml"), "--name", "second"]
    assert torch.equal(_weights(first), _weights(train.train(options("train", arguments))))


def _weights(run: Path) -> torch.Tensor:
    state = checkpoint.load(run / "checkpoints" / "last.pt", torch.device("cpu"))
    return torch.cat([tensor.flatten().double() for tensor in [*state["model"].values(), *state["weights"].values()]])


IMAGES = np.random.default_rng(0).integers(0, 256, (48, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(48) % 3


def one_epoch(labels: np.ndarray = LABELS, **given: Any) -> tuple[TrainState, RunProgress]:
    """One epoch of a small MLP on 48 images of three classes, in float32, from the same start."""
    options: dict[str, Any] = {
        "model": "mlp",
        "hidden": (16,),
        "batch_size": 16,
        "precision": "float32",
        "schedule": "constant",
    }
    config = TrainConfig(**(options | {"augment": "none", "balance": "none", "warmup_epochs": 0.0} | given))
    config = settled(config, image_size=12, training_images=48)
    size = Preprocessing(height=12, width=12, channels=3, interpolation="area")
    torch.manual_seed(0)
    model = networks.build(config, size, normalization(config, IMAGES, np.arange(48)), 3)
    batches = Batches(TrainingSet(images=IMAGES, labels=labels, indices=np.arange(48)), config, torch.device("cpu"))
    state = TrainState.start(model, config, Objective.of(config, labels, 3, model, batches), len(batches))
    progress = RunProgress()
    loop.run_epoch(state, batches, progress, Interruption())
    return state, progress


@pytest.mark.parametrize("between", [1, 2, 7])
def test_how_often_a_device_is_read_changes_no_number(between: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's numbers are read every few steps; the same is done here with a CPU's."""
    _, expected = one_epoch(batch_size=4)
    monkeypatch.setitem(loop.STEPS_BETWEEN_READS, "cpu", between)
    _, read = one_epoch(batch_size=4)
    assert replace(read, seconds=0) == replace(expected, seconds=0)
    with pytest.raises(NonFiniteLoss, match="epoch 1, step 2") as stopped:
        one_epoch(batch_size=4, lr=1e30, optimizer="sgd")
    assert len(stopped.value.images) == 4


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_batches_of_eight_make_the_step_of_one_of_sixteen(optimizer: str) -> None:
    whole, of_whole = one_epoch(optimizer=optimizer, batch_size=16)
    halves, of_halves = one_epoch(optimizer=optimizer, batch_size=8, accumulate=2)
    assert (flat(whole.model) - flat(halves.model)).abs().max() < 1e-6
    assert of_halves.loss == pytest.approx(of_whole.loss, abs=1e-6)
    assert of_halves.norm_max == pytest.approx(of_whole.norm_max, rel=1e-5)
    alone, _ = one_epoch(optimizer=optimizer, batch_size=8)
    assert (flat(whole.model) - flat(alone.model)).abs().max() > 1e-4


def test_float16_leaves_out_a_step_that_overflows_and_scales_less() -> None:
    state, progress = one_epoch(precision="float16", optimizer="sgd", lr=1e-3)
    _, exact = one_epoch(optimizer="sgd", lr=1e-3)
    assert progress.loss == pytest.approx(exact.loss, rel=1e-2)
    assert progress.norm_max == pytest.approx(exact.norm_max, rel=5e-2)
    scale, before = state.scaler.get_scale(), flat(state.model).clone()
    next(state.model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
    state.scaler.scale(torch.ones(1))
    state.scaler.unscale_(state.optimizer)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    assert torch.equal(flat(state.model), before)
    assert state.scaler.get_scale() == scale / 2
    again, _ = one_epoch(precision="float16", optimizer="sgd", lr=1e-3)
    again.load_state_dict(state.state_dict())
    assert again.scaler.get_scale() == scale / 2
    on_a_device_without_scaling, _ = one_epoch(optimizer="sgd")
    again.load_state_dict(on_a_device_without_scaling.state_dict())
    assert again.scaler.get_scale() == scale / 2


def test_the_last_step_of_an_epoch_is_the_mean_of_the_batches_it_has() -> None:
    """48 images in batches of 12, three a step: 36, then 12, whose gradient is not a third of itself."""
    state, _ = one_epoch(optimizer="sgd", batch_size=12, accumulate=3, weight_decay=0.0, lr=0.01)
    assert state.schedule.last_epoch == 2
    config = settled(TrainConfig(batch_size=12, augment="none", balance="none"), image_size=12, training_images=48)
    batches = Batches(TrainingSet(images=IMAGES, labels=LABELS, indices=np.arange(48)), config, torch.device("cpu"))
    [first, second, third, fourth] = [step[0] for step in batches.epoch(0)]
    model, _ = one_epoch(optimizer="sgd", lr=1e-30)
    momentum = torch.zeros(())
    for group in ([first, second, third], [fourth]):
        images, labels = (torch.cat(parts) for parts in zip(*group, strict=True))
        loss = torch.nn.functional.cross_entropy(model.model(images), labels)
        gradients = torch.autograd.grad(loss, list(model.model.parameters()))
        gradient = torch.cat([part.flatten() for part in gradients])
        momentum = 0.9 * momentum + gradient
        moved = flat(model.model) - 0.01 * (gradient + 0.9 * momentum)
        torch.nn.utils.vector_to_parameters(moved, model.model.parameters())
    assert (flat(state.model) - flat(model.model)).abs().max() < 1e-6


def test_clipping_bounds_the_step_and_the_norm_before_it_is_reported() -> None:
    """SGD's first step with Nesterov is 1.9 times the gradient; a batch of 48 is the only step."""
    common: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "batch_size": 48}
    start = flat(one_epoch(**(common | {"lr": 1e-30}))[0].model)
    free, of_free = one_epoch(**common)
    norm = of_free.norm_max
    assert float((flat(free.model) - start).norm()) == pytest.approx(0.19 * norm, rel=1e-4)
    clipped, of_clipped = one_epoch(**common, clip_norm=norm / 4)
    assert float((flat(clipped.model) - start).norm()) == pytest.approx(0.19 * norm / 4, rel=1e-4)
    assert of_clipped.norm_max == of_clipped.norm_sum == pytest.approx(norm)
    loose, _ = one_epoch(**common, clip_norm=norm * 4)
    assert torch.equal(flat(loose.model), flat(free.model))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_frozen_layers_are_in_no_norm_and_in_no_average_of_the_optimizer(name: OptimizerName) -> None:
    """A batch of 48 is the only step."""
    frozen, progress = one_epoch(optimizer=name, batch_size=48, freeze_epochs=1, ema=0.9)
    body = optimizer.of_body(frozen.optimizer)
    assert len(body) == 2
    assert all(parameter.grad is None for parameter in body)
    averages = [average for parameter in body for average in frozen.optimizer.state.get(parameter, {}).values()]
    assert not any(average.any() for average in averages)
    gradients = [parameter.grad.flatten() for parameter in frozen.model[2].parameters() if parameter.grad is not None]
    assert progress.norm_max == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)
    start, _ = one_epoch(optimizer=name, batch_size=48, lr=1e-30)
    assert all(map(torch.equal, frozen.model[1].parameters(), start.model[1].parameters()))
    assert all(map(torch.equal, frozen.average.model[1].parameters(), start.model[1].parameters()))
    again, _ = one_epoch(optimizer=name, batch_size=48)
    again.load_state_dict(deepcopy(frozen.state_dict()))
    for state in (frozen, again):
        loop.set_modes(state, frozen=False)
        state.optimizer.zero_grad()
        state.model(torch.from_numpy(IMAGES)).square().sum().backward()
        state.optimizer.step()
    assert all(parameter.grad is not None for parameter in body)
    assert torch.equal(flat(frozen.model), flat(again.model))


def test_a_checkpoint_whose_parameters_are_grouped_otherwise_is_refused_with_the_reason(tmp_path: Path) -> None:
    state, progress = one_epoch()
    folder = checkpoint.CheckpointFolder(folder=tmp_path, identity={})
    folder.write(state, progress)
    content = checkpoint.load(tmp_path / "last.pt", torch.device("cpu"))
    decayed, others, *_ = content["optimizer"]["param_groups"]
    decayed["params"].append(others["params"].pop())
    checkpoint.save(content, tmp_path / "last.pt")
    with pytest.raises(
        CheckpointRefused, match=r"its optimizer is that of another version \(.*\).* A new run begins anew"
    ):
        folder.restore(state)


def test_smoothed_labels_and_class_weights_are_in_the_loss() -> None:
    """One step on all images: the loss of the start, by hand."""
    model = one_epoch(batch_size=48, lr=1e-30)[0].model
    log_probabilities = model(torch.from_numpy(IMAGES)).log_softmax(1).detach().double()
    by_label = -log_probabilities[torch.arange(48), torch.from_numpy(LABELS)]
    for share in (0.0, 0.1, 0.5):
        expected = (1 - share) * by_label.mean() - share * log_probabilities.mean()
        assert one_epoch(batch_size=48, label_smoothing=share)[1].loss == pytest.approx(float(expected), rel=1e-5)


def test_class_weights_weigh_the_loss() -> None:
    labels = np.repeat([0, 1, 2], [36, 8, 4])
    model = one_epoch(labels, batch_size=48, lr=1e-30)[0].model
    by_image = torch.nn.functional.cross_entropy(
        model(torch.from_numpy(IMAGES)), torch.from_numpy(labels), reduction="none"
    ).detach()
    weights = torch.tensor([48 / 3 / 36, 48 / 3 / 8, 48 / 3 / 4])[labels]
    assert float(weights.mean()) == pytest.approx(1)
    expected = float((weights * by_image).mean())
    assert one_epoch(labels, batch_size=48, balance="loss")[1].loss == pytest.approx(expected, rel=1e-5)
    assert one_epoch(labels, batch_size=48)[1].loss == pytest.approx(float(by_image.mean()), rel=1e-5)


def test_adjusted_logits_learn_what_speaks_for_a_class_beside_its_frequency() -> None:
    """In the loss the classes' frequencies come from the data, so a model that knows nothing has equal logits."""
    labels = np.repeat([0, 1, 2], [36, 8, 4])
    model = one_epoch(labels, batch_size=48, lr=1e-30)[0].model
    prior = torch.tensor([36, 8, 4]).div(48).log()
    expected = torch.nn.functional.cross_entropy(model(torch.from_numpy(IMAGES)) + prior, torch.from_numpy(labels))
    found = one_epoch(labels, batch_size=48, balance="logits")[1].loss
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.slow
def test_the_averaged_weights_are_scored_kept_and_exported(photos: Path, tmp_path: Path) -> None:
    run = train.train(
        TrainConfig(
            data=photos, out=tmp_path, name="x", width=8, image_size=16, epochs=3, batch_size=16, ema=0.95, lr=0.02
        )
    )
    best = checkpoint.load(run / "checkpoints" / "best.pt", torch.device("cpu"))
    assert best["averaged_steps"] == 4 * len(best["progress"]["history"])
    assert any(not torch.equal(tensor, best["weights"][name]) for name, tensor in best["model"].items())
    config = from_yaml(run / "config.yaml")
    card = open_model(run / "model.onnx").card
    model = networks.build(config, card.preprocessing, card.normalization, 3)
    model.load_state_dict(best["model"])
    dataset = load_dataset(config)
    probabilities = prediction.predict(model, dataset.images[dataset.splits["val"]])
    scored = classification.score(dataset.labels[dataset.splits["val"]], probabilities, dataset.classes)
    history = json.loads((run / "report" / "report.json").read_text())["history"]
    assert scored.log_loss == pytest.approx(history[len(best["progress"]["history"]) - 1]["val_loss"], rel=1e-4)
    logits = prediction.outputs(model, dataset.images[dataset.splits["test"]]) / card.calibration.temperature
    served = open_model(run / "model.onnx").predict(dataset.images[dataset.splits["test"]])
    assert np.abs(softmax(logits, axis=1) - served).max() < 1e-5


@pytest.mark.parametrize(
    "best_by", ["balanced_accuracy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("log_loss", "roc_auc"))]
)
def test_it_stops_early_by_the_chosen_score_and_exports_the_best_epoch(
    photos: Path, tmp_path: Path, best_by: ScoreName
) -> None:
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
        lr=0.03,
        schedule="constant",
        best_by=best_by,
    )
    run = train.train(config)
    history = json.loads((run / "report" / "report.json").read_text())["history"]
    rank = [(line["val_score"] * (-1 if best_by == "log_loss" else 1), -line["val_loss"]) for line in history]
    best = max(range(len(history)), key=lambda epoch: (rank[epoch], -epoch))
    assert history[best]["best"]
    assert not any(line["best"] for line in history[best + 1 :])
    assert len(history) == best + 1 + 2 < 40
    state = checkpoint.load(run / "checkpoints" / "best.pt", torch.device("cpu"))
    assert len(state["progress"]["history"]) == best + 1


@pytest.mark.slow
def test_a_bias_for_rare_classes_is_part_of_what_is_proved_and_served(tmp_path: Path) -> None:
    """Three overlapping classes, of which one has 5 % of the images: with the bias it is answered more often."""
    rng = np.random.default_rng(3)
    labels = np.r_[np.zeros(480), np.ones(90), np.full(30, 2)].astype(np.int64)
    images = np.clip(90 + 40 * labels[:, None, None, None] + rng.normal(0, 60, (600, 8, 8, 3)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "rare.npz", train_images=images, train_labels=labels)
    options = TrainConfig(data=tmp_path / "rare.npz", out=tmp_path, model="mlp", hidden=(8,), epochs=4, seed=1)
    balances: tuple[Balance, Balance] = ("bias", "none")
    with_bias, without = (
        open_model(train.train(replace(options, name=balance, balance=balance)) / "model.onnx") for balance in balances
    )
    bias = with_bias.card.calibration.bias
    assert 0 < bias[0] < bias[1] < bias[2], "by minus the log of the frequency"
    assert without.card.calibration.bias == ()
    answered = [model.predict(images).argmax(1) for model in (with_bias, without)]
    assert (answered[0] == 2).sum() > (answered[1] == 2).sum()
    for kind in ("html", "md"):
        page = (tmp_path / "bias" / "report" / f"report.{kind}").read_text()
        assert "because classes are not equally frequent" in page
        assert f"{bias[2]:+.2f}" in page


@pytest.mark.long
def test_a_hundred_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every picture of a class is its number in grey levels, two digits in two halves, and noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 8)
    images = rng.integers(0, 20, (800, 10, 10), dtype=np.uint8)
    images[:, :5] += (labels // 10 * 23).astype(np.uint8)[:, None, None]
    images[:, 5:] += (labels % 10 * 23).astype(np.uint8)[:, None, None]
    np.savez(tmp_path / "hundred.npz", train_images=images, train_labels=labels)
    run = train.train(
        TrainConfig(data=tmp_path / "hundred.npz", out=tmp_path, name="x", model="mlp", channels=1, epochs=20, lr=3e-3)
    )
    report = json.loads((run / "report" / "report.json").read_text())
    assert len(report["scores"]["test"]["by_class"]) == len(report["scores"]["test"]["confusion"]) == 100
    assert report["scores"]["test"]["accuracy"] > 0.5
    assert report["parity"]["held"]
    assert open_model(run / "model.onnx").card.classes == tuple(map(str, range(100)))
    assert "100 classes" in capsys.readouterr().out
    assert (run / "report" / "report.md").read_text().count("\n| 42 |") >= 2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(photos: Path, tmp_path: Path) -> None:
    """The first epoch is normal; then the checkpoint holds a learning rate that ruins the weights in one step."""
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
    with pytest.raises(Interrupted):
        train.train(config, After(3))
    last = tmp_path / "x" / "checkpoints" / "last.pt"
    state = checkpoint.load(last, torch.device("cpu"))
    assert (len(state["progress"]["history"]), state["progress"]["step"]) == (1, 0)
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = 1e30
    checkpoint.save(state, last)
    with pytest.raises(NonFiniteLoss, match="epoch 2, step 2"):
        train.train(options("train", ["--resume", str(tmp_path / "x")]))
    state = checkpoint.load(last, torch.device("cpu"))
    assert len(state["progress"]["history"]) == 1
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_data_that_is_refused_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train.train(TrainConfig(data=tmp_path / "absent", out=tmp_path / "runs", name="x"))
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.gpu
def test_on_the_gpu(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=photos, out=tmp_path, name="x", width=8, epochs=1, device="cuda")
    assert json.loads((train.train(config) / "report" / "report.json").read_text())["parity"]["held"]
