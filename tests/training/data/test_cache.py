import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.support.datasets import manifest, write
from tests.support.paths import ROOT
from tests.support.processes import wait_until
from training.data.cache import ENTRIES_OF_A_KIND, Cache, code_digest
from training.data.dataset import Dataset, load_dataset
from training.errors import DataError
from training.evaluate import EvaluateConfig, evaluate
from training.options.config import TrainConfig
from training.report.audit import AuditConfig, audit_facts, run_audit
from training.storage import copy_rows

INT = TypeAdapter(int)


def folder(root: Path) -> Path:
    """Class folders in which one image cannot be read, neither the first nor the last, and one is a copy."""
    for number in range(120):
        write(root / "ab"[number % 2] / f"{number:03}.bmp", number, (20 + number % 3, 24))
    (root / "a" / "050.bmp").write_bytes(b"not an image")
    shutil.copy(root / "a" / "002.bmp", root / "a" / "copy.bmp")
    return root


def rows(root: Path) -> Path:
    """A manifest with groups and splits."""
    given = [
        {
            "path": write(root / f"{number}.png", number).name,
            "label": "ab"[number % 2],
            "group": f"patient {number // 4}",
            "split": ("train", "train", "val", "test")[number // 4 % 4],
        }
        for number in range(80)
    ]
    return manifest(root / "m.csv", given)


def archive(root: Path) -> Path:
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (90, 12, 12), dtype=np.uint8)
    labels = np.arange(90) % 3
    np.savez_compressed(
        root / "x.npz", train_images=images[:70], train_labels=labels[:70], test_images=images[70:],
        test_labels=labels[70:],
    )  # fmt: skip
    return root / "x.npz"


def load(source: Path, kept: Path, **options: Any) -> Dataset:
    return load_dataset(TrainConfig(data=source, cache=kept, **options))


def assert_same(one: Dataset, other: Dataset) -> None:
    for name in ("name", "keys", "classes", "digest", "unreadable", "preprocessing"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("images", "labels", "components"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert all(np.array_equal(one.splits[split], other.splits[split]) for split in one.splits)
    assert one.image_set.files == other.image_set.files
    assert one.audit.baseline == other.audit.baseline
    assert audit_facts(one.audit) == audit_facts(other.audit)


def entries(kept: Path, kind: str = "") -> set[tuple[str, int]]:
    """Names and inodes: an entry that is made again has another inode."""
    return {(entry.name, entry.stat().st_ino) for entry in kept.glob(f"{kind}*-*") if entry.is_dir()}


@pytest.mark.parametrize("kind", [folder, rows, archive])
def test_the_data_is_the_same_to_the_last_bit_made_or_found(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    source, kept = kind(tmp_path / "data"), tmp_path / "kept"
    made = load(source, kept)
    assert not made.images.flags.writeable
    before = entries(kept)
    found = load(source, kept)
    assert entries(kept) == before, "nothing was made again"
    assert_same(made, found)
    for i in range(len(made.keys)):
        assert np.array_equal(found.images[i], found.preprocessing.fitted(found.unresized(i)))
    other = load(source, kept, image_size=9, channels=1)
    assert entries(kept) > before, "of another size, only the pixels are made"
    assert {name.split("-")[0] for name, _ in entries(kept) - before} == {"images"}
    assert_same(other, load(source, tmp_path / "fresh", image_size=9, channels=1))


def test_labels_and_seeds_need_no_reading(tmp_path: Path) -> None:
    source = rows(tmp_path / "data")
    load(source, tmp_path / "kept")
    known = entries(tmp_path / "kept", "contents") | entries(tmp_path / "kept", "images")
    source.write_text(source.read_text().replace(",b,", ",c,").replace(",test", ","))
    other = load(source, tmp_path / "kept", seed=1)
    assert other.classes == ("a", "c")
    assert entries(tmp_path / "kept", "contents") | entries(tmp_path / "kept", "images") == known
    assert_same(other, load(source, tmp_path / "fresh", seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["written", "added", "removed"])
def test_a_file_that_changes_is_noticed_also_when_size_and_time_stay(change: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "data")
    path = source / "a" / "004.bmp"
    before = load(source, tmp_path / "kept")
    if change == "written":
        status = path.stat()
        flip(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "added":
        write(source / "a" / "new.bmp", 500)
    else:
        path.unlink()
    after = load(source, tmp_path / "kept")
    assert after.digest != before.digest
    assert_same(after, load(source, tmp_path / "fresh"))


def test_an_archive_that_changes_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "data")
    load(path, tmp_path / "kept")
    flip(path)
    with pytest.raises(DataError, match=r"not an \.npz file that numpy can read .*Bad CRC-32|incorrect data check"):
        load(path, tmp_path / "kept")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_broken_data_is_made_again_and_is_what_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, kept = folder(tmp_path / "data"), tmp_path / "kept"
    made = load(source, kept)
    pixels = made.images.copy()
    [images], [contents] = kept.glob("images-*/images.npy"), kept.glob("contents-*/value.json")
    flip(images)
    flip(contents)
    capsys.readouterr()
    again = load(source, kept)
    said = [
        f"cache  {path.parent}: {path.name} is not what was written; it is made again" for path in (images, contents)
    ]
    assert capsys.readouterr().out.splitlines() == said
    assert np.array_equal(again.images, pixels)
    assert_same(again, load(source, kept))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("part", "harm", "fault"),
    [
        ("rows.npy", flip, "rows.npy is not what was written"),
        ("rows.npy", lambda path: os.truncate(path, 135), "rows.npy has 135 bytes instead of 200"),
        ("rows.npy", Path.unlink, "it cannot be read (FileNotFoundError)"),
        ("seal.json", Path.unlink, "it cannot be read (FileNotFoundError)"),
        ("seal.json", lambda path: os.truncate(path, 9), "it cannot be read (ValidationError)"),
        ("seal.json", lambda path: path.write_text('{"rows.npy":[200,7]}'), "rows.npy is not what was written"),
    ],
)
def test_every_damage_is_noticed(
    part: str, harm: Callable[[Path], object], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def use() -> np.ndarray:
        return Cache(tmp_path).arrays("x", 0, lambda place: np.save(place / "rows.npy", np.arange(9)))["rows"]

    use()
    [path] = tmp_path.glob(f"x-*/{part}")
    harm(path)
    assert np.array_equal(use(), np.arange(9))
    assert capsys.readouterr().out == f"cache  {path.parent}: {fault}; it is made again\n"
    assert np.array_equal(use(), np.arange(9))
    assert capsys.readouterr().out == ""


def test_other_code_makes_another_entry(tmp_path: Path) -> None:
    numbers = iter(range(3))

    def value(code: str) -> int:
        return Cache(tmp_path, code).value("x", "same", INT, lambda: next(numbers))

    assert [value(code) for code in ("a", "a", "b", "a")] == [0, 0, 1, 0]
    assert Cache(tmp_path).code == code_digest()


def test_the_digest_of_the_code_holds_every_file_and_every_library(tmp_path: Path) -> None:
    package, libraries = tmp_path / "data", tmp_path / "libraries"
    shutil.copytree(ROOT / "training" / "data", package)
    (libraries / "numpy-2.4.6.dist-info").mkdir(parents=True)

    def digest() -> str:
        code_digest.cache_clear()
        return code_digest((package,), (str(libraries),))

    digests = [digest()]
    assert digest() == digests[0]
    (package / "duplicates.py").write_text("")
    digests.append(digest())
    (package / "new.py").touch()
    digests.append(digest())
    (package / "new").mkdir()
    (package / "new.py").rename(package / "new" / "new.py")
    digests.append(digest())
    (libraries / "numpy-2.4.6.dist-info").rename(libraries / "numpy-2.5.0.dist-info")
    digests.append(digest())
    (package / "duplicates.py").unlink()
    digests.append(digest())
    assert len(set(digests)) == 6


def test_the_entries_used_last_are_kept(tmp_path: Path) -> None:
    made: list[int] = []

    def use(number: int, kind: str = "x") -> None:
        def make() -> int:
            made.append(number)
            return number

        assert Cache(tmp_path).value(kind, number, INT, make) == number

    use(99, "other")
    for number in range(ENTRIES_OF_A_KIND):
        use(number)
    use(0)
    use(ENTRIES_OF_A_KIND)
    assert len(entries(tmp_path, "x")) == ENTRIES_OF_A_KIND
    assert len(entries(tmp_path, "other")) == 1
    made.clear()
    use(0)
    assert made == []
    use(1)
    assert made == [1]


@pytest.mark.parametrize("damaged", [False, True])
def test_an_entry_is_made_where_unused_and_damaged_ones_were(damaged: bool, tmp_path: Path) -> None:
    there: list[int] = []

    def make() -> int:
        there.append(len(entries(tmp_path, "x")))
        return 1

    for number in range(ENTRIES_OF_A_KIND):
        Cache(tmp_path).value("x", number, INT, lambda: 1)
    if damaged:
        max(tmp_path.glob("x-*"), key=lambda entry: entry.stat().st_mtime_ns).joinpath("value.json").write_text("2")
    Cache(tmp_path).value("x", ENTRIES_OF_A_KIND - damaged, INT, make)
    assert there == [ENTRIES_OF_A_KIND - 1]


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    values = iter(range(2))
    assert [Cache().value("x", 0, INT, lambda: next(values)) for _ in range(2)] == [0, 1]
    array = Cache().arrays("x", 0, lambda place: np.save(place / "rows.npy", np.arange(9)))["rows"]
    assert list(tmp_path.iterdir()) == []
    assert array.sum() == 36


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half.npy").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Cache(tmp_path).arrays("x", 0, fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert Cache(tmp_path).arrays("x", 0, lambda place: None) == {}


MAKE = """
import sys, time
from pathlib import Path
from pydantic import TypeAdapter
from training.data.cache import Cache

def make():
    with open("made", "a") as log:
        log.write(sys.argv[1])
    time.sleep(float(sys.argv[2]))
    return 7

print(Cache(Path("kept")).value("x", 0, TypeAdapter(int), make))
"""


def start(place: Path, name: str, seconds: float) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MAKE, name, str(seconds)]
    return subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_start_together_make_it_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, name, 3) for name in "ab"]
    said = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert len((tmp_path / "made").read_text()) == 1
    [entry] = (tmp_path / "kept").glob("x-*")
    assert said == ["7\n", f"cache  waiting for another process that makes kept/{entry.name}\n7\n"]


def test_who_waits_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    first = start(tmp_path, "a", 600)
    wait_until((tmp_path / "made").exists)
    second = start(tmp_path, "b", 0)
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    first.kill()
    first.communicate()
    assert second.communicate(timeout=60)[0] == "7\n"
    assert (tmp_path / "made").read_text() == "ab"
    assert not list((tmp_path / "kept").glob("*.partial"))


def test_of_a_mapped_array_only_what_is_copied_stays_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.arange(2**24, dtype=np.uint32).reshape(4096, -1))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")

    def read_of_files() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssFile:")[1].split()[0]) * 1024

    before = read_of_files()
    every_fourth = np.arange(0, len(images), 4)
    plain = images[every_fourth]
    assert read_of_files() - before >= plain.nbytes
    assert (copy_rows(images, every_fourth) == plain).all()
    assert read_of_files() - before < 2**20


def test_audit_and_evaluate_find_what_training_read(run: Path, photos: Path, tmp_path: Path) -> None:
    kept = run.parent / ".cache"
    before = entries(kept)
    evaluate(EvaluateConfig(run=run, data=photos, cache=kept, out=tmp_path / "evaluation"))
    run_audit(AuditConfig(data=photos, val_fraction=0.2, cache=kept, out=tmp_path / "audit"))
    assert entries(kept) == before
    assert (tmp_path / "audit" / "audit.json").read_text() == (run / "audit.json").read_text()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory; --cache names another place.*file/x"):
        Cache(tmp_path / "file" / "x").value("x", 0, INT, lambda: 1)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_its_name_free(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    mount = f"mount -t tmpfs -o size=200k none {tmp_path}/full"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("mounts are not allowed here")
    train = f"{sys.executable} -m training --data {photos} --cache {tmp_path}/full --out {tmp_path}/runs --name x"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && {train}; echo exit $?; ls -A {tmp_path}/full"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"error: .* images of .* MB are free; --cache names another place: ", done.stderr), done.stderr
    assert "exit 6" in done.stdout
    assert not [name for name in done.stdout.split("exit 6")[1].split() if name.endswith(".partial")]
    assert list((tmp_path / "runs").iterdir()) == []
