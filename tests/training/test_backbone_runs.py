"""Everything around the model, with architectures of timm: real runs from random weights on images of 32 px."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from serving.contract.model import open_model
from tests.support.backbones import FAMILIES
from tests.support.checkpoints import furthest, last, same
from tests.support.jobs import DistributedJob, done
from tests.support.server import serving
from tests.support.trainer import After
from training.__main__ import options
from training.data.input.sizing import BACKBONE
from training.errors import Interrupted
from training.evaluate import EvaluateConfig, evaluate
from training.models import backbones
from training.options.config import TrainConfig
from training.storage import digest
from training.train import train

FAST = "mobilenetv3_small_100"
WITHOUT_BATCH_NORM = "vit_tiny_patch16_224"
LONG = ("resnet18", "efficientnet_lite0", "efficientnet_b0", "convnext_atto", "repvgg_a0", WITHOUT_BATCH_NORM)
"""Families that are left to `make test-long`: each takes as long again as one that stays."""
EACH = [
    pytest.param(name, marks=[] if name == FAST else [pytest.mark.long if name in LONG else pytest.mark.slow])
    for name in FAMILIES
]
LOOKS_AN_EPOCH = 6
"""Checks for a request to stop (`After`): one after each of four steps, one after each of two blocks."""
FROZEN_LOOKS = 4
"""The same where two batches make a step."""
AT_THE_END = 2 * LOOKS_AN_EPOCH - 1
"""The last one: the last checkpoint is written, evaluation and export are not begun, which saves their time."""


def config(data: Path, out: Path, model: str = FAST, **given: Any) -> TrainConfig:
    """Two epochs of four steps, with everything on that draws at random."""
    common: dict[str, Any] = {"weights": "none", "image_size": 32, "epochs": 2, "batch_size": 16, "workers": 0}
    drawn: dict[str, Any] = {
        "augment": "strong",
        "dropout": 0.3,
        "drop_path": 0.2,
        "mixup": 0.4,
        "cutmix": 1.0,
        "ema": 0.9,
    }
    return TrainConfig(data=data, out=out, model=model, **(common | drawn | given))


def frozen(data: Path, out: Path, **given: Any) -> TrainConfig:
    """Likewise, with the head alone learning; also with several batches a step."""
    calm: dict[str, Any] = {"augment": "none", "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "freeze": True}
    return config(data, out, **(calm | {"name": "frozen", "balance": "loss", "accumulate": 2, "lr": 0.1} | given))


def stopped(begun: TrainConfig, looks: int = AT_THE_END) -> Path:
    """The folder of a run that was asked to stop after a number of checks."""
    with pytest.raises(Interrupted):
        train(begun, After(looks))
    assert begun.name is not None
    return begun.out / begun.name


def resumed(run: Path, looks: int = AT_THE_END) -> Path:
    return stopped(options("train", ["--resume", str(run)]), looks)


def copied(run: Path, folder: Path) -> Path:
    """The best checkpoint of a run, with its digest, in another folder."""
    folder.mkdir()
    for name in ("best.pt", "best.pt.sha256"):
        shutil.copy(run / "checkpoints" / name, folder)
    return folder / "best.pt"


def report(run: Path) -> Any:
    return json.loads((run / "report" / "report.json").read_text())


def changed(run: Path, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the exported weights that are not as before."""
    return {name for name, tensor in last(run)["model"].items() if not torch.equal(tensor, before[name])}


Finished = Callable[[str], Path]


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The folder of a finished run of an architecture, trained when it is first asked for.

    From random weights, two epochs are too few to be above chance, so `latest` moves by --promote always.
    """
    out = tmp_path_factory.mktemp("finished")
    options = {"quantize": "int8", "promote": "always"}
    return functools.cache(lambda model: train(config(photos, out, model, name=model, **options)))


@pytest.mark.parametrize("name", EACH)
def test_each_family_is_published_with_its_card_and_report(finished: Finished, photos: Path, name: str) -> None:
    run = finished(name)
    facts, classifier = report(run), open_model(run / "model.onnx")
    assert facts["parity"]["held"]
    assert classifier.card.provenance.config["model"] == name
    assert classifier.card.provenance.config["weights"] == "none"
    assert classifier.card.provenance.weights is None
    assert classifier.card.provenance.packages["timm"] == backbones.timm().__version__
    for file in ("report.html", "report.md"):
        assert name in (run / "report" / file).read_text()
    published = facts["quantized"]["agreement"] >= 0.99
    assert (run / "model.int8.onnx").exists() == published
    if published:
        assert open_model(run / "model.int8.onnx").card.version.endswith("-int8")
    assert (run.parent / "latest").resolve() == run


@pytest.mark.parametrize("name", EACH)
def test_a_run_stopped_within_an_epoch_ends_as_one_that_was_not(
    finished: Finished, photos: Path, tmp_path: Path, name: str
) -> None:
    run = stopped(config(photos, tmp_path, name, name="x", quantize="int8"), LOOKS_AN_EPOCH + 2)
    progress = last(run)["progress"]
    assert (len(progress["history"]), progress["step"]) == (1, 3)
    assert same(last(resumed(run, LOOKS_AN_EPOCH - 4)), last(finished(name)))


def test_a_run_s_own_configuration_makes_the_same_weights(finished: Finished, tmp_path: Path) -> None:
    first = finished(FAST)
    arguments = ["--config", str(first / "config.yaml"), "--out", str(tmp_path), "--name", "again"]
    assert same(last(stopped(options("train", arguments))), last(first))


@pytest.mark.parametrize("name", EACH)
def test_fine_tuning_takes_all_weights_or_a_new_head(
    finished: Finished, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    origin = finished(name)
    stopped(config(photos, tmp_path, name, name="same", weights=None, init_from=origin), looks=0)
    [taken, total] = capsys.readouterr().out.partition("best.pt: ")[2].partition(" tensors taken")[0].split(" of ")
    assert taken == total
    for label in ("blue", "green leaf"):
        shutil.copytree(photos / label, tmp_path / "two" / label)
    two = config(tmp_path / "two", tmp_path, name, name="other", weights=None, init_from=origin, batch_size=8)
    stopped(two, looks=0)
    assert "the last layer is new (3 classes there, 2 here)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_frozen_run_moves_the_head_alone_and_continues_without_its_origin(
    finished: Finished, photos: Path, tmp_path: Path
) -> None:
    begun = frozen(photos, tmp_path, weights=None, init_from=copied(finished(FAST), tmp_path / "origin"))
    before = torch.load(tmp_path / "origin" / "best.pt", weights_only=True)["model"]
    once = stopped(replace(begun, name="once"), 2 * FROZEN_LOOKS - 1)
    assert changed(once, before) == {"2.1.weight", "2.1.bias"}
    run = stopped(begun, looks=0)
    progress = last(run)["progress"]
    assert (len(progress["history"]), progress["step"]) == (0, 1)
    shutil.rmtree(tmp_path / "origin")
    assert same(last(resumed(run, 2 * FROZEN_LOOKS - 2)), last(once))


@pytest.mark.long
def test_a_frozen_run_on_a_file_s_weights_continues_without_the_file(photos: Path, tmp_path: Path) -> None:
    """The published model is whole: its body is the file's, and it predicts by it from images."""
    torch.manual_seed(1)
    theirs = backbones.timm().create_model(FAST, num_classes=7)
    torch.save(theirs.state_dict(), path := tmp_path / "w.pth")
    run, made = stopped(frozen(photos, tmp_path, weights=path), looks=0), digest(path)
    path.unlink()
    train(options("train", ["--resume", str(run)]))
    body = {name.removeprefix("1."): tensor for name, tensor in last(run)["model"].items() if name.startswith("1.")}
    assert body
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in body.items())
    assert report(run)["parity"]["held"]
    card = open_model(run / "model.onnx").card
    assert card.provenance.weights is not None
    assert (card.provenance.weights.name, card.provenance.weights.digest) == ("w.pth", made)
    assert card.normalization.mean == tuple(backbones.pretrained_facts(FAST).mean)


@pytest.mark.long
@pytest.mark.parametrize("name", [BACKBONE, WITHOUT_BATCH_NORM])
def test_gray_images_are_trained_on_and_served(photos: Path, tmp_path: Path, name: str) -> None:
    run = train(config(photos, tmp_path, name, name="gray", channels=1))
    assert report(run)["parity"]["held"]
    classifier, picture = open_model(run / "model.onnx"), next((photos / "blue").glob("*.png"))
    pixels = classifier.card.preprocessing(picture.read_bytes())
    assert pixels.shape == (32, 32, 1)
    assert classifier.predict(pixels[np.newaxis]).sum() == pytest.approx(1)


def test_a_backbone_s_file_is_evaluated_and_compared(
    finished: Finished, run: Path, photos: Path, tmp_path: Path
) -> None:
    mine = finished(FAST)
    folder = evaluate(EvaluateConfig(run=mine, data=photos, out=tmp_path / "x", compare=run, split="test"))
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["scores"]["accuracy"] == report(mine)["scores"]["test"]["accuracy"]
    assert found["scores"]["log_loss"] == pytest.approx(report(mine)["scores"]["test"]["log_loss"], rel=1e-4)
    assert found["comparison"]["scores"]["images"] == found["scores"]["images"]


@pytest.mark.long
@pytest.mark.parametrize("name", [BACKBONE, WITHOUT_BATCH_NORM])
def test_the_service_predicts_and_explains(finished: Finished, photos: Path, tmp_path: Path, name: str) -> None:
    model, picture = finished(name) / "model.onnx", next((photos / "blue").glob("*.png")).read_bytes()
    classifier = open_model(model)
    [expected] = classifier.predict(classifier.card.preprocessing(picture)[np.newaxis])
    with serving(model, BENTOML_HOME=str(tmp_path)) as address:
        answer = httpx.post(f"{address}/predict", files={"image": picture}).raise_for_status().json()
        explained = httpx.post(f"{address}/explain", files={"image": picture}, timeout=60).raise_for_status().json()
        card = httpx.get(f"{address}/model").json()
    assert list(answer["probabilities"].values()) == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert explained["label"] == answer["label"]
    assert card["provenance"]["config"]["model"] == name


@pytest.fixture
def job() -> Iterator[DistributedJob]:
    with DistributedJob() as started:
        yield started


EXACT: dict[str, Any] = {"dropout": 0.0, "drop_path": 0.0, "precision": "float32", "lr": 1e-4}
"""What draws by process is off, and the steps are small: sums in another order are not amplified."""


def by_two(job: DistributedJob, alone: Path, out: Path, *more: str) -> Path:
    """The folder of a run with the options of the run `alone`, by two processes."""
    arguments = ["--config", str(alone / "config.yaml"), "--out", str(out), "--name", "two", *more]
    printed = done(job.torchrun(*arguments))
    assert printed.count("Parity held") == 1
    assert "in each of 2 processes" in printed
    return out / "two"


@pytest.mark.long
def test_two_processes_learn_what_one_does(photos: Path, tmp_path: Path, job: DistributedJob) -> None:
    alone = stopped(config(photos, tmp_path, WITHOUT_BATCH_NORM, name="one", **EXACT))
    assert furthest(by_two(job, alone, tmp_path), alone) < 1e-4


@pytest.mark.long
def test_two_processes_with_batch_normalisation_learn_as_well(
    photos: Path, tmp_path: Path, job: DistributedJob
) -> None:
    """Each measures its part of a batch, so they differ a little from one process."""
    alone = stopped(config(photos, tmp_path, name="one", **EXACT))
    one, two = (last(run)["progress"]["history"] for run in (alone, by_two(job, alone, tmp_path)))
    assert abs(one[-1]["train_loss"] - two[-1]["train_loss"]) < 0.1


@pytest.mark.long
def test_two_processes_train_one_head_on_the_same_features(photos: Path, tmp_path: Path, job: DistributedJob) -> None:
    """The first process alone reads the file, and the other one computes its features by the same weights."""
    torch.save(backbones.timm().create_model(FAST, num_classes=7).state_dict(), tmp_path / "w.pth")
    alone = stopped(frozen(photos, tmp_path, name="one", weights=tmp_path / "w.pth", **EXACT), 2 * FROZEN_LOOKS - 1)
    assert furthest(by_two(job, alone, tmp_path), alone) < 1e-5
