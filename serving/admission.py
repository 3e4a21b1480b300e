"""Who may come in: an image that would only wait in vain, or for which there is no memory, is refused at once."""

from collections.abc import Callable
from time import monotonic
from types import TracebackType

BURST_S = 1.0
BURST_WAIT_S = 0.5
CALM_S = 0.1
MAX_BODIES = 16
SMOOTHING = 1 / 128


class Overloaded(RuntimeError):
    """There is no room for this request now; trying again shortly is worth while."""


class Admission:
    """Counts what is inside, from the first byte of a body to its answer, and says no in time.

    What comes within a second of a calm (a tenth of a second with nothing to do) is a burst: it is let in while the
    images before it need at most half a second. After that it is an overload, and a long queue would only make
    everybody late: images are let in while those before them need at most `max_wait_s`, or there is only one. Never
    more than `max_images`, nor bodies of more than 16 times `max_bytes` together. `observe` is told how many are
    inside.
    """

    def __init__(
        self,
        *,
        max_images: int,
        max_bytes: int,
        max_wait_s: float,
        observe: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes * MAX_BODIES
        self._max_wait_s = max_wait_s
        self._observe = observe
        self.seconds_per_image = 0.0
        """How long an image takes when there are many, as measured; a first guess may be set from outside."""
        self._images = self._bytes = 0
        self._busy_since = self._empty_since = self._began = self._answered = 0.0

    def place(self) -> "Place":
        """What one request takes, to be given back at its end: use it in a `with`. Raises Overloaded."""
        self._check(0)
        return Place(self)

    def _check(self, images: int) -> None:
        before = self._images
        if before == 0:
            return
        wait_s = before * self.seconds_per_image
        lasting = monotonic() - self._busy_since > BURST_S
        allowed_s = max(self._max_wait_s, self.seconds_per_image) if lasting else BURST_WAIT_S
        if before + images > self._max_images or (before > 1 and wait_s > allowed_s):
            raise Overloaded(f"{before} images are inside, {wait_s:.3f} s of work")

    def _enter(self, images: int) -> None:
        self._check(images)
        if self._images == 0:
            now = monotonic()
            if now - self._empty_since > CALM_S:
                self._busy_since = now
            self._began = now
        self._images += images
        self._observe(self._images)

    def _hold(self, size: int) -> None:
        if self._bytes + size > self._max_bytes:
            raise Overloaded(f"bodies of {self._bytes:,} bytes are in memory")
        self._bytes += size

    def _leave(self, images: int, size: int, *, answered: bool) -> None:
        self._images -= images
        self._bytes -= size
        if images and self._images == 0:
            self._empty_since = monotonic()
        self._observe(self._images)
        if answered and images:
            now = monotonic()
            # While there is work, answers come as fast as they can: decoding, waiting and the model are all in it.
            seconds = (now - max(self._answered, self._began)) / images
            self.seconds_per_image += (seconds - self.seconds_per_image) * min(images * SMOOTHING, 1)
            self._answered = now


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
        self._admission._leave(self._images, self._bytes, answered=kind is None)
