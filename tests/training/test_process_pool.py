import time
from pathlib import Path

import pytest

from training.process_pool import ProcessPool, TrainingJob, pool_size


@pytest.mark.slow
def test_jobs_run_in_processes_of_their_own_and_report_their_exit_codes(tmp_path: Path, photos: Path) -> None:
    """Two that are refused at once, and one that would take for ever, until it is hopeless."""
    arguments_of = {
        "usage": ["train", "--epochs", "0"],
        "data": ["train", "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "runs")],
        "endless": ["train", "--data", str(photos), "--model", "mlp", "--hidden", "8", "--image-size", "16"],
    }
    arguments_of["endless"] += [
        "--epochs",
        "100000",
        "--out",
        str(tmp_path / "runs"),
        "--name",
        "endless",
        "--workers",
        "0",
    ]
    asked: list[str] = []
    codes: dict[str, int] = {}
    last = tmp_path / "runs" / "endless" / "checkpoints" / "last.pt"

    def jobs() -> list[TrainingJob]:
        return [
            TrainingJob(name=name, arguments=arguments, log=tmp_path / name) for name, arguments in arguments_of.items()
        ]

    def hopeless(job: TrainingJob) -> bool:
        asked.append(job.name)
        return job.name == "endless" and last.exists()

    begun = time.monotonic()
    pool = ProcessPool(size=2, threads=1, ended=lambda job, code: codes.update({job.name: code}), hopeless=hopeless)
    pool.run(jobs())
    assert codes == {"usage": 2, "data": 3, "endless": 143}, "stopped by SIGTERM, once, after it had saved itself"
    assert "expected above 0, got 0" in (tmp_path / "usage").read_text()
    assert "1 threads" in (tmp_path / "endless").read_text()
    assert last.exists()
    assert time.monotonic() - begun < 200


def test_without_jobs_there_is_one_for_each_gpu_or_as_many_as_the_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert [pool_size(jobs, 3, device) for jobs, device in ((5, "auto"), (None, "auto"), (None, "cpu"))] == [5, 3, 2]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [pool_size(None, threads, "auto") for threads in (1, 3, 16)] == [8, 2, 1]
