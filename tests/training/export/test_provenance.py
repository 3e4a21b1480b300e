import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from serving.contract.card.model_card import METADATA_KEY
from serving.contract.model import open_model
from tests.support.trainer import After, config
from training.__main__ import options
from training.engine import history
from training.errors import Interrupted
from training.export import provenance
from training.export.provenance import REVISION, digest_of_weights
from training.train import train


def test_the_digest_is_of_names_shapes_types_and_bytes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = digest_of_weights(model)
    assert digest_of_weights(model.to(memory_format=torch.channels_last)) == before  # type: ignore[call-overload]
    assert digest_of_weights(nn.Sequential(*model)) == before
    assert digest_of_weights(nn.Sequential(*model, nn.ReLU())) == before, "a layer without weights"
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1e-6
    assert digest_of_weights(model) != before
    flat = nn.ParameterList([torch.zeros(4)])
    assert digest_of_weights(flat) != digest_of_weights(nn.ParameterList([torch.zeros(2, 2)]))
    assert digest_of_weights(flat) != digest_of_weights(nn.ParameterList([torch.zeros(4, dtype=torch.float32).half()]))


def graph(model: Path) -> bytes:
    """The file without its card."""
    file = onnx.load(model)
    assert [entry.key for entry in file.metadata_props] == [METADATA_KEY]
    del file.metadata_props[:]
    return bytes(file.SerializeToString(deterministic=True))


def test_the_checkout_around_an_environment_is_not_that_of_this_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REVISION, raising=False)
    module = tmp_path / ".venv" / "provenance.py"
    module.parent.mkdir()
    module.touch()
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.source_revision() is None, "no checkout at all"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for arguments in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "x"]):
        subprocess.run([*git, *arguments], check=True)
    assert provenance.source_revision() is None
    for arguments in (["add", "."], ["commit", "--quiet", "--message", "y"]):
        subprocess.run([*git, *arguments], check=True)
    assert re.fullmatch("[0-9a-f]{40}", provenance.source_revision() or "")


@pytest.mark.slow
def test_the_revision_is_that_of_the_start(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit while a run trains does not change what trains."""
    began = history.begin

    def commit(*arguments: Any) -> Any:
        monkeypatch.setenv(REVISION, "of a later commit")
        return began(*arguments)

    monkeypatch.setenv(REVISION, "of the start")
    monkeypatch.setattr(history, "begin", commit)
    run = train(config(photos, tmp_path, epochs=1))
    assert os.environ[REVISION] == "of a later commit"
    assert open_model(run / "model.onnx").card.provenance.git_revision == "of the start"


@pytest.mark.long
def test_two_runs_of_one_seed_make_one_file_but_for_the_time(photos: Path, tmp_path: Path) -> None:
    """In one place, one after the other: the card holds the options, and with them the folder of the runs."""
    models = []
    for kept in ("first", "second", "resumed"):
        begun = config(photos, tmp_path / "runs", name="x", workers=0)
        if kept == "resumed":
            with pytest.raises(Interrupted):
                train(begun, After(5))
            begun = options("train", ["--resume", str(tmp_path / "runs" / "x")])
        run = train(begun)
        (tmp_path / "runs").rename(tmp_path / kept)
        models.append(tmp_path / kept / run.name / "model.onnx")
    first, *others = (open_model(model).card for model in models)
    for model, card in zip(models[1:], others, strict=True):
        assert card.version == first.version
        assert graph(model) == graph(models[0])
    second = others[0]
    assert replace(first, provenance=replace(first.provenance, created=second.provenance.created)) == second
