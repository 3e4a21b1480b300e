from pathlib import Path

import pytest

from training.data.cache import Cache
from training.data.dataset import load_dataset
from training.data.formats import find_source
from training.errors import DataError
from training.options.config import TrainConfig


def corrections(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_labels_are_replaced_and_counted(photos: Path, tmp_path: Path) -> None:
    """As a person edits label-issues.csv: a line left alone, one corrected, other columns."""
    plain = find_source(photos, Cache(None))
    one, other = (next(key for key in plain.keys if key.startswith(label)) for label in ("blue", "Red rash"))
    path = corrections(
        tmp_path / "c.csv", f"path,label,suggested,score\n{one},green leaf,green leaf,0.9\n{other},Red rash,blue,0.2\n"
    )
    found = find_source(photos, Cache(None), corrections=path)
    changed = {key: (a, b) for key, a, b in zip(plain.keys, plain.labels, found.labels, strict=True) if a != b}
    assert changed == {one: ("blue", "green leaf")}
    assert found.notes[-1] == f"1 label is corrected by {path}."
    dataset = load_dataset(TrainConfig(data=photos, out=tmp_path, image_size=16, corrections=path))
    assert dataset.classes[dataset.labels[dataset.keys.index(one)]] == "green leaf"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nnowhere.png,blue\n", r"images that .* does not have: 1\n  line 2: nowhere.png"),
        ("path,label\nKEY,bleu\n", r"labels that are no class of .*: 1\n  line 2: 'bleu'; near it is blue"),
        (
            "path,label\nKEY,blue\nKEY,blue\n./KEY,green leaf\n",
            r"images with two labels: 1\n  line 4: \./.*: 'green leaf', but 'blue' in line 2",
        ),
        ("path\nKEY\n", "no column label"),
        ("path,label\nKEY,blue,0.3\n", "line 2: expected 2 values"),
        ("", "the manifest has no rows"),
    ],
)
def test_a_file_that_corrects_nothing_is_refused(photos: Path, tmp_path: Path, text: str, message: str) -> None:
    key = find_source(photos, Cache(None)).keys[0]
    with pytest.raises(DataError, match=message):
        find_source(photos, Cache(None), corrections=corrections(tmp_path / "c.csv", text.replace("KEY", key)))


def test_paths_may_be_spelt_as_in_a_manifest(tmp_path: Path) -> None:
    for name in ("caf\u00e9/1.png", "dog/2.png", "dog/3.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    path = corrections(tmp_path / "c.csv", "path,label\n./cafe\u0301//1.png,dog\n dog/2.png ,caf\u00e9\n")
    found = find_source(tmp_path / "data", Cache(None), corrections=path)
    assert dict(zip(found.keys, found.labels, strict=True)) == {
        "caf\u00e9/1.png": "dog",
        "dog/2.png": "caf\u00e9",
        "dog/3.png": "dog",
    }


def test_a_file_that_is_missing_is_a_sentence(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--corrections .*absent.csv: cannot be read \(No such file"):
        find_source(photos, Cache(None), corrections=tmp_path / "absent.csv")
