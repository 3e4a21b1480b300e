"""Error messages of a run when something around it fails: what failed, the sizes, and what helps."""

import errno
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import torch

from training.data.loader import SHARED_MEMORY
from training.engine import runs
from training.errors import CheckpointRefused, ConfigError, DeviceFailed, OutOfMemory, WorkerLost

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
SHORT_OF_MEMORY = (
    *("can't allocate memory", "bad_alloc", "Insufficient memory", "can't start new thread"),
    *("STATUS_ALLOC_FAILED", "ALLOCATION_FAILED"),
)
"""The messages of PyTorch, C++, OpenCV, Python, cuBLAS and cuDNN where they raise no error type for it."""
DEVICE_FAILED = ("CUBLAS_STATUS_", "CUDNN_STATUS_", "CUSOLVER_STATUS_", "unable to find an engine to execute")
"""The messages of the GPU's libraries, which PyTorch raises as RuntimeError."""
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
"""The meaning of each of PyTorch's messages about its workers; the first one that fits is reported."""


@contextmanager
def explain_errors(run: Path, device: torch.device) -> Iterator[None]:
    """Add notes to an error: what it means for the run, and how to resume.

    A lack of memory becomes OutOfMemory, whichever library raised it, another error of cuBLAS or cuDNN DeviceFailed,
    and trouble with the data workers WorkerLost.
    """
    try:
        yield
    except Exception as error:
        fault = _named(error, run, device)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            fault.add_note("make room there; every file saved before is complete")
        if isinstance(error, OSError) and error.errno in NOT_OURS:
            fault.add_note("--out and --cache name folders that may be written to")
        if runs.has_checkpoint(run) and not isinstance(error, (ConfigError, CheckpointRefused)):
            fault.add_note(f"--resume {quote(str(run))} continues from its last checkpoint")
        if fault is error:
            raise
        raise fault from error


def of_thread(failure: threading.ExceptHookArgs) -> None:
    """For threading.excepthook: TensorBoard's thread raises its OSError again in the main thread, which reports it."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was lacking."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in SHORT_OF_MEMORY)
    )


def _named(error: Exception, run: Path, device: torch.device) -> Exception:
    first = str(error).strip().partition("\n")[0]
    if is_short_of_memory(error):
        named = OutOfMemory(f"out of memory on {device.type}, {_use(run, device)}: {first}")
        for note in getattr(error, "__notes__", []):
            named.add_note(note)
        return named
    if isinstance(error, OSError) and error.filename is None and error.errno in NO_ROOM:
        return OSError(error.errno, error.strerror, str(run))  # the library that wrote there did not name the file
    if isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_FAILED):
        return DeviceFailed(f"{first}; another --batch-size or --precision float32 may do")
    text = f"{error} {error.__cause__}"
    meaning = next((meaning for words, meaning in WORKERS.items() if words in text), None)
    of_workers = isinstance(error, RuntimeError) or getattr(error, "filename", None) == SHARED_MEMORY
    return WorkerLost(f"{meaning} ({first})") if of_workers and meaning else error


def _use(run: Path, device: torch.device) -> str:
    """The peak of the memory in use, and the options that decide it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    used = f"{peak / 2**30:.1f} GiB used at most"
    if not (run / runs.CONFIG).exists():
        return used
    config = runs.load_config(run)
    return f"{used} with --batch-size {config.batch_size} --image-size {config.image_size} --workers {config.workers}"
