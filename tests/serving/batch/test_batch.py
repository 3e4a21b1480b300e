import contextlib
import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyarrow import parquet

from serving.batch.__main__ import main
from serving.batch.parts import Part, PartFiles, encode, write_table
from serving.batch.predict import CHUNK, FilePredictor, table_columns
from serving.batch.processes import default_number, devices_of
from serving.batch.shards import Shard, SharedTable
from serving.batch.sources import image_paths
from serving.contract.gpu import gpus
from serving.contract.model import open_model
from serving.contract.session import Placement
from serving.cores import available_cores
from serving.settings import Settings
from tests.support import cuda
from tests.support.forged_models import nan_for_black, rewritten
from tests.support.paths import ROOT

WAIT_S = 60
NEWLINE = b"\n"


def command(*arguments: object, **environment: str) -> tuple[list[str], dict[str, Any]]:
    return [sys.executable, "-m", "serving.batch", *map(str, arguments)], {"cwd": ROOT, "env": os.environ | environment}


def scored(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    words, options = command(*arguments, **environment)
    return subprocess.run(words, **options, capture_output=True, text=True, timeout=WAIT_S, check=False)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_every_row_is_what_training_evaluated(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    done = scored(photos, "--model", run / "model.onnx", "--out", out, "--workers", 2)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert list(tmp_path.iterdir()) == [out]
    rows = {row["path"]: row for row in table(out)}
    assert len(rows) == 90
    version = open_model(run / "model.onnx").card.version
    with (run / "predictions.csv").open(newline="") as file:
        for expected in csv.DictReader(file):
            row = rows[expected["path"]]
            assert (row["label"], row["model_version"], row["error"]) == (expected["predicted"], version, "")
            assert row["confidence"] == row[f"p_{row['label']}"]
            for label in ("Red rash", "blue", "green leaf"):
                assert float(row[f"p_{label}"]) == pytest.approx(float(expected[label]), abs=1e-4)


@pytest.mark.parametrize(
    ("processes", "gpus", "devices"), [(2, 2, [0, 1]), (5, 2, [0, 1, 0, 1, 0]), (1, 8, [0]), (3, 0, [0, 0, 0])]
)
def test_processes_share_the_gpus(processes: int, gpus: int, devices: list[int]) -> None:
    assert devices_of(processes, gpus) == devices


def test_a_model_on_gpus_has_a_process_for_each(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = open_model(run / "model.onnx", placement=Placement(on="cpu"))
    cuda.install(monkeypatch, cuda.Provider())
    on_gpu = open_model(run / "model.onnx")
    assert default_number(on_gpu, 64) == 64 != default_number(on_cpu, 64) == available_cores()


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_each_process_has_a_gpu_of_its_own(run: Path, photos: Path, tmp_path: Path) -> None:
    """As a driver shows two; without CUDA's libraries each says which one it cannot use, and predicts on the CPU."""
    driver = {"LD_LIBRARY_PATH": str(cuda.library(tmp_path, cards=2))}
    arguments = (photos, "--model", run / "model.onnx", "--out", tmp_path / "out.csv", "--workers", 2)
    done = scored(*arguments, **driver)
    assert done.returncode == 0, done.stderr
    named = re.findall(r"the graph runs on the CPU, not on GPU (\d)", done.stderr)
    assert sorted(named) == ["0", "0", "1"], "the command itself, which reads the card, and two processes"


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """Three good images with awkward names among bad files."""
    folder = tmp_path / "mixed"
    (folder / "a folder").mkdir(parents=True)
    good = sorted(photos.rglob("*.png"))[:3]
    for path, name in zip(
        good, ('say "x",\nplease.png', "a folder/ü.PNG", os.fsdecode(b"latin \xe9.png")), strict=True
    ):
        shutil.copy(path, folder / name)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.png").write_bytes(good[0].read_bytes()[:100])
    (folder / "large.png").write_bytes(bytes(60_000))
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "to forbidden.png").symlink_to("/proc/1/mem")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").touch()
    (folder / "around").symlink_to(folder)
    return folder


def test_bad_files_are_listed_beside_the_good_ones(run: Path, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    done = scored(mixed, "--model", run / "model.onnx", "--out", out, "--workers", 1, TWINLENS_MAX_BYTES="50000")
    assert done.returncode == 3
    rows = {row["path"]: row for row in table(out)}
    errors = {name: row["error"].partition(":")[0] for name, row in rows.items() if row["error"]}
    assert errors == {
        "empty.png": "empty_image",
        "text.jpg": "unsupported_image_format",
        "cut.png": "undecodable_image",
        "large.png": "payload_too_large",
        "dangling.png": "unreadable_file",
        "to forbidden.png": "unreadable_file",
    }
    answered = {name for name, row in rows.items() if row["label"]}
    assert answered == {'say "x",\nplease.png', "a folder/ü.PNG", os.fsdecode(b"latin \xe9.png")}
    assert "see column error" in done.stderr
    assert "1 .txt" in done.stderr


@pytest.mark.slow
def test_a_model_that_gives_nan_ends_the_run(run: Path, photos: Path, tmp_path: Path) -> None:
    """The image is good and the model is not, so no row blames the image."""
    model = rewritten(run / "model.onnx", tmp_path / "model.onnx", nan_for_black)
    black = tmp_path / "images" / "black.png"
    black.parent.mkdir()
    assert cv2.imwrite(str(black), np.zeros((24, 24, 3), np.uint8))
    shutil.copy(next(photos.rglob("*.png")), black.parent)
    out = tmp_path / "predictions.csv"
    done = scored(black.parent, "--model", model, "--out", out, "--workers", 1)
    assert done.returncode == 4, done.stderr
    assert "error: the model gave a value that is not a number" in done.stderr
    assert f"{model} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    black.unlink()
    assert scored(black.parent, "--model", model, "--out", out, "--workers", 1).returncode == 0


def test_parquet_holds_the_same(run: Path, mixed: Path, tmp_path: Path) -> None:
    for name in ("p.csv", "p.parquet"):
        predictor = FilePredictor(open_model(run / "model.onnx"), mixed, Settings())
        columns = table_columns(open_model(run / "model.onnx").card)
        shared = SharedTable(tmp_path / name, columns, "x")
        with PartFiles(shared.folder(Shard()), columns) as parts:
            parts.append(predictor.predict(sorted(image_paths(mixed, Counter()))))
            parts.complete()
        shared.write(1)
    typed = parquet.read_table(tmp_path / "p.parquet")
    rows = table(tmp_path / "p.csv")
    assert len(rows) == 9
    assert typed.column_names == list(rows[0])
    for theirs, ours in zip(typed.to_pylist(), rows, strict=True):
        assert theirs["path"] == ours["path"].encode(errors="surrogateescape").decode(errors="replace")
        assert (theirs["label"] or "", theirs["error"] or "") == (ours["label"], ours["error"])
        assert theirs["p_blue"] == (pytest.approx(float(ours["p_blue"])) if ours["p_blue"] else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed", "p.csv", "p.parquet"]


def test_prediction_sets_are_the_cards(run: Path, photos: Path) -> None:
    classifier = open_model(run / "model.onnx")
    card = classifier.card
    object.__setattr__(card.calibration, "threshold", 1e-9)
    key = "blue/0.png"
    [row] = list(csv.reader(FilePredictor(classifier, photos, Settings()).predict([key]).rows.decode().splitlines()))
    pixels = card.preprocessing((photos / key).read_bytes())
    [members] = card.calibration.prediction_sets(classifier.predict(pixels[np.newaxis]))
    assert set(json.loads(row[3])) == {name for name, inside in zip(card.classes, members, strict=True) if inside}
    assert json.loads(row[3])[0] == row[1] == "blue"


def test_manifests(run: Path, photos: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(photos.rglob("*.png"))[:2]]
    (tmp_path / "m.csv").write_text("label,path\n" + "".join(f"x,{path}\n" for path in [*paths, paths[0]]))
    (tmp_path / "m.txt").write_text("\n".join([*paths, "missing.png"]))
    (tmp_path / "bad.csv").write_text("file\nx.png\n")
    for name, code, expected in (("m.csv", 0, [*paths, paths[0]]), ("m.txt", 3, [*paths, "missing.png"])):
        out = tmp_path / f"{name}.out.csv"
        assert scored(tmp_path / name, "--model", run / "model.onnx", "--out", out, "--workers", 1).returncode == code
        assert [row["path"] for row in table(out)] == expected
    done = scored(tmp_path / "bad.csv", "--model", run / "model.onnx", "--out", tmp_path / "x.csv", "--workers", 1)
    assert done.returncode == 2
    assert "no column path; there are file" in done.stderr


def test_usage(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.csv").touch()
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    refused = run / "checkpoints" / "best.pt"
    for arguments, code, reason in (
        ((photos, "--out", tmp_path / "x.json"), 2, "ends in .csv or .parquet"),
        ((photos, "--out", tmp_path / "there.csv"), 2, "exists already"),
        ((photos / "nowhere", "--out", tmp_path / "x.csv"), 2, "no such file or folder"),
        ((photos, "--out", tmp_path / "x.csv", "--workers", 0), 2, "1 or more"),
        ((photos, "--out", tmp_path / "x.csv", "--ray", "auto"), 2, "needs Ray; pip install"),
        ((photos, "--out", tmp_path / "x.csv", "--model", refused), 7, "not a graph"),
        ((photos, "--out", tmp_path / "no folder" / "x.csv", "--model", run / "model.onnx"), 6, "No such file"),
    ):
        assert code_of(*arguments) == code
        assert reason in capsys.readouterr().err
    monkeypatch.setenv("TWINLENS_MAX_BYTES", "few")
    assert code_of(photos, "--out", tmp_path / "x.csv") == 2
    assert "TWINLENS_MAX_BYTES='few'" in capsys.readouterr().err


def code_of(*arguments: object) -> int | str | None:
    """The exit code of the command, run in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code


def part_folders(folder: Path) -> list[Path]:
    return list(folder.glob(".*.parts"))


def written(parts: Path) -> int:
    """The number of complete parts."""
    return sum(path.suffix == ".csv" for path in parts.iterdir())


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_without_repeating_or_losing_a_row(
    run: Path, many: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "predictions.csv"
    words, options = command(many, "--model", run / "model.onnx", "--out", out, "--workers", 2)
    first = subprocess.Popen(words, **options, stderr=subprocess.DEVNULL, start_new_session=True)
    parts = wait_for(lambda: next((folder for folder in part_folders(tmp_path) if written(folder) >= 5), None))
    processes = children(first.pid)
    first.send_signal(number)
    assert first.wait(WAIT_S) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert wait_for(lambda: not any(Path("/proc", process, "exe").exists() for process in processes)), "orphans"
    assert not out.exists()
    before = b"".join((parts / f"{number}.csv").read_bytes() for number in range(written(parts)))
    (parts / "part.tmp").write_bytes(b'0/1.png,"a row cut of')
    done = scored(many, "--model", run / "model.onnx", "--out", out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert f"resuming after {before.count(NEWLINE):,} images" in done.stderr
    assert out.read_bytes().split(NEWLINE, 1)[1].startswith(before), "what was written stays"
    counts = Counter(row["path"] for row in table(out))
    assert counts == Counter(str(path.relative_to(many)) for path in many.rglob("*.png"))
    assert list(tmp_path.iterdir()) == [out]


def wait_for(condition: Callable[[], object]) -> Any:
    until = time.monotonic() + WAIT_S
    while not (result := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    assert result
    return result


@pytest.mark.slow
def test_two_at_once_do_not_write_to_one_table(run: Path, many: Path, tmp_path: Path) -> None:
    words, options = command(many, "--model", run / "model.onnx", "--out", tmp_path / "x.csv", "--workers", 1)
    first = subprocess.Popen(words, **options, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(written(parts) for parts in part_folders(tmp_path)))
        first.send_signal(signal.SIGSTOP)  # it would be done before the second has started
        second = scored(many, "--model", run / "model.onnx", "--out", tmp_path / "x.csv", "--workers", 1)
        assert second.returncode == 5
        assert "another process writes to it" in second.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
def test_rows_of_another_model_never_come_into_the_table(run: Path, many: Path, tmp_path: Path) -> None:
    """The folder of the parts is named by model and source, so parts of another run are not used."""
    with PartFiles(tmp_path / ".x.csv.000000000000.parts", ["path", "error"]) as parts:
        parts.append(part([["0/0.png", ""]]))
    (tmp_path / "m.txt").write_text(str(next(many.rglob("*.png"))))
    done = scored(tmp_path / "m.txt", "--model", run / "model.onnx", "--out", tmp_path / "x.csv", "--workers", 1)
    assert done.returncode == 0
    assert "resuming" not in done.stderr


def part(rows: list[list[str]]) -> Part:
    return Part(rows=encode(rows), images=len(rows), failed=Counter())


def test_a_path_that_is_listed_twice_is_done_twice(tmp_path: Path) -> None:
    with PartFiles(tmp_path / "parts", ["path", "error"]) as parts:
        parts.append(part([["a", ""], ["b\n", "code: x"]]))
        parts.append(part([["a", ""]]))
    (tmp_path / "parts" / "part.tmp").write_bytes(b'"c\n,')
    with PartFiles(tmp_path / "parts", ["path", "error"]) as parts:
        assert parts.images == 3
        assert parts.failed == {"code": 1}
        assert [parts.is_done(key) for key in ("a", "a", "a", "b\n", "b\n", "c")] == [
            True,
            True,
            False,
            True,
            False,
            False,
        ]


def test_what_could_not_be_read_is_tried_again_and_what_is_listed_no_more_goes(tmp_path: Path) -> None:
    with PartFiles(tmp_path / "parts", ["path", "error"]) as parts:
        parts.append(part([["a", ""], ["b", "unreadable_file: the disk is away"], ["gone", "not_an_image: x"]]))
        parts.append(part([["gone", ""], ["c", "not_an_image: x"], ["c", "not_an_image: x"]]))
    with PartFiles(tmp_path / "parts", ["path", "error"]) as parts:
        assert parts.failed == {"not_an_image": 3}
        again = [key for key in ("a", "b", "c") if not parts.is_done(key)]
        assert again == ["b"]
        parts.append(part([["b", ""], ["gone", ""]]))
        assert parts.complete() == 3
        assert +parts.failed == {"not_an_image": 1}
    write_table(tmp_path / "x.csv", ["path", "error"], [tmp_path / "parts"])
    assert [row["path"] for row in table(tmp_path / "x.csv")] == ["a", "c", "b", "gone"]


def test_a_part_that_is_missing_is_done_again(tmp_path: Path) -> None:
    with PartFiles(tmp_path / "parts", ["path", "error"]) as parts:
        for key in ("a", "b", "c"):
            parts.append(part([[key, ""]]))
    (tmp_path / "parts" / "1.csv").unlink()
    with PartFiles(tmp_path / "parts", ["path", "error"]) as parts:
        left = [key for key in ("a", "b", "c") if not parts.is_done(key)]
        assert left == ["b", "c"]
        parts.append(part([[key, ""] for key in left]))
        parts.complete()
    write_table(tmp_path / "x.csv", ["path", "error"], [tmp_path / "parts"])
    assert [row["path"] for row in table(tmp_path / "x.csv")] == ["a", "b", "c"]


def test_paths_are_streamed(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").touch()
        tracemalloc.start()
        assert sum(1 for _ in image_paths(folder, Counter())) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(10_000) < peak(100) + 20_000


BENCH_FILES, BENCH_IMAGES = 1_000, 30_000
BATCH = 32


class _Together:
    """Where the processes wait for one another, so that none works through two shares while another still starts."""

    barrier: Barrier


def _meet(barrier: Barrier) -> None:
    _Together.barrier = barrier


def _plain(model: Path, images: list[Path]) -> tuple[float, float]:
    """Begin and end of decoding, resizing and predicting in plain batches, the model opened before."""
    cv2.setNumThreads(1)
    classifier = open_model(model)
    preprocessing = classifier.card.preprocessing
    _Together.barrier.wait(WAIT_S)
    begun = time.time()
    for start in range(0, len(images), BATCH):
        classifier.predict(np.stack([preprocessing(path.read_bytes()) for path in images[start : start + BATCH]]))
    return begun, time.time()


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.flaky(reruns=1)  # other work on the machine's cores only slows one down
@pytest.mark.timeout(600)
def test_it_is_nearly_as_fast_as_plain_batches_and_does_not_grow(run: Path, tmp_path: Path) -> None:
    """Against as many processes that each work through their share in plain batches, in alternating rounds.

    The rate of either is that of its steady state: opening models and starting processes are left out.
    """
    cores = len(os.sched_getaffinity(0))
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8), (5, 5), 0)
    encoded = bytes(cv2.imencode(".jpg", picture)[1])
    files = [tmp_path / f"{number}.jpg" for number in range(BENCH_FILES)]
    for file in files:
        file.write_bytes(encoded)
    images = files * (BENCH_IMAGES // BENCH_FILES)
    source = tmp_path / "images.txt"
    source.write_text("\n".join(image.name for image in images))
    rates, limits, growths = [], [], []
    for _ in range(3):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(cores, context, _meet, (context.Barrier(cores),)) as pool:
            shares = [images[start::cores] for start in range(cores)]
            times = list(pool.map(_plain, [run / "model.onnx"] * cores, shares))
        limits.append(BENCH_IMAGES / (max(end for _, end in times) - min(begun for begun, _ in times)))
        out = tmp_path / "x.csv"
        words, options = command(source, "--model", run / "model.onnx", "--out", out)
        process = subprocess.Popen(words, **options, stderr=subprocess.DEVNULL)
        samples: list[tuple[float, int, int]] = []
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # at the end the folder of the parts disappears
                rows = sum(written(parts) * CHUNK for parts in part_folders(tmp_path))
                samples.append((time.time(), rows, resident(process.pid)))
            time.sleep(0.02)
        assert process.returncode == 0
        out.unlink()
        # At the end the parts are merged and removed, and their number falls again.
        most_written = max(range(len(samples)), key=lambda place: samples[place][1])
        growing = samples[:most_written]
        steady = [sample for sample in growing if 0.1 * BENCH_IMAGES < sample[1] < 0.9 * BENCH_IMAGES]
        (begun, least, before), (ended, most, after) = steady[0], steady[-1]
        rates.append((most - least) / (ended - begun))
        growths.append(after - before)
    print("images/s", rates, "of", limits, "growth in bytes", growths)
    # Of each the best round, since other work only slows one down; rounds on a quiet machine gave 0.74 to 0.89.
    assert max(rates) / max(limits) >= 0.7
    assert max(growths) < 2_000_000


def resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0
