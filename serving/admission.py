"""Who may come in: an image that would only wait in vain, or for which there is no memory, is refused at once."""

from collections.abc import Callable
from time import monotonic
from types import TracebackType

LASTS = 50
"""An overload is taken to last so many times as long as a full queue takes to empty: then a burst may come again, and
even if it has not ended, only one image in so many has waited in a full queue."""
CALM = 1 / 8
"""It has ended, too, when this share of those who come find nobody inside."""
MAX_BODIES = 16
SMOOTHING = 1 / 128
LONE_SMOOTHING = 1 / 16
CALM_SMOOTHING = 1 / 1024


class Overloaded(RuntimeError):
    """There is no room for this request now; trying again shortly is worth while."""


class Admission:
    """Counts what is inside, from the end of a body to its answer, and says no in time.

    `max_images` may be inside: a burst waits. One that finds no room shows an overload, and there a long queue would
    only make everybody late. For a while images are let in only as long as they take at most `max_slowdown` times
    the time of a lone one, by the rate at which answers come (Little's law); one at a time always. Clients who wait
    for their answers before they ask again, however many up to `max_images`, never see the difference.

    Bodies take no more than 16 times `max_bytes` together. `observe` is told how many images are inside.
    """

    def __init__(
        self,
        *,
        max_images: int,
        max_bytes: int,
        max_slowdown: float,
        observe: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes * MAX_BODIES
        self._max_slowdown = max_slowdown
        self._observe = observe
        self._lone_s = self._seconds_per_image = 0.0
        self._images = self._bytes = 0
        self._alone = False
        self._began = self._answered = self._overloaded_until = self._calm = 0.0

    def expect(self, lone_s: float) -> None:
        """A first guess, for a new model, of the seconds in which it answers a lone image."""
        self._lone_s = self._seconds_per_image = lone_s

    def place(self) -> "Place":
        """What one request takes, to be given back at its end: use it in a `with`. Raises Overloaded."""
        self._calm += ((self._images == 0) - self._calm) * CALM_SMOOTHING
        self._check(1)
        return Place(self)

    def _overloaded(self, now: float) -> bool:
        return now < self._overloaded_until and self._calm < CALM

    def _short_limit(self) -> int:
        short = int(self._max_slowdown * self._lone_s / self._seconds_per_image)
        return max(1, min(short, self._max_images))

    def _check(self, images: int) -> None:
        """A request of any number of images is let in when nobody else is there."""
        if self._images == 0:
            return
        now = monotonic()
        overloaded = self._overloaded(now)
        limit = self._short_limit() if overloaded else self._max_images
        if self._images + images <= limit:
            return
        if not overloaded:
            self._overloaded_until = now + LASTS * self._images * self._seconds_per_image
            self._calm = 0.0
        raise Overloaded(f"{self._images} images are inside, at most {limit} are let in")

    def _enter(self, images: int) -> None:
        self._check(images)
        self._alone = self._images == 0 and images == 1
        if self._images == 0:
            self._began = monotonic()
        self._images += images
        self._observe(self._images)

    def _hold(self, size: int) -> None:
        if self._bytes + size > self._max_bytes:
            raise Overloaded(f"bodies of {self._bytes:,} bytes are in memory")
        self._bytes += size

    def _leave(self, images: int, size: int, *, answered: bool) -> None:
        self._bytes -= size
        if not images:
            return
        self._images -= images
        self._observe(self._images)
        if answered:
            self._learn(images, monotonic())

    def _learn(self, images: int, now: float) -> None:
        # While there is work, answers come as fast as they can: decoding, waiting and the model are all in it.
        seconds = (now - max(self._answered, self._began)) / images
        self._seconds_per_image += (seconds - self._seconds_per_image) * min(images * SMOOTHING, 1)
        self._answered = now
        if self._alone and not self._overloaded(now):
            self._lone_s += (now - self._began - self._lone_s) * LONE_SMOOTHING


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
