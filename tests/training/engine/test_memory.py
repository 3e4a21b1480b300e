import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trainer import run_of
from training import train
from training.distributed import ALONE
from training.engine.memory import fitting_batch
from training.engine.train_state import RunContext
from training.options.config import TrainConfig
from training.signals import Interruption

LIMIT = int(2.4 * 2**30)
"""Bytes of address space: of a step of 64 images of 224 px a ResNet-18 keeps about 1.5 GiB, and the libraries alone
take more than 1 GiB."""


def started(photos: Path, out: Path, **given: Any) -> tuple[RunContext, torch.nn.Sequential]:
    config = TrainConfig(data=photos, out=out, name="x", width=8, image_size=16, batch_size=16, **given)
    context = train.load(config, torch.device("cpu"), ALONE, Interruption())
    return context, train.start(context)


def test_no_batch_size_is_named_where_the_whole_batch_fits_or_none_does(photos: Path, tmp_path: Path) -> None:
    context, model = started(photos, tmp_path)
    before = [parameter.clone() for parameter in model.parameters()]
    assert fitting_batch(model, context) is None, "something else took the memory"
    assert all(map(torch.equal, model.parameters(), before))
    assert all(parameter.grad is None for parameter in model.parameters())
    huge = replace(context.dataset.preprocessing, height=10**7, width=10**7)
    dataset = replace(context.dataset, preprocessing=huge)
    assert fitting_batch(model, replace(context, dataset=dataset)) is None


@pytest.mark.alone
@pytest.mark.long
def test_the_batch_size_that_is_named_fits(photos: Path, tmp_path: Path) -> None:
    """Under a limit a run fails with 5 and names a smaller batch size, and a run with that one trains."""
    options = ["--data", str(photos), "--model", "resnet18", "--weights", "none", "--image-size", "224"]
    options += ["--epochs", "1", "--workers", "0", "--augment", "none", "--precision", "float32", "--ema", "0.9"]

    def limited(name: str, batch_size: int) -> Any:
        named = ["--out", str(tmp_path), "--name", name, "--batch-size", str(batch_size)]
        return run_of([*options, *named], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)))

    failed = limited("large", 64)
    assert failed.returncode == 5, failed.stderr
    assert "Traceback" not in failed.stderr
    [fits] = map(int, re.findall(r"^--batch-size (\d+) fits: it was tried$", failed.stderr, re.MULTILINE))
    assert 1 <= fits < 64
    done = limited("small", fits)
    assert done.returncode == 0, done.stderr
    assert "Parity held" in done.stdout
