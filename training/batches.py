"""Batches of training images: drawn by (seed, epoch), augmented by (seed, epoch, place), whoever prepares them."""

import atexit
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training import augment, balance
from training.config import TrainConfig
from training.interruption import SIGNALS

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

Key = tuple[int, int, int]  # epoch, place in the epoch's order, image
Batch = tuple[Tensor, Tensor]


class _Images(Dataset[Batch]):
    """All images; `__getitems__` hands out a whole batch at once, which spares a call and a copy an image."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, config: TrainConfig) -> None:
        self.images = images
        self.labels = labels
        self.seed = config.seed
        self.transform = augment.policy(config.augment, config.channels)

    def __getitems__(self, keys: list[Key]) -> Batch:
        indices = [index for _, _, index in keys]
        images = self.images[indices]
        if self.transform is not None:
            for row, (epoch, place, _) in enumerate(keys):
                images[row] = augment.apply(self.transform, images[row], self.seed, epoch, place)
        return torch.from_numpy(images), torch.from_numpy(self.labels[indices])


class _Order(Sampler[list[Key]]):
    """The order of one epoch after another; a last batch that is not full is left out, unless it is the only one."""

    def __init__(self, indices: np.ndarray, labels: np.ndarray, batch_size: int, config: TrainConfig) -> None:
        self.indices = indices
        self.labels = labels[indices]
        self.batch_size = min(batch_size, len(indices))
        self.balanced = config.balance == "sampler"
        self.seed = config.seed
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = balance.order(self.labels, rng) if self.balanced else rng.permutation(len(self.labels))
        for start in range(self.first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            places = range(start, start + self.batch_size)
            yield [(self.epoch, place, int(self.indices[order[place]])) for place in places]


class Batches:
    """Iterate one epoch: batches of uint8 images `[batch, height, width, channels]` and int64 labels `[batch]`.

    Of the images `indices`, a batch at a time is copied. `config` is a settled one. The length is the number of the
    optimizer's steps in an epoch.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray, config: TrainConfig, *, pin_memory: bool
    ) -> None:
        workers, batch_size = config.workers, config.batch_size
        assert workers is not None
        assert batch_size is not None
        self._accumulate = config.accumulate
        self._order = _Order(indices, labels, batch_size, config)
        ending = multiprocessing.Event()
        atexit.register(ending.set)  # runs before multiprocessing's own, which asks workers to end and waits for them
        self._loader: DataLoader[Batch] = DataLoader(
            _Images(images, labels, config),
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=lambda batch: batch,
            pin_memory=pin_memory,
            worker_init_fn=partial(_begin_worker, ending),
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # so that it takes no draw from the one that dropout uses
        )

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._accumulate)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """The batches of epoch `epoch` from a step on, in lists of --accumulate; the last list may be shorter.

        The same ones however often and with however many workers it is asked for.
        """
        self._order.epoch, self._order.first = epoch, first_step * self._accumulate
        batches = iter(self._loader)
        while step := list(islice(batches, self._accumulate)):
            yield step


def _begin_worker(ending: "Event", worker: int) -> None:
    """Whoever stops the whole group leaves the last step to the trainer; once that one ends, so does its worker."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(0) if ending.is_set() else None)
    cv2.setNumThreads(0)  # workers share the cores with one another and with the training process
