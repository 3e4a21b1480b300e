"""The same command on Ray: real clusters on this machine, and what a killed process costs."""

import ctypes
import os
import signal
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serving.settings import Settings
from tests.serving.batch.test_batch import NEWLINE, WAIT_S, code_of, command, part_folders, scored, wait_for, written

pytest.importorskip("ray", reason="Ray is not installed")

from serving.batch.predict import CHUNK
from serving.batch.ray_cluster import Job, _opened

pytestmark = pytest.mark.long  # Ray starts and ends in ten seconds
CLOSED, A_FOLDER = 0x10, 0x40000000
"""IN_CLOSE_NOWRITE and IN_ISDIR of inotify(7)."""


class Readings:
    """How often each file below a folder was read, by any process."""

    def __init__(self, root: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue = self._libc.inotify_init1(os.O_NONBLOCK)
        folders = [root, *(path for path in root.iterdir() if path.is_dir())]
        watches = [self._libc.inotify_add_watch(self._queue, os.fsencode(path), CLOSED) for path in folders]
        self._folders = dict(zip(watches, folders, strict=True))

    def count(self) -> Counter[Path]:
        """The number of readings of each file since the last call."""
        counts = Counter[Path]()
        while True:
            try:
                events = os.read(self._queue, 1 << 20)
            except BlockingIOError:
                return counts
            while events:
                watch, mask, _, length = struct.unpack_from("iIII", events)
                name = events[16 : 16 + length].rstrip(b"\0")
                if not mask & A_FOLDER:
                    counts[self._folders[watch] / os.fsdecode(name)] += 1
                events = events[16 + length :]


def workers(process: int) -> list[psutil.Process]:
    """The processes of Ray that predict now."""
    below = psutil.Process(process).children(recursive=True)
    return [each for each in below if each.name() == "ray::_predict"]


def ended(processes: list[psutil.Process]) -> bool:
    """Whether all have ended; the system may keep the entry of one whose parent was killed."""
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


@pytest.fixture(scope="module")
def plain(run: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of the command without Ray."""
    out = tmp_path_factory.mktemp("plain") / "x.csv"
    assert scored(many, "--model", run / "model.onnx", "--out", out, "--workers", 2).returncode == 0
    return out.read_bytes()


def test_a_killed_worker_costs_the_chunk_that_it_had(run: Path, many: Path, plain: bytes, tmp_path: Path) -> None:
    out, readings = tmp_path / "x.csv", Readings(many)
    words, options = command(many, "--model", run / "model.onnx", "--out", out, "--ray", "local", "--workers", 2)
    process = subprocess.Popen(words, **options, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(written(parts) >= 5 for parts in part_folders(tmp_path)))
    every = psutil.Process(process.pid).children(recursive=True)
    wait_for(lambda: workers(process.pid))[0].kill()
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert out.read_bytes() == plain
    read = readings.count()
    assert len(read) == 3000
    print("done again:", read.total() - 3000)
    assert read.total() - 3000 <= CHUNK
    assert wait_for(lambda: ended(every)), "Ray has ended"


def test_a_killed_command_leaves_no_worker_and_resumes_without_ray(
    run: Path, many: Path, plain: bytes, tmp_path: Path
) -> None:
    """Two processes of Ray's own notice after a minute that their cluster is gone."""
    out = tmp_path / "x.csv"
    words, options = command(many, "--model", run / "model.onnx", "--out", out, "--ray", "local", "--workers", 2)
    process = subprocess.Popen(words, **options, stderr=subprocess.DEVNULL)
    parts = wait_for(lambda: next((folder for folder in part_folders(tmp_path) if written(folder) >= 5), None))
    every = wait_for(lambda: workers(process.pid))
    process.send_signal(signal.SIGKILL)
    process.wait(WAIT_S)
    assert wait_for(lambda: ended(every)), "orphans"
    before = written(parts)
    done = scored(many, "--model", run / "model.onnx", "--out", out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert f"resuming after {before * CHUNK:,} images" in done.stderr
    assert out.read_bytes() == plain


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes, each with a process."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=node)
    try:
        started.add_node(num_cpus=1, object_store_memory=100_000_000)
        started.wait_for_nodes()
        yield started.address
    finally:
        started.shutdown()


def test_a_cluster_that_runs_already_gives_the_same_and_continues(
    run: Path, many: Path, plain: bytes, tmp_path: Path, cluster: str
) -> None:
    model = ["--model", run / "model.onnx", "--ray", cluster]
    done = scored(many, *model, "--out", tmp_path / "x.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.csv").read_bytes() == plain
    (many / "0" / "text.jpg").write_text("hello")
    try:
        failed = scored(many, *model, "--out", tmp_path / "y.csv", "--workers", 1)
    finally:
        (many / "0" / "text.jpg").unlink()
    assert failed.returncode == 3, failed.stderr
    assert (tmp_path / "y.csv").read_bytes().count(NEWLINE) == plain.count(NEWLINE) + 1
    assert "1 unsupported_image_format" in failed.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: does not answer (Connection refused)"),
        ("auto", "--ray auto: Could not find any running Ray instance"),
        ("nowhere", "--ray nowhere: "),
    ],
)
def test_a_cluster_that_is_not_there_is_said(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, said: str
) -> None:
    assert code_of(photos, "--model", run / "model.onnx", "--out", tmp_path / "x.csv", "--ray", address) == 6
    assert f"error: {said}" in capsys.readouterr().err


def test_a_node_that_does_not_see_the_images_is_said(tmp_path: Path) -> None:
    """Otherwise each image would get a row that says so."""
    with pytest.raises(FileNotFoundError, match="all nodes must see the images by one path"):
        _opened(Job(tmp_path / "nowhere", Settings(), None))
