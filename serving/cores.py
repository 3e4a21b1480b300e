"""The number of processor cores."""

import os


def available_cores() -> int:
    """The cores that this process may use; where the system does not limit a process, all of the machine."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS has no such call
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
