"""The number of processor cores."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""What a container sees here is its own limit."""


def available_cores(cgroup: Path = CGROUP) -> int:
    """The cores that this process may use, at least 1: those that it may run on, at most the quota of its container.

    Where the system limits neither, all of the machine.
    """
    # macOS has no sched_getaffinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota(cgroup) or cores)


def _quota(cgroup: Path) -> int | None:
    """The cores whose time the container may use, rounded up; None without a limit.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files, and version 1:
    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    files = [cgroup / "cpu.max"]
    if not files[0].exists():
        files = [cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"]
    try:
        quota, period = map(int, " ".join(file.read_text() for file in files).split())
    except (OSError, ValueError):  # no such file, or `max`
        return None
    return math.ceil(quota / period) if quota > 0 and period > 0 else None
