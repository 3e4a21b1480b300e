"""Admission control: a request for whose images or bytes there is no room is refused at once."""

from collections.abc import Callable
from types import TracebackType

from serving.inference.batching import Overloaded

MAX_BODIES = 16
"""The memory for bodies, in largest files."""


class Admission:
    """Counts images and bytes from the end of a request's body to its answer, and refuses what exceeds the limits.

    At most `max_images` are admitted at a time. This bounds the wait: `max_images` times an image's share of a full
    batch. A request with more images than that is admitted when no other is. All bodies together take at most
    MAX_BODIES times `max_bytes`, and those of several images half of it: four of these that stall would fill it, so
    that no other client could send an image. `observe` gets the number of admitted images after each change.

    A smaller limit during an overload would keep answers fast, but make batches small: the overload would last longer
    than the load that caused it.
    """

    def __init__(
        self, *, max_images: int, max_bytes: int, observe: Callable[[int], None] = lambda images: None
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes * MAX_BODIES
        self._observe = observe
        self._images = self._bytes = self._batch_bytes = 0

    @property
    def crowded(self) -> bool:
        """Whether bodies take more than half of their memory; one that stalls then has to go sooner."""
        return self._bytes > self._max_bytes // 2

    @property
    def full(self) -> bool:
        """Whether no further image would be admitted; a request then need not be read."""
        return self._images >= self._max_images

    def reserve(self, *, batch: bool = False) -> "Reservation":
        """One request's share, for a `with` statement: at its end all is released. `batch`: it has several images."""
        return Reservation(self, batch)

    def _add_images(self, images: int) -> None:
        if self._images and self._images + images > self._max_images:
            raise Overloaded(f"{self._images} images are admitted, at most {self._max_images} may be")
        self._images += images
        self._observe(self._images)

    def _add_bytes(self, size: int, batch: bool) -> None:
        if self._bytes + size > self._max_bytes:
            raise Overloaded(f"bodies of {self._bytes:,} bytes are in memory")
        if batch and self._batch_bytes + size > self._max_bytes // 2:
            raise Overloaded(f"bodies of several images, {self._batch_bytes:,} bytes, are in memory")
        self._bytes += size
        self._batch_bytes += size * batch

    def _release(self, images: int, size: int, batch: bool) -> None:
        self._bytes -= size
        self._batch_bytes -= size * batch
        if images:
            self._images -= images
            self._observe(self._images)


class Reservation:
    """The images and bytes that one request has been admitted with."""

    def __init__(self, admission: Admission, batch: bool) -> None:
        self._admission = admission
        self._batch = batch
        self._images = self._bytes = 0

    @property
    def crowded(self) -> bool:
        """As that of the admission."""
        return self._admission.crowded

    def add_bytes(self, size: int) -> None:
        """Reserve memory for `size` more bytes of the request's body. Raises Overloaded."""
        self._admission._add_bytes(size, self._batch)
        self._bytes += size

    def add_images(self, images: int) -> None:
        """Admit the request's images; called once, when its body is complete. Raises Overloaded."""
        self._admission._add_images(images)
        self._images += images

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission._release(self._images, self._bytes, self._batch)
