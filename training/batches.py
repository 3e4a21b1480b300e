"""Batches of training images: shuffled by (seed, epoch), augmented by (seed, epoch, image), whoever prepares them."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training import augment
from training.config import TrainConfig

Key = tuple[int, int]  # epoch, image


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """The training split; `__getitems__` hands out a whole batch at once, which spares a call and a copy an image."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, config: TrainConfig) -> None:
        self.images = images
        self.labels = labels
        self.seed = config.seed
        self.transform = augment.policy(config.augment, config.channels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        indices = [index for _, index in keys]
        images = self.images[indices]
        if self.transform is not None:
            for row, (epoch, index) in enumerate(keys):
                images[row] = augment.apply(self.transform, images[row], self.seed, epoch, index)
        return torch.from_numpy(images), torch.from_numpy(self.labels[indices])


class _Batches(Sampler[list[Key]]):
    """The order of one epoch after another; a last batch that is not full is left out, unless it is the only one."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = min(batch_size, count)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, int(index)) for index in order[start : start + self.batch_size]]


class Batches:
    """Iterate one epoch: uint8 images `[batch, height, width, channels]` and int64 labels `[batch]`.

    `config` is a settled one.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, config: TrainConfig, *, pin_memory: bool) -> None:
        workers, batch_size = config.workers, config.batch_size
        assert workers is not None
        assert batch_size is not None
        self._sampler = _Batches(len(images), batch_size, config.seed)
        self._loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            _Images(images, labels, config),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=lambda batch: batch,
            pin_memory=pin_memory,
            worker_init_fn=_quiet_worker,
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `epoch`, the same ones however often and with however many workers it is asked for."""
        self._sampler.epoch = epoch
        return iter(self._loader)


def _quiet_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # workers share the cores with one another and with the training process
