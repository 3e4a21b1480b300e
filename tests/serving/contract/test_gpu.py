from pathlib import Path

import pytest

from serving.contract import gpu
from tests.support import cuda
from tests.support.cuda import CLOSED, OPEN, machine


@pytest.mark.parametrize(("text", "version"), [(OPEN, "580.65.06"), (CLOSED, "535.183.01"), ("", None), (None, None)])
def test_the_driver_s_version_is_that_of_its_kernel_module(
    tmp_path: Path, text: str | None, version: str | None
) -> None:
    assert gpu.driver_version(machine(tmp_path, version=text)) == version


def test_a_container_reaches_the_devices_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every container on a machine sees the driver's list; without `--gpus` it has none of the device files."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cuda.install(monkeypatch, cuda.Provider(), cards=[])
    given, not_given, none = (tmp_path / name for name in ("given", "not given", "none"))
    for root in (given, not_given, none):
        root.mkdir()
    machine(given, version=OPEN, devices=2, listed=2)
    machine(not_given, version=OPEN, listed=2)
    machine(none)
    assert [path.name for path in gpu.device_files(given)] == ["nvidia0", "nvidia1"]
    assert [gpu.visible(root) for root in (given, not_given, none)] == [True, False, False]
    assert [gpu.machine_has_gpu(root) for root in (given, not_given, none)] == [True, True, False]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.hidden()
    assert not gpu.visible(given)


def test_devices_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [("Tesla T4", (7, 5), 16 * 2**30), ("NVIDIA H100", (9, 0), 80 * 2**30)]
    cuda.install(monkeypatch, cuda.Provider(), cards=cards)
    assert [(one.name, one.capability, one.memory) for one in gpu.gpus()] == cards
    assert str(gpu.gpus()[0]) == "Tesla T4 (compute capability 7.5)"
    assert gpu.cuda_version() == (13, 0)


def test_there_is_none_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.install(monkeypatch, cuda.Provider(), cards=[])
    assert gpu.gpus() == ()
