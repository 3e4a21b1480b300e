"""Who may come in: an image for which there is no place or no memory is refused at once."""

from collections.abc import Callable
from types import TracebackType

MAX_BODIES = 16


class Overloaded(RuntimeError):
    """There is no room for this request now; trying again shortly is worth while."""


class Admission:
    """Counts what is inside, from the end of a body to its answer, and says no in time.

    `max_images` may be inside, which bounds the wait: so many times the time an image takes in full batches. A request
    of any number of images is let in when nobody else is there. Bodies take no more than 16 times `max_bytes` together.
    `observe` is told how many images are inside.

    Fewer under a lasting overload would keep answers as fast as lone ones, but batches small, and so the overload going
    when there is none any more.
    """

    def __init__(
        self, *, max_images: int, max_bytes: int, observe: Callable[[int], None] = lambda images: None
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes * MAX_BODIES
        self._observe = observe
        self._images = self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether no image more would be let in: then a request need not even be read."""
        return self._images >= self._max_images

    def place(self) -> "Place":
        """What one request takes, to be given back at its end: use it in a `with`."""
        return Place(self)

    def _enter(self, images: int) -> None:
        if self._images and self._images + images > self._max_images:
            raise Overloaded(f"{self._images} images are inside, at most {self._max_images} are let in")
        self._images += images
        self._observe(self._images)

    def _hold(self, size: int) -> None:
        if self._bytes + size > self._max_bytes:
            raise Overloaded(f"bodies of {self._bytes:,} bytes are in memory")
        self._bytes += size

    def _leave(self, images: int, size: int) -> None:
        self._bytes -= size
        if images:
            self._images -= images
            self._observe(self._images)


class Place:
    """One request's share of what is inside."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._images = self._bytes = 0

    def hold(self, size: int) -> None:
        """`size` more bytes of this request's body are in memory. Raises Overloaded."""
        self._admission._hold(size)
        self._bytes += size

    def enter(self, images: int) -> None:
        """Work begins on this request's images. Raises Overloaded."""
        self._admission._enter(images)
        self._images = images

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission._leave(self._images, self._bytes)
