"""Several processes that make one table."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from serving.batch.parts import Part, PartFiles, encode
from serving.batch.shards import Shard, SharedTable
from tests.serving.batch.test_batch import scored, table

COLUMNS = ["path", "error"]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "-1/2", "1/2/3", "a/b"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/n"):
        Shard.parse(text)


def test_each_path_is_of_one_shard_and_they_are_alike_in_size() -> None:
    paths = [f"folder {number % 7}/{number}.png" for number in range(8_000)]
    shares = [{path for path in paths if Shard(number, 8).has(path)} for number in range(1, 9)]
    assert Counter(path for share in shares for path in share) == Counter(paths)
    assert all(900 < len(share) < 1100 for share in shares)
    assert all(Shard().has(path) for path in paths)


@pytest.mark.long
def test_shards_together_make_the_table_of_one(run: Path, photos: Path, tmp_path: Path) -> None:
    """In any order; a shard that is called again does nothing anew, and one that was killed resumes."""
    options = ["--model", run / "model.onnx", "--workers", 1]
    whole, out = tmp_path / "whole.csv", tmp_path / "shared" / "x.csv"
    out.parent.mkdir()
    assert scored(photos, *options, "--out", whole).returncode == 0
    for number in (3, 1):
        done = scored(photos, *options, "--out", out, "--shard", f"{number}/3")
        assert done.returncode == 0, done.stderr
        missing = "1/3, 2/3" if number == 3 else "2/3"
        assert done.stdout == f"shard {number}/3 is complete; {out} also needs {missing}\n"
        assert not out.exists()
    again = scored(photos, *options, "--out", out, "--shard", "1/3")
    assert "also needs 2/3" in again.stdout
    assert "0 images, 0 failed" in again.stderr
    last = scored(photos, *options, "--out", out, "--shard", "2/3")
    assert (last.returncode, last.stdout) == (0, f"{out}\n"), last.stderr
    assert sorted(map(str, table(out))) == sorted(map(str, table(whole)))
    assert list(out.parent.iterdir()) == [out]


def test_rows_of_another_model_or_count_complete_no_table(tmp_path: Path) -> None:
    ours = SharedTable(tmp_path / "x.csv", COLUMNS, "ours")
    complete(SharedTable(tmp_path / "x.csv", COLUMNS, "theirs"), Shard(2, 2), "theirs.png")
    complete(ours, Shard(2, 3), "thirds.png")
    complete(ours, Shard(1, 2), "a.png")
    assert ours.missing(2) == [Shard(2, 2)]
    complete(ours, Shard(2, 2), "b.png")
    assert ours.missing(2) == []
    ours.write(2)
    assert [row["path"] for row in table(tmp_path / "x.csv")] == ["a.png", "b.png"]


def complete(shared: SharedTable, shard: Shard, path: str) -> None:
    with PartFiles(shared.folder(shard), COLUMNS) as parts:
        parts.append(Part(rows=encode([[path, ""]]), images=1, failed=Counter()))
        parts.complete()


def test_one_that_was_killed_before_its_last_part_is_not_complete(tmp_path: Path) -> None:
    shared = SharedTable(tmp_path / "x.csv", COLUMNS, "ours")
    with PartFiles(shared.folder(Shard(1, 2)), COLUMNS) as parts:
        parts.append(Part(rows=encode([["a.png", ""]]), images=1, failed=Counter()))
    complete(shared, Shard(2, 2), "b.png")
    assert shared.missing(2) == [Shard(1, 2)]


def test_two_that_end_at_once_write_the_same_table(tmp_path: Path) -> None:
    """The slower one finds the parts removed, wholly or in part, and leaves the table of the other."""
    shared = SharedTable(tmp_path / "x.csv", COLUMNS, "ours")
    for number in (1, 2):
        complete(shared, Shard(number, 2), f"{number}.png")
    slower = shared.folder(Shard(2, 2))
    shutil.copytree(slower, tmp_path / "kept")
    shared.write(2)
    written = (tmp_path / "x.csv").read_bytes()
    shutil.copytree(tmp_path / "kept", slower)
    (slower / "0.csv").unlink()  # the other one is removing it
    shared.write(2)
    assert (tmp_path / "x.csv").read_bytes() == written
    assert list(tmp_path.glob(".x*")) == []
