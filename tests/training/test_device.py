import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from tests.support.configs import settled
from tests.support.paths import ROOT
from training.config import TrainConfig
from training.device import find_device
from training.errors import DeviceMissing


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_threads_and_workers_are_no_more_than_a_container_s_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # read by the same function as a cgroup's quota
    assert find_device("cpu") == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert settled(TrainConfig(), image_size=64, training_images=1000).workers == 0


def test_threads_asked_for_by_the_environment_stay() -> None:
    code = "import torch; from training.device import find_device; find_device('cpu'); print(torch.get_num_threads())"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "2"}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True) == "1\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_reason_to_train_without_one() -> None:
    with pytest.raises(DeviceMissing, match="torch sees no GPU; --device cpu trains without one"):
        find_device("cuda")
