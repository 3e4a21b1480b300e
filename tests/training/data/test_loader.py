import itertools
import multiprocessing
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.contract.decode import Channels
from tests.support.configs import settled
from training.data.augmentation import pipeline
from training.data.loader import Batches, TrainingSet
from training.options.choices import Policy
from training.options.config import TrainConfig
from training.options.settled import SettledConfig

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(50)
ALL = TrainingSet(images=IMAGES, labels=LABELS, indices=LABELS)


def config(**options: Any) -> SettledConfig:
    return settled(TrainConfig(**options), image_size=16, training_images=len(IMAGES))


def drawn(epoch: int, labels: np.ndarray = LABELS, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batches = Batches(replace(ALL, labels=labels), config(batch_size=8, **options), torch.device("cpu"))
    images, drawn_labels = zip(*(batch for step in batches.epoch(epoch) for batch in step), strict=True)
    return torch.cat(images), torch.cat(drawn_labels)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than there are cores
@pytest.mark.parametrize("policy", ["light", "strong"])
def test_any_number_of_workers_draws_the_same(policy: str) -> None:
    reference = drawn(3, augment=policy, workers=0)
    for workers in (1, 2, 4, 8):
        assert all(map(torch.equal, drawn(3, augment=policy, workers=workers), reference))


def test_every_seed_epoch_and_image_draws_its_own() -> None:
    transform = pipeline.policy(TrainConfig(augment="light"))
    keys = itertools.product((0, 1), (0, 1), range(50))
    results = [pipeline.apply(transform, IMAGES[0], *key).tobytes() for key in keys]
    changed = [result for result in results if result != IMAGES[0].tobytes()]
    assert len(changed) > 100
    assert len(set(changed)) == len(changed)


def test_an_epoch_holds_every_image_once_but_the_rest_of_the_last_batch() -> None:
    _, first = drawn(0, augment="none")
    _, second = drawn(1, augment="none")
    assert len(first) == len(set(first.tolist())) == 48
    assert not torch.equal(first, second)


def test_without_augmentation_the_images_are_left_alone() -> None:
    images, labels = drawn(0, augment="none")
    assert np.array_equal(images.numpy(), IMAGES[labels.numpy()])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["light", "strong"])
def test_policies_keep_size_type_and_the_original(policy: Policy, channels: Channels) -> None:
    transform = pipeline.policy(TrainConfig(augment=policy, channels=channels, symmetry="square"))
    original = IMAGES[0, ..., :channels].copy()
    for epoch in range(30):
        changed = pipeline.apply(transform, original, 0, epoch, 0)
        assert changed.shape == original.shape
        assert changed.dtype == np.uint8
    assert np.array_equal(original, IMAGES[0, ..., :channels])


def test_only_what_is_drawn_is_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.repeat(IMAGES, 500, axis=0))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    chosen = np.arange(0, len(images), 2)
    training_set = TrainingSet(images=images, labels=np.arange(len(images)), indices=chosen)
    batches = Batches(training_set, config(batch_size=64, augment="none"), torch.device("cpu"))
    tracemalloc.start()
    for [(drawn_images, labels)] in batches.epoch(0):
        assert np.array_equal(drawn_images, images[labels])
        assert not (labels % 2).any()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes / 4


def test_workers_end_with_the_batches_and_no_other_process_does() -> None:
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    batches = Batches(ALL, config(batch_size=8, workers=2), torch.device("cpu"))
    with batches:
        next(batches.epoch(0))
        workers = set(multiprocessing.active_children()) - {other}
        assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)
    assert other.is_alive()
    other.kill()
    other.join()


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    options = config(batch_size=64, augment="none")
    [[(images, _)]] = Batches(ALL, options, torch.device("cpu")).epoch(0)
    assert len(images) == 50


@pytest.mark.parametrize("accumulate", [1, 2, 4, 9])
def test_batches_come_in_steps_and_the_last_step_may_be_shorter(accumulate: int) -> None:
    options = config(batch_size=8, accumulate=accumulate, augment="none")
    batches = Batches(ALL, options, torch.device("cpu"))
    steps = list(batches.epoch(0))
    assert len(steps) == len(batches)
    assert [len(step) for step in steps] == {1: [1] * 6, 2: [2, 2, 2], 4: [4, 2], 9: [6]}[accumulate]
    together = torch.cat([labels for step in steps for _, labels in step])
    assert torch.equal(together, drawn(0, augment="none")[1]), "the same batches, however they are put together"
    named = [LABELS[batches.images(0, step)].tolist() for step in range(len(batches))]
    assert named == [torch.cat([labels for _, labels in step]).tolist() for step in steps]


def test_the_sampler_balances_the_classes_for_any_number_of_workers() -> None:
    labels = np.repeat([0, 1, 2], [38, 8, 4])
    reference = drawn(3, labels, balance="sampler", augment="light", workers=0)
    assert np.abs(np.bincount(reference[1]) - 16).max() <= 2
    for workers in (1, 2):
        again = drawn(3, labels, balance="sampler", augment="light", workers=workers)
        assert all(map(torch.equal, again, reference))
    assert not torch.equal(drawn(4, labels, balance="sampler", augment="light")[1], reference[1])


def test_an_image_that_is_drawn_twice_is_augmented_anew() -> None:
    labels = np.repeat([0, 1], [48, 2])
    images, drawn_labels = drawn(0, labels, balance="sampler", augment="strong")
    rare = images[drawn_labels == 1].flatten(1)
    assert len(rare) >= 20
    originals = torch.from_numpy(IMAGES[48:]).flatten(1)
    changed = rare[(rare[:, None] != originals).any(2).all(1)]
    assert len(torch.unique(changed, dim=0)) == len(changed) > len(rare) / 2
