"""Images on a list of forgotten ones are read by nobody, whatever their names and wherever the data is."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.datasets import manifest, write
from training.data.cache import Cache
from training.data.dataset import load_dataset
from training.data.formats import find_source
from training.data.sources.forgotten import LIST, Content, Forgotten, add
from training.errors import DataError
from training.options.config import TrainConfig


def test_a_listed_file_is_left_out_under_any_name_and_others_stay(tmp_path: Path) -> None:
    paths = [write(tmp_path / "data" / label / f"{number}.png", number) for label in "ab" for number in range(3)]
    everything = find_source(tmp_path / "data", Cache())
    add(tmp_path, [Content.of(paths[1].read_bytes())])
    add(tmp_path, [Content.of(paths[1].read_bytes()), Content(paths[2].stat().st_size, "0" * 64)])
    paths[1].rename(paths[1].with_name("renamed.png"))
    source = find_source(tmp_path / "data", Cache(), forgotten=Forgotten.of(tmp_path / "runs" / "studies"))
    assert source.keys == ["a/0.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"]
    assert source.read(1) == paths[2].read_bytes()
    assert source.notes == [f"1 image is left out, by the list of forgotten images ({LIST} in the folder of runs)."]
    assert source.identity != everything.identity, "what is cached of all images is not used"
    assert (tmp_path / LIST).read_text().count("\n") == 3, "a heading and two images: none is listed twice"


def test_columns_labels_and_corrections_stay_with_their_images(tmp_path: Path) -> None:
    rows = [{"path": f"{number}.png", "label": "ab"[number % 2], "site": f"s{number}"} for number in range(4)]
    for row in rows:
        write(tmp_path / row["path"], 1)
    data = manifest(tmp_path / "labels.csv", rows)
    corrected = manifest(tmp_path / "corrected.csv", [{"path": "1.png", "label": "a"}, {"path": "3.png", "label": "a"}])
    add(tmp_path, [Content.of((tmp_path / "1.png").read_bytes())])
    source = find_source(data, Cache(), corrections=corrected, forgotten=Forgotten.of(tmp_path))
    assert list(zip(source.keys, source.labels, source.columns["site"], strict=True)) == [
        ("0.png", "a", "s0"),
        ("2.png", "a", "s2"),
        ("3.png", "a", "s3"),
    ], "a correction of an image that was forgotten is no mistake"


def test_rows_of_an_npz_are_blank_in_the_cache_and_the_others_keep_their_names(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(1, 256, (24, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(24) % 2)
    add(tmp_path, [Content.of(images[5])])
    source = find_source(tmp_path / "x.npz", Cache(tmp_path / ".cache"), forgotten=Forgotten.of(tmp_path))
    assert source.keys == [f"x.npz#train/{number}" for number in range(24) if number != 5]
    assert np.array_equal(source.read(5), images[6])
    [kept] = (tmp_path / ".cache").glob("npz-*/train_images.npy")
    assert not np.load(kept)[5].any()
    assert np.array_equal(np.delete(np.load(kept), 5, 0), np.delete(images, 5, 0))


def test_a_list_that_cannot_be_read_stops_everything(tmp_path: Path) -> None:
    (tmp_path / LIST).write_text("path\na/1.png\n")
    with pytest.raises(DataError, match=r"forgotten-images\.csv: expected a table with columns bytes and sha256"):
        load_dataset(TrainConfig(out=tmp_path / "runs"))
