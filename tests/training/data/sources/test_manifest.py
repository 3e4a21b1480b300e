import unicodedata
from pathlib import Path

import pytest

from training.data.cache import Cache
from training.data.formats import find_source
from training.errors import DataError


def test_values_are_clean_so_that_no_group_is_parted_by_a_blank(tmp_path: Path) -> None:
    accents = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    for number in range(4):
        (tmp_path / f"{number}.png").touch()
    text = f"path , Label,group ,SPLIT\n0.png ,cat ,P0, Train\n 1.png,cat,P0 ,testing\n2.png,{accents[0]},p0,eval\n"
    (tmp_path / "m.csv").write_text(f"{text}3.png,{accents[1]},,\n", encoding="utf-8")
    source = find_source(tmp_path / "m.csv", Cache())
    assert source.keys == ["0.png", "1.png", "2.png", "3.png"]
    assert source.labels == ["cat", "cat", accents[0], accents[0]]
    assert source.groups == ["P0", "P0", "p0", ""]
    assert source.splits == ["train", "test", "val", None]
    assert source.notes == ["groups that differ only by case count as different: P0 and p0."]


def test_several_labels_an_image_are_noticed(tmp_path: Path) -> None:
    labels = ("Effusion", "Nodule|Effusion", "Effusion|Mass", "Nodule", "No finding; left", "A+B")
    for number in range(len(labels)):
        (tmp_path / f"{number}.png").touch()
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (tmp_path / "m.csv").write_text(f"path,label\n{rows}")
    [note] = find_source(tmp_path / "m.csv", Cache()).notes
    assert note.startswith("2 of 6 labels look like several at once, such as 'Nodule|Effusion':")


@pytest.mark.parametrize(
    ("words", "splits"),
    [
        (("train", "eval", "test"), ["train", "val", "test"]),
        (("Training", "dev", "Evaluation"), ["train", "val", "test"]),
    ],
)
def test_splits_are_named_as_folders_are(tmp_path: Path, words: tuple[str, ...], splits: list[str]) -> None:
    for word in words:
        (tmp_path / f"{word}.png").touch()
    (tmp_path / "m.csv").write_text("path,label,split\n" + "".join(f"{word}.png,cat,{word}\n" for word in words))
    assert find_source(tmp_path / "m.csv", Cache()).splits == splits


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\n0.png,cat, black\n", "line 2: expected 2 values"),
        ("path,label,group\n0.png,cat\n", "line 2: expected 3 values"),
        ("path,label\n0.png,  \n", "rows without a label: 1\n  line 2: 0.png$"),
        ("path,label\n0.png,cat\n ,\n,,\n,dog\n", "do not exist in FOLDER: 1\n  line 5: $"),
        ("path,label\nb\\0.png,dog\n", r"do not exist in FOLDER; folders are parted by /, .*: 1\n  line 2: b"),
        ("path,label\n0.png,cat\n0.png ,dog\n", "more than once: 1\n  0.png"),
        ("path,label\n", "no rows"),
    ],
)
def test_what_is_ragged_or_lacks_a_label_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "0.png").touch()
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=reason.replace("FOLDER", str(tmp_path))):
        find_source(tmp_path / "m.csv", Cache())
