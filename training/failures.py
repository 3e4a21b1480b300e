"""What a run says when something around it fails: what failed, by how much, and what helps."""

import errno
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training.config import from_yaml
from training.data.loader import SHARED_MEMORY
from training.engine import runs
from training.errors import CheckpointRefused, ConfigError, OutOfMemory, WorkerLost

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
SHORT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "Insufficient memory", "can't start new thread")
"""How PyTorch, C++, OpenCV and Python say it where they raise no error of its own."""
WORKERS = {
    "No space left on device": (
        f"{SHARED_MEMORY} has no room for the batches of the data workers: `docker run --shm-size 2g`, in Kubernetes "
        f"an emptyDir with medium Memory at {SHARED_MEMORY}, fewer --workers or a smaller --batch-size; --workers 0 "
        "needs no room there"
    ),
    "Bus error": f"a data worker found no room in {SHARED_MEMORY}; fewer --workers or a smaller --batch-size take less",
    "signal: Killed": (
        "a data worker was killed, as the system does when memory runs out; fewer --workers, a smaller --batch-size "
        "or more memory may help"
    ),
    "DataLoader timed out": (
        "a data worker hangs; is the disk of --cache alive? A longer --worker-timeout waits longer, --workers 0 "
        "prepares batches in the training process"
    ),
    "DataLoader worker": "a data worker died; --workers 0 prepares batches in the training process and shows why",
}
"""What each of torch's complaints about its workers means; the first that fits is told."""


@contextmanager
def told(run: Path, device: torch.device) -> Iterator[None]:
    """Say of an error what it means for the run, and how to go on, in notes to it.

    Want of memory becomes OutOfMemory, whatever the library that noticed it raises, and trouble with the data workers
    WorkerLost.
    """
    try:
        yield
    except Exception as error:
        fault = _named(error, run, device)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            fault.add_note("make room there; whatever was saved before is whole")
        if isinstance(error, OSError) and error.errno in NOT_OURS:
            fault.add_note("--out and --cache name folders that may be written to")
        if runs.has_checkpoint(run) and not isinstance(error, (ConfigError, CheckpointRefused)):
            fault.add_note(f"--resume {run} goes on from its last checkpoint")
        if fault is error:
            raise
        raise fault from error


def of_thread(failure: threading.ExceptHookArgs) -> None:
    """For threading.excepthook: TensorBoard's thread hands its OSError to whoever writes next, who tells it."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def is_short_of_memory(error: BaseException) -> bool:
    """Whether memory was lacking, as far as an error tells."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in SHORT_OF_MEMORY)
    )


def _named(error: Exception, run: Path, device: torch.device) -> Exception:
    first = str(error).strip().partition("\n")[0]
    if is_short_of_memory(error):
        return OutOfMemory(f"out of memory on {device.type}, {_use(run, device)}: {first}")
    if isinstance(error, OSError) and error.filename is None and error.errno in NO_ROOM:
        return OSError(error.errno, error.strerror, str(run))  # whoever wrote there did not say where
    said = f"{error} {error.__cause__}"
    means = next((means for words, means in WORKERS.items() if words in said), None)
    of_workers = isinstance(error, RuntimeError) or getattr(error, "filename", None) == SHARED_MEMORY
    return WorkerLost(f"{means} ({first})") if of_workers and means else error


def _use(run: Path, device: torch.device) -> str:
    """How much memory was used at most, and by batches of what."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    said = f"{peak / 2**30:.1f} GiB used at most"
    if not (run / runs.CONFIG).exists():
        return said
    begun = from_yaml(run / runs.CONFIG)
    return f"{said} with --batch-size {begun.batch_size} --image-size {begun.image_size} --workers {begun.workers}"
