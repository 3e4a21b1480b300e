import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import ConfigError
from training.study.folder import prepare_study
from training.study.spec import document
from training.study.spec.grid import Study

PROCESSES, FOLDERS = 4, 40
SCRIPT = """
import multiprocessing
import sys
from pathlib import Path
from training.study.spec import document
from training.study.folder import prepare_study

file, processes, folders = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
study = document.read(file)
context = multiprocessing.get_context("fork")  # one import of torch instead of four
together = context.Barrier(processes, timeout=60)

def prepare_all():
    try:
        for number in range(folders):
            together.wait()
            prepare_study(study, file.parent / str(number))
    except BaseException:
        together.abort()
        raise

started = [context.Process(target=prepare_all) for _ in range(processes)]
for process in started:
    process.start()
for process in started:
    process.join()
sys.exit(any(process.exitcode for process in started))
"""


def declared(folder: Path, seeds: int = 2) -> Study:
    (folder / "own.yaml").write_text(f"axes: {{lr: [0.1, 0.01], activation: [relu, tanh, gelu]}}\nseeds: {seeds}\n")
    return document.read(folder / "own.yaml")


@pytest.mark.slow
def test_processes_that_prepare_one_study_at_the_same_moment_do_not_hinder_one_another(tmp_path: Path) -> None:
    study = declared(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "own.yaml"), str(PROCESSES), str(FOLDERS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all(document.read(tmp_path / str(number) / "study.yaml") == study for number in range(FOLDERS))


def test_a_study_that_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    prepare_study(declared(tmp_path), folder)
    written = (folder / "study.yaml").stat().st_mtime_ns
    prepare_study(declared(tmp_path), folder)
    assert (folder / "study.yaml").stat().st_mtime_ns == written
    prepare_study(declared(tmp_path, seeds=3), folder)
    assert document.read(folder / "study.yaml").seeds == 3


def test_other_ranges_of_a_search_are_refused(tmp_path: Path) -> None:
    spec = tmp_path / "own.yaml"
    spec.write_text("axes: {lr: {low: 0.001, high: 0.1, log: true}}")
    prepare_study(document.read(spec), tmp_path / "search")
    spec.write_text("axes: {lr: {low: 0.1, high: 0.9, log: true}}")
    with pytest.raises(ConfigError, match=r"holds runs of another axes: lr was .*0\.001.*, now it is .*0\.9"):
        prepare_study(document.read(spec), tmp_path / "search")
