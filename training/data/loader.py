"""Batches of training images. Seed and epoch determine the order; seed, epoch and batch determine the augmentation.

So batches do not depend on the number of processes that prepare them.
"""

import math
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from training.data import class_balance
from training.data.augmentation import opencv
from training.data.augmentation.draws import BatchPolicy
from training.data.resident import ResidentImages, fits
from training.distributed import ALONE, Group
from training.options.settled import SettledConfig
from training.signals import SIGNALS, end_with_parent
from training.storage import release

SHARED_MEMORY = "/dev/shm"  # noqa: S108
"""Where workers leave batches for the training process, on Linux; a mount, not a place for temporary files."""

Key = tuple[int, int, int]  # epoch, place in the epoch's order, image
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The images of a dataset, of which those at `indices` are trained on."""

    images: UInt8[np.ndarray, "images height width channels"] | Float32[np.ndarray, "images features"]
    labels: Int64[np.ndarray, " images"]
    indices: Int64[np.ndarray, " _"]


class _Images(Dataset[Batch]):
    """The images; `__getitems__` returns a whole batch, which saves a call and a copy for each image.

    With `policy` they are augmented a batch at a time, without it one by one, where the options ask for it.
    """

    def __init__(self, training_set: TrainingSet, config: SettledConfig, policy: BatchPolicy | None) -> None:
        self.images = training_set.images
        self.labels = training_set.labels
        self.seed = config.seed
        self.policy = policy
        self.transform = None
        if config.augment_on == "workers":
            from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

            self.transform = pipeline.policy(config)

    def __getitems__(self, keys: list[Key]) -> Batch:
        indices = [index for _, _, index in keys]
        images = self.images[indices]
        if self.policy is not None:
            batch_size, (epoch, first, _) = self.policy.batch_size, keys[0]
            draws = self.policy.draw(epoch, first // batch_size)
            opencv.change(images, draws.rows([place % batch_size for _, place, _ in keys]))
        if self.transform is not None:
            from training.data.augmentation import pipeline  # noqa: PLC0415 (imports Albumentations)

            for row, (epoch, place, _) in enumerate(keys):
                images[row] = pipeline.apply(self.transform, images[row], self.seed, epoch, place)
        batch = torch.from_numpy(images), torch.from_numpy(self.labels[indices])
        if get_worker_info() is not None:
            for part in batch:  # raises where memory is short; the queue would do it later, in a thread, unnoticed
                part.share_memory_()  # type: ignore[no-untyped-call]
        return batch


def augmented(
    images: UInt8[np.ndarray, "images height width channels"], config: SettledConfig, epoch: int
) -> UInt8[np.ndarray, "images height width channels"]:
    """The images as training would change them if they were the first batch of an epoch."""
    everything = np.arange(len(images))
    training_set = TrainingSet(images=images, labels=everything, indices=everything)
    changed, _ = _Images(training_set, config, BatchPolicy.of(config, len(images))).__getitems__(
        [(epoch, place, place) for place in range(len(images))]
    )
    return changed.numpy()


class _Order(Sampler[list[Key]]):
    """The keys of each batch of an epoch. An incomplete last batch is left out, unless it is the only one.

    Of each batch, a process draws its own part. Where images are mixed across processes, the image before its part
    (for the first part: the last image of the batch) comes first.
    """

    def __init__(self, training_set: TrainingSet, config: SettledConfig, group: Group) -> None:
        self.indices = training_set.indices
        self.labels = training_set.labels[self.indices]
        self.batch_size = min(config.batch_size, len(self.indices))
        shard = group.shard(self.batch_size)
        self.borrowed = int(group.size > 1 and config.mixes)
        self.places = range(shard.start - self.borrowed, shard.stop)
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
            yield [(self.epoch, batch[i], int(images[batch[i]])) for i in self.places]


class Batches:
    """Batches of uint8 images `[batch, height, width, channels]` and int64 labels `[batch]`.

    One batch at a time is copied from the mapped images, unless all stay on the GPU. The length is the number of
    optimizer steps in an epoch. Order and augmentation do not depend on the number of processes that share the batches.
    At the end of `with batches:` all workers have ended.
    """

    def __init__(
        self, training_set: TrainingSet, config: SettledConfig, device: torch.device, group: Group = ALONE
    ) -> None:
        self._accumulate = config.accumulate
        self._images = training_set.images
        self._order = _Order(training_set, config, group)
        self._other_children: set[BaseProcess] = set()
        gpu = device.type == "cuda"
        self._resident: ResidentImages | None = None
        if fits(training_set.images, training_set.indices, config, device):
            self._resident = ResidentImages(training_set.images, training_set.labels, training_set.indices, device)
        policy = BatchPolicy.of(config, self.size)
        self.policy = policy if gpu else None
        """What is left to do on the GPU that trains."""
        self._loader: DataLoader[Batch] = DataLoader(
            _Images(training_set, config, None if gpu else policy),
            batch_sampler=self._order,
            num_workers=config.workers,
            collate_fn=lambda batch: batch,
            pin_memory=gpu,
            worker_init_fn=_begin_worker,
            timeout=config.worker_timeout if config.workers else 0,
            persistent_workers=config.workers > 0,
            generator=torch.Generator(),  # the default one would change the draws of dropout
        )

    def __enter__(self) -> None:
        if self._loader.num_workers:
            get_temp_dir()  # workers inherit it; their own ones, with a socket in each, would outlive them
        self._other_children = set(multiprocessing.active_children())

    def __exit__(self, *_: object) -> None:
        """Kill the workers. They hold nothing that has to be saved.

        A stopped worker reacts to SIGKILL alone, and an orderly end would take time that SIGTERM does not leave.
        """
        torch_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises an error for a killed worker
        workers = [child for child in multiprocessing.active_children() if child not in self._other_children]
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
        signal.signal(signal.SIGCHLD, torch_handler)

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._accumulate)

    @property
    def size(self) -> int:
        """Images in a batch of all processes together."""
        return self._order.batch_size

    @property
    def rows(self) -> list[int]:
        """The places in a batch of the images that this process gets, the borrowed ones first."""
        return list(self._order.places)

    @property
    def borrowed(self) -> int:
        """Images at the start of each part that belong to another part; they serve the mixing of their neighbour."""
        return self._order.borrowed

    def images(self, epoch: int, step: int) -> list[int]:
        """The images of a step, for all processes together."""
        size = self._accumulate * self.size
        return [int(image) for image in self._order.images(epoch)[step * size : (step + 1) * size]]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of an epoch from step `first_step` on, in lists of --accumulate; the last may be shorter.

        A second call with any number of workers yields the same.
        """
        self._order.epoch, self._order.first = epoch, first_step * self._accumulate
        try:
            batches = iter(self._loader) if self._resident is None else self._on_device(self._resident)
        except OSError as error:  # raised for the locks that workers share
            raise OSError(error.errno, error.strerror, SHARED_MEMORY) from error
        while step := list(islice(batches, self._accumulate)):
            yield step
        release(self._images)  # else, in the end, all images would count as memory of this process

    def _on_device(self, resident: ResidentImages) -> Iterator[Batch]:
        for keys in self._order:
            yield resident.batch([image for *_, image in keys])


def _begin_worker(worker: int) -> None:
    """A signal to the whole process group leaves the last step to the trainer. When the trainer ends, so do workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    cv2.setNumThreads(0)  # workers share the cores with one another and with the training process
