"""Batches of training images: drawn by (seed, epoch), augmented by (seed, epoch, place), whoever prepares them."""

import math
import multiprocessing
import signal
from collections.abc import Iterator
from itertools import islice
from multiprocessing.process import BaseProcess

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from training.data import augmentation, class_balance
from training.distributed import ALONE, Group
from training.settled import SettledConfig
from training.signals import SIGNALS, end_with_parent
from training.storage import release

SHARED_MEMORY = "/dev/shm"  # noqa: S108
"""Where batches are handed over; a mount, not a place for temporary files."""

Key = tuple[int, int, int]  # epoch, place in the epoch's order, image
Batch = tuple[Tensor, Tensor]


class _Images(Dataset[Batch]):
    """All images; `__getitems__` hands out a whole batch at once, which spares a call and a copy an image."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, config: SettledConfig) -> None:
        self.images = images
        self.labels = labels
        self.seed = config.seed
        self.transform = augmentation.policy(config)

    def __getitems__(self, keys: list[Key]) -> Batch:
        indices = [index for _, _, index in keys]
        images = self.images[indices]
        if self.transform is not None:
            for row, (epoch, place, _) in enumerate(keys):
                images[row] = augmentation.apply(self.transform, images[row], self.seed, epoch, place)
        batch = torch.from_numpy(images), torch.from_numpy(self.labels[indices])
        if get_worker_info() is not None:
            for part in batch:  # where a lack of room is an error; on the way through the queue it would be a silence
                part.share_memory_()  # type: ignore[no-untyped-call]
        return batch


class _Order(Sampler[list[Key]]):
    """The order of one epoch after another; a last batch that is not full is left out, unless it is the only one.

    Of each batch, the part of this process; where images are mixed, after the one before it, or the last.
    """

    def __init__(self, indices: np.ndarray, labels: np.ndarray, config: SettledConfig, group: Group) -> None:
        self.indices = indices
        self.labels = labels[indices]
        self.batch_size = min(config.batch_size, len(indices))
        part = group.part(self.batch_size)
        self.borrowed = int(group.size > 1 and config.mixes)
        self.part = range(part.start - self.borrowed, part.stop)
        self.balanced = config.balance == "sampler"
        self.seed = config.seed
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def images(self, epoch: int) -> np.ndarray:
        """The image at each place of an epoch's order."""
        rng = np.random.default_rng((self.seed, epoch))
        order = class_balance.order(self.labels, rng) if self.balanced else rng.permutation(len(self.labels))
        return self.indices[order[: len(self) * self.batch_size]]

    def __iter__(self) -> Iterator[list[Key]]:
        images = self.images(self.epoch)
        for start in range(self.first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            batch = range(start, start + self.batch_size)
            yield [(self.epoch, batch[i], int(images[batch[i]])) for i in self.part]


class Batches:
    """Iterate one epoch: batches of uint8 images `[batch, height, width, channels]` and int64 labels `[batch]`.

    Of the images `indices`, a batch at a time is copied. The length is the number of the
    optimizer's steps in an epoch. Order and augmentation are the same however many processes share the batches. With
    `with batches:` workers end when it does, not some time after.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        config: SettledConfig,
        *,
        pin_memory: bool,
        group: Group = ALONE,
    ) -> None:
        self._accumulate = config.accumulate
        self._images = images
        self._order = _Order(indices, labels, config, group)
        self._not_ours: set[BaseProcess] = set()
        self._loader: DataLoader[Batch] = DataLoader(
            _Images(images, labels, config),
            batch_sampler=self._order,
            num_workers=config.workers,
            collate_fn=lambda batch: batch,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            timeout=config.worker_timeout if config.workers else 0,
            persistent_workers=config.workers > 0,
            generator=torch.Generator(),  # so that it takes no draw from the one that dropout uses
        )

    def __enter__(self) -> None:
        self._not_ours = set(multiprocessing.active_children())

    def __exit__(self, *_: object) -> None:
        """Kill the workers: nothing is lost with them, one that was stopped takes no other signal, and waiting until
        they end by themselves would take of the seconds that SIGTERM leaves.
        """
        of_torch = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # it would make an error of a worker that is killed
        workers = [child for child in multiprocessing.active_children() if child not in self._not_ours]
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
        signal.signal(signal.SIGCHLD, of_torch)

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._accumulate)

    @property
    def size(self) -> int:
        """Images a batch, of all processes together."""
        return self._order.batch_size

    @property
    def borrowed(self) -> int:
        """Images at the head of each part that belong to another one, here to be mixed with their neighbour."""
        return self._order.borrowed

    def images(self, epoch: int, step: int) -> list[int]:
        """Which images a step sees, those of all processes together."""
        size = self._accumulate * self.size
        return [int(image) for image in self._order.images(epoch)[step * size : (step + 1) * size]]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """The batches of epoch `epoch` from a step on, in lists of --accumulate; the last list may be shorter.

        The same ones however often and with however many workers it is asked for.
        """
        self._order.epoch, self._order.first = epoch, first_step * self._accumulate
        try:
            batches = iter(self._loader)
        except OSError as error:  # of the locks that workers share
            raise OSError(error.errno, error.strerror, SHARED_MEMORY) from error
        while step := list(islice(batches, self._accumulate)):
            yield step
        release(self._images)  # in the end, all of them would count as this process's memory


def _begin_worker(worker: int) -> None:
    """Whoever stops the whole group leaves the last step to the trainer; once that one ends, so does its worker."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    cv2.setNumThreads(0)  # workers share the cores with one another and with the training process
