import os
from pathlib import Path

import pytest

from serving.cores import available_cores

VERSION_1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        (dict(zip(VERSION_1, ("250000\n", "100000\n"), strict=True)), 3),
        (dict(zip(VERSION_1, ("-1\n", "100000\n"), strict=True)), 8),
        ({}, 8),
    ],
    ids=["whole", "rounded up", "a part of one", "more than the machine", "none", "version 1", "none in 1", "no files"],
)
def test_a_container_uses_no_more_cores_than_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == expected
