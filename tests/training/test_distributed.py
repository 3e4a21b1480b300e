"""Several processes that train one model: what each takes, and that together they are as one."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._C._distributed_c10d import HashStore

from serving.contract.decode import Preprocessing
from tests.support.checkpoints import furthest, last
from tests.support.configs import settled
from tests.support.jobs import DistributedJob, done, read_until, trainers_of
from tests.support.server import free_port
from training.__main__ import main
from training.data.loader import Batches, TrainingSet
from training.distributed import COLLECTIVE_TIMEOUT, NCCL_TIMEOUT, Group, set_collective_timeout
from training.engine.mixup import Mixing
from training.errors import ConfigError
from training.models import networks, prediction
from training.models.normalization import normalization
from training.options.config import TrainConfig
from training.options.settled import ProcessCounts

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (62, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(62) % 3
ENDS_WITHIN_S = 60


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_parts_are_all_places_once_and_alike_in_length(size: int) -> None:
    for count in (size, 13, 64):
        parts = [Group(rank=rank, size=size).shard(count) for rank in range(size)]
        assert [place for part in parts for place in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_kind_of_device_gets_a_limit_of_its_own() -> None:
    """Of the two backends of a process with a GPU, NCCL's wait is limited; here gloo stands for it."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
    try:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
        assert backend.options._timeout == timedelta(hours=6)
        set_collective_timeout("cpu", NCCL_TIMEOUT)
        assert backend.options._timeout == timedelta(minutes=10)
    finally:
        dist.destroy_process_group()


def batches(size: int, rank: int, **given: object) -> Batches:
    options: dict[str, Any] = {"batch_size": 12, "augment": "strong", "workers": 0, "seed": 7}
    config = settled(TrainConfig(**(options | given)), image_size=16, training_images=60)
    return Batches(
        TrainingSet(images=IMAGES, labels=LABELS, indices=np.arange(2, 62)),
        config,
        torch.device("cpu"),
        group=Group(rank=rank, size=size),
    )


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_the_parts_of_all_processes_are_the_batches_of_one(size: int, balance: str) -> None:
    """To the last pixel, augmented, in order, also from a step on: so a run can go on with another number of them."""
    alone = batches(1, 0, balance=balance)
    together = [batches(size, rank, balance=balance) for rank in range(size)]
    for epoch, first in ((0, 0), (1, 0), (1, 3)):
        whole = list(alone.epoch(epoch, first))
        parts = [list(process.epoch(epoch, first)) for process in together]
        assert len(whole) == 5 - first
        for step, [(images, labels)] in enumerate(whole):
            assert torch.equal(torch.cat([process[step][0][0] for process in parts]), images)
            assert torch.equal(torch.cat([process[step][0][1] for process in parts]), labels)


def test_every_training_image_is_seen_once_an_epoch_by_one_process() -> None:
    seen: Counter[bytes] = Counter()
    for rank in range(3):
        for [(images, _)] in batches(3, rank, augment="none").epoch(4):
            seen.update(image.tobytes() for image in images.numpy())
    assert seen == Counter(image.tobytes() for image in IMAGES[2:])


@pytest.mark.parametrize("size", [2, 5])
def test_images_are_mixed_with_the_neighbours_they_have_in_the_whole_batch(size: int) -> None:
    mixing = {"classes": 3, "seed": 0, "mixup": 0.4, "cutmix": 1.0}
    options = {"mixup": 0.4, "cutmix": 1.0}
    parts = [batches(size, rank, **options) for rank in range(size)]
    for step, [(images, labels)] in enumerate(batches(1, 0, **options).epoch(0)):
        mixed = [
            Mixing(**mixing, borrowed=own.borrowed)(*next(own.epoch(0, step))[0], 0, step, 0)  # type: ignore[arg-type]
            for own in parts
        ]
        expected = Mixing(**mixing)(images, labels, 0, step, 0)  # type: ignore[arg-type]
        assert torch.equal(torch.cat([images for images, _ in mixed]), expected[0])
        assert torch.equal(torch.cat([targets for _, targets in mixed]), expected[1])


def test_a_batch_with_too_few_images_to_share_is_refused_with_both_numbers() -> None:
    sizes = {"image_size": 16, "training_images": 100}
    with pytest.raises(ConfigError, match=r"--batch-size: expected 4 or more images for 4 processes to share, got 3"):
        settled(TrainConfig(batch_size=3), **sizes, processes=ProcessCounts(4))
    with pytest.raises(ConfigError, match="expected 8 or more images for 4 processes to share, got 7"):
        settled(TrainConfig(batch_size=7, model="mlp", batch_norm=True), **sizes, processes=ProcessCounts(4))
    assert settled(TrainConfig(batch_size=7), **sizes, processes=ProcessCounts(4)).batch_size == 7
    cores = len(os.sched_getaffinity(0))
    assert settled(TrainConfig(), **sizes, processes=ProcessCounts(2, cores)).workers == 0, "no core is left for them"


def test_a_part_of_no_images_has_no_answers() -> None:
    config = settled(TrainConfig(width=8), image_size=16, training_images=60)
    size = Preprocessing(height=16, width=16, channels=3, interpolation="area")
    model = networks.build(config, size, normalization(config, IMAGES, np.arange(62)), 3)
    assert prediction.predict(model, IMAGES, np.arange(0)).shape == (0, 3)


def test_a_meeting_without_an_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(["--name", "x"]) == 2
    assert "MASTER_ADDR expected, but not set" in capsys.readouterr().err


# From here on with processes of their own, which together take the two cores.


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 handwritten digits with splits of their own, each twice as wide and high as it was."""
    images = np.repeat(np.repeat((load_digits().images[:1000] * 255 / 16).astype(np.uint8), 2, axis=1), 2, axis=2)
    labels = load_digits().target[:1000]
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    bounds = {"train": slice(0, 701), "val": slice(701, 851), "test": slice(851, 1000)}
    parts: dict[str, Any] = {f"{split}_{name}": array[rows] for split, rows in bounds.items()
             for name, array in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(path, **parts)
    return path


@pytest.fixture
def job() -> Iterator[DistributedJob]:
    with DistributedJob() as started:
        yield started


def curve(run: Path) -> np.ndarray:
    return np.array([[line["train_loss"], line["val_loss"]] for line in last(run)["progress"]["history"]])


def arguments(data: Path, out: Path, name: str, *more: str) -> list[str]:
    common = ["--data", str(data), "--out", str(out), "--name", name, "--cache", str(out / "cache")]
    return [*common, "--precision", "float32", "--epochs", "3", *more]


SAME_WEIGHTS = 1e-4
"""Sums over parts of a batch are rounded in another order than sums over all of it. By SGD: where a gradient is little
more than rounding, as of a nearly dead unit, AdamW divides it by its own size; weights then differed by 9e-4."""
# A batch of 45 is 22 and 23, the last step of an epoch has one batch of two.
EXACT = ["--width", "8", "--no-batch-norm", "--batch-size", "45", "--accumulate", "2", "--balance", "loss",
         "--optimizer", "sgd",
         "--ema", "0.9", "--clip-norm", "1", "--mixup", "0.4", "--cutmix", "1", "--label-smoothing", "0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def one_process(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by one process of what is exact, with augmentation."""
    out = tmp_path_factory.mktemp("one")
    assert main(arguments(digits, out, "one", *EXACT)) == 0
    return out / "one"


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    digits: Path, tmp_path: Path, one_process: Path, job: DistributedJob
) -> None:
    """The curve to 1e-5 and the weights to 1e-4, in float32; one of them prints and writes."""
    printed = done(job.torchrun(*arguments(digits, tmp_path, "two", *EXACT)))
    assert np.abs(curve(tmp_path / "two") - curve(one_process)).max() < 1e-5
    assert furthest(tmp_path / "two", one_process) < SAME_WEIGHTS
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    assert "in each of 2 processes" in printed
    assert printed.count("Parity held") == 1
    assert "Warning" not in printed
    events = list((tmp_path / "two" / "tensorboard").iterdir())
    assert len(events) == 1
    board = EventAccumulator(str(events[0])).Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [1, 2, 3]
    assert not [path for path in (tmp_path / "two").rglob(".*") if path.name != ".lock"]


@pytest.mark.long
def test_two_processes_learn_what_one_does_where_layers_stand_still_at_first(
    digits: Path, tmp_path: Path, job: DistributedJob
) -> None:
    """By SGD: AdamW's first step of a weight is the sign of its gradient, also where that is but rounding."""
    options = ["--model", "mlp", "--hidden", "16", "--optimizer", "sgd", "--freeze-epochs", "1", "--accumulate", "2"]
    assert main(arguments(digits, tmp_path, "one", *options)) == 0
    done(job.torchrun(*arguments(digits, tmp_path, "two", *options)))
    assert np.abs(curve(tmp_path / "two") - curve(tmp_path / "one")).max() < 1e-5
    assert furthest(tmp_path / "two", tmp_path / "one") < 1e-5


@pytest.mark.long
def test_asked_to_stop_they_save_and_one_process_continues(
    digits: Path, tmp_path: Path, one_process: Path, job: DistributedJob
) -> None:
    """SIGTERM to torchrun; the weights in the end are those of a run that one process made, never stopped."""
    options = arguments(digits, tmp_path, "x", *EXACT)
    torchrun = job.torchrun(*options)
    read_until(torchrun, "epoch 1/3")
    torchrun.terminate()
    printed = done(torchrun, code=1)
    assert printed.count("stopped by SIGTERM; a run continues with --resume") == 1
    assert "epoch 3/3" not in printed
    assert main([*options, "--resume", "auto"]) == 0
    assert furthest(tmp_path / "x", one_process) < SAME_WEIGHTS
    assert np.abs(curve(tmp_path / "x") - curve(one_process)).max() < 1e-5


@pytest.mark.long
def test_a_killed_process_is_replaced_and_the_run_finished(
    digits: Path, tmp_path: Path, one_process: Path, job: DistributedJob
) -> None:
    torchrun = job.torchrun(
        *arguments(digits, tmp_path, "x", *EXACT, "--resume", "auto"), options=("--max-restarts=1",)
    )
    read_until(torchrun, "epoch 2/3")  # so that there is the checkpoint of the first
    os.kill(trainers_of(torchrun)[0], signal.SIGKILL)
    printed = done(torchrun)
    assert f"resume {tmp_path / 'x'}" in printed
    assert furthest(tmp_path / "x", one_process) < SAME_WEIGHTS


@pytest.mark.long
def test_a_killed_process_ends_the_others_and_the_next_job_continues(
    digits: Path, tmp_path: Path, job: DistributedJob
) -> None:
    options = arguments(digits, tmp_path, "x", "--model", "mlp", "--epochs", "1000", "--patience", "1000")
    torchrun = job.torchrun(*options)
    read_until(torchrun, "epoch  ")
    first, second = trainers_of(torchrun)
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    printed = done(torchrun, code=1)
    assert time.monotonic() - killed < ENDS_WITHIN_S
    assert not Path(f"/proc/{first}").exists()
    assert printed.count("error: ") + printed.count("stopped by SIGTERM; ") <= 1
    assert "(SIGKILL)" in printed or "-9" in printed
    again = job.torchrun(*options, "--resume", "auto")
    assert f"resume {tmp_path / 'x'}" in read_until(again, "epoch ")
    again.terminate()
    done(again, code=1)


@pytest.mark.long
def test_with_all_that_differs_by_process_they_learn_as_well(digits: Path, tmp_path: Path, job: DistributedJob) -> None:
    """Augmentation, dropout, and batch normalisation, which on CPUs measures parts of batches: within 5 points."""
    levers = ["--augment", "light", "--dropout", "0.2", "--width", "16", "--epochs", "6"]
    assert main(arguments(digits, tmp_path, "one", *levers)) == 0
    done(job.torchrun(*arguments(digits, tmp_path, "two", *levers)))
    one, two = (last(tmp_path / name)["progress"]["history"][-1] for name in ("one", "two"))
    assert one["val_accuracy"] > 0.85
    assert abs(two["val_accuracy"] - one["val_accuracy"]) < 0.05
    assert abs(two["train_loss"] - one["train_loss"]) < 0.1


@pytest.mark.long
def test_two_machines_that_meet_by_rendezvous(
    digits: Path, tmp_path: Path, one_process: Path, job: DistributedJob
) -> None:
    meeting = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=x")
    options = arguments(digits, tmp_path, "x", *EXACT)
    nodes = [job.torchrun(*options, processes=1, options=meeting) for _ in range(2)]
    printed = [done(node) for node in nodes]
    assert sum("Parity held" in each for each in printed) == 1
    assert furthest(tmp_path / "x", one_process) < SAME_WEIGHTS


@pytest.mark.long
def test_without_torchrun_exit_codes_are_kept_and_one_says_why(
    digits: Path, tmp_path: Path, job: DistributedJob
) -> None:
    """Refused data, a loss that is not finite, and SIGTERM to one process of two: both end alike, with one message."""
    missing = [done(process, code=3) for process in job.plain(*arguments(tmp_path / "nowhere", tmp_path, "absent"))]
    assert sum(each.count("error: ") for each in missing) == 1
    assert not (tmp_path / "absent").exists()
    unknown = arguments(digits, tmp_path, "unknown", "--floor", "sensitivity:zz=0.9")
    refused = [done(process, code=2) for process in job.plain(*unknown)]
    assert sum(each.count("there is no class 'zz'") for each in refused) == 1
    wild = arguments(digits, tmp_path, "wild", "--model", "mlp", "--optimizer", "sgd", "--lr", "1e30")
    diverged = [done(process, code=4) for process in job.plain(*wild)]
    assert sum(each.count("error: the loss is") for each in diverged) == 1
    options = arguments(digits, tmp_path, "x", "--model", "mlp", "--epochs", "1000", "--patience", "1000")
    first, second = job.plain(*options)
    read_until(first, "epoch  ")
    second.terminate()
    stopped = done(first, code=143) + done(second, code=143)
    assert stopped.count("stopped by SIGTERM") == 1
    assert last(tmp_path / "x")["progress"]["history"]


@pytest.mark.long
def test_one_process_under_torchrun_is_as_one_without(
    digits: Path, tmp_path: Path, one_process: Path, job: DistributedJob
) -> None:
    done(job.torchrun(*arguments(digits, tmp_path, "x", *EXACT), processes=1))
    assert furthest(tmp_path / "x", one_process) == 0.0
