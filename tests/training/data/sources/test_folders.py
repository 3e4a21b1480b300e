import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from training.data.cache import Cache
from training.data.formats import find_source
from training.data.sources.source import Source
from training.errors import DataError


def files(root: Path, *names: str) -> Path:
    """Empty files; a listing reads no image."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, *outputs: Path) -> Source:
    return find_source(root, Cache(), outputs)


def images(source: Source) -> Counter[tuple[str | None, str]]:
    return Counter(zip(source.splits, source.labels, strict=True))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "test"), ("train", "test")),
        (("Training", "Testing"), ("train", "test")),
        (("seg_train", "seg_test"), ("train", "test")),
        (("trainset", "valset"), ("train", "val")),
        (("train", "eval"), ("train", "test")),
        (("train", "eval", "test"), ("train", "val", "test")),
        (("TRAIN", "Valid", "Test"), ("train", "val", "test")),
        (("chest-train", "chest-dev"), ("train", "val")),
        (("train",), ("train",)),
    ],
)
def test_folders_named_as_splits_are_splits(tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    for name in names:
        files(tmp_path, f"{name}/cat/1.png", f"{name}/dog/2.png")
    assert images(listed(tmp_path)) == {(split, label): 1 for split in splits for label in ("cat", "dog")}


def test_a_split_folder_within_itself(tmp_path: Path) -> None:
    files(tmp_path, *(f"seg_{split}/seg_{split}/{label}/1.png" for split in ("train", "test") for label in "ab"))
    files(tmp_path, "seg_pred/1.png")
    source = listed(tmp_path)
    assert images(source) == {(split, label): 1 for split in ("train", "test") for label in "ab"}
    assert any("beside the splits" in note and "seg_pred (1)" in note for note in source.notes)


def test_a_folder_within_itself_hides_no_file_beside_it(tmp_path: Path) -> None:
    files(tmp_path / "a", "cat/1.png", "cat/2.heic", "cat/cat/3.png", "dog/1.png", "dog/dog/none.txt")
    source = listed(tmp_path / "a")
    assert sorted(source.keys) == ["cat/1.png", "cat/cat/3.png", "dog/1.png"]
    assert source.ignored == ["cat/2.heic", "dog/dog/none.txt"]
    files(tmp_path / "b", *(f"{split}/{split}/{label}/1.png" for split in ("train", "test") for label in "ab"))
    source = listed(files(tmp_path / "b", "train/2.png", "train/train/3.png"))
    assert images(source) == {(split, label): 1 for split in ("train", "test") for label in "ab"}
    assert source.notes == ["images in no class folder are left out: train (1), train/train (1)."]


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.png", "bus/1.png", "car/1.png"),
        ("train/freight/1.png", "train/express/1.png", "bus/1.png", "car/old/1.png"),
        ("bullet_train/1.png", "steam_train/1.png"),
        ("testing/1.png", "production/1.png"),
    ],
)
def test_classes_of_which_one_is_named_as_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = listed(files(tmp_path, *names))
    assert set(source.labels) == {name.split("/")[0] for name in names}
    assert set(source.splits) == {None}


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.png", "test/2.png"),
        ("train/1.png", "train/2.png"),
        ("seg_train/1.png", "seg_test/1.png"),
        ("train/cat/1.png", "train/dog/1.png", "cat/1.png", "dog/1.png"),
        ("train/cat/1.png", "train/dog/1.png", "extra/cat/1.png", "extra/dog/1.png"),
        ("train/a/1.png", "test/b/1.png", "car/1.png"),
    ],
)
def test_doubt_names_both_readings(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"two ways(.|\n)*As splits(.|\n)*As classes"):
        listed(files(tmp_path, *names))


@pytest.mark.parametrize("above", ["", "train/"])
def test_folders_in_class_folders_that_may_be_more_are_named(tmp_path: Path, above: str) -> None:
    names = [
        f"{above}{label}/{kind}/{i}.png" for label in ("covid", "normal") for kind in ("images", "masks") for i in "12"
    ]
    [note] = listed(files(tmp_path / "masks", *names)).notes
    assert (
        "all images below a class folder are of its class, also those in folders called images (4), masks (4)" in note
    )
    [note] = listed(files(tmp_path / "one", f"{above}a/1.png", f"{above}b/1.png", f"{above}b/lung masks/1.png")).notes
    assert "called lung masks (1);" in note
    [note] = listed(files(tmp_path / "split", f"{above}a/1.png", f"{above}a/test/1.png", f"{above}b/1.png")).notes
    assert "called test (1);" in note
    harmless = ("a/images", "b/images"), ("a/x", "b/y")
    for number, folders in enumerate(harmless):
        assert not listed(files(tmp_path / str(number), *(f"{above}{folder}/1.png" for folder in folders))).notes


def test_splits_in_class_folders_are_refused(tmp_path: Path) -> None:
    files(tmp_path, *(f"{label}/{split}/1.png" for label in ("cat", "dog") for split in ("Train", "test")))
    with pytest.raises(
        DataError, match=r"splits are in every class folder \(Train, test\); expected .*/<split>/<class>/"
    ):
        listed(tmp_path)


def test_tables_beside_the_folders_are_named_with_what_reads_them(tmp_path: Path) -> None:
    root = files(tmp_path, "part_1/1.png", "part_2/2.png", "labels.csv", "import.csv")
    [note] = listed(root).notes
    assert note.startswith(f"CSV files beside the folders are not read: labels.csv; `--data {root}/labels.csv` takes")


def test_unlabelled_test_images_are_left_out_and_named(tmp_path: Path) -> None:
    source = listed(files(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png", "3.png"))
    assert images(source) == {("train", "cat"): 1, ("train", "dog"): 1}
    assert any("no class folder" in note and "test (2)" in note and ". (1)" in note for note in source.notes)


def test_own_output_is_no_data(tmp_path: Path) -> None:
    files(tmp_path, "cat/1.png", "dog/1.png", "runs/one/report/figures/loss.png", "cache/images-1/x.png")
    files(tmp_path, "elsewhere/two/config.yaml", "elsewhere/two/checkpoints/last.pt", "elsewhere/two/report/a.png")
    files(tmp_path, "cat/scores/evaluation.html", "cat/scores/evaluation.json", "cat/scores/figure.png")
    source = listed(tmp_path, tmp_path / "runs", tmp_path / "cache")
    assert images(source) == {(None, "cat"): 1, (None, "dog"): 1}
    [note] = source.notes
    assert "cache, cat/scores, elsewhere/two, runs" in note


def test_an_output_that_holds_the_data_leaves_it_in(tmp_path: Path) -> None:
    files(tmp_path, "photos/cat/1.png", "photos/dog/1.png")
    assert len(listed(tmp_path / "photos", tmp_path, tmp_path / "photos").keys) == 2


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", ".Trash-1000/files"])
def test_hidden_folders_are_left_out_counted_and_named(tmp_path: Path, hidden: str) -> None:
    files(tmp_path, "cat/1.png", "dog/1.png", f"cat/{hidden}/2.png", f"cat/{hidden}/3.png", f"{hidden}/4.png")
    source = listed(tmp_path)
    assert sorted(source.keys) == ["cat/1.png", "dog/1.png"]
    [note] = source.notes
    assert "3 images" in note
    assert f"cat/{hidden.split('/', maxsplit=1)[0]} (2)" in note


def test_class_names_in_two_forms_or_with_blanks_are_one(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    source = listed(files(tmp_path, f"{forms[0]}/1.png", f"{forms[1]}/2.png", "cat/1.png", "cat /2.png", "a\nb/1.png"))
    assert images(source) == {(None, forms[0]): 2, (None, "cat"): 2, (None, "a b"): 1}


def test_names_that_differ_only_by_case_are_named(tmp_path: Path) -> None:
    source = listed(files(tmp_path, "Cat/1.png", "cat/1.png", "dog/1.png"))
    assert source.notes == ["class names that differ only by case count as different: Cat and cat."]


def test_classes_without_an_image_are_named(tmp_path: Path) -> None:
    files(tmp_path, "cat/1.png", "dog/1.JFIF", "bird/1.psd", "bird/2.psd")
    (tmp_path / "empty").mkdir()
    source = listed(tmp_path)
    assert images(source) == {(None, "cat"): 1, (None, "dog"): 1}
    assert any("bird (2 .psd), empty (empty)" in note for note in source.notes)
    assert source.ignored == ["bird/1.psd", "bird/2.psd"]


def test_each_real_folder_is_read_once(tmp_path: Path) -> None:
    root = files(tmp_path / "data", "cat/1.png", "dog/1.png")
    files(tmp_path, "more/2.png", "beside/3.png")
    for link, target in (("cat/up", ".."), ("dog/up", ".."), ("cat/top", "../.."), ("dog/cats", "../cat")):
        (root / link).symlink_to(target)
    (root / "cat" / "more").symlink_to(tmp_path / "more")
    (root / "dog" / "more").symlink_to(tmp_path / "more")
    (root / "dog" / "loop").symlink_to("loop")
    source = listed(root)
    assert sorted(source.keys) == ["cat/1.png", "cat/more/2.png", "dog/1.png"]
    [note] = [note for note in source.notes if "read once" in note]
    assert "cat/top, cat/up, dog/cats, dog/more, dog/up" in note
