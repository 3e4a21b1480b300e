import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from serving.contract.listing import ManifestError, clean, is_hidden, on_disk, read_manifest

Form = Literal["NFC", "NFD"]


def rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    path.write_text(text, encoding="utf-8")
    return list(read_manifest(path, ("path", "label")))


def test_headers_are_clean_and_every_row_has_its_line(tmp_path: Path) -> None:
    read = rows(tmp_path / "m.csv", '\ufeff Path ,LABEL,\u200bgroup\n\na.png,cat,P0\n"b, c.png",dog,P1\n')
    assert read == [
        (3, {"path": "a.png", "label": "cat", "group": "P0"}),
        (4, {"path": "b, c.png", "label": "dog", "group": "P1"}),
    ]


def test_lines_without_a_value_are_left_out(tmp_path: Path) -> None:
    assert rows(tmp_path / "m.csv", ",\npath,label\na.png,cat\n,,\n , \n") == [(3, {"path": "a.png", "label": "cat"})]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\na.png,cat\nb.png,cat, black\n", r"line 3: expected 2 values.*got 3.*quotes(.|\n)*' black'"),
        ("path,label\na.png\n", r"line 2: expected 2 values.*got 1\n  \['a.png'\]"),
        ('path,label\na.png,"cat\nb.png,dog"\n', r"line 3: a value holds a line end"),
        ('path,label\na.png,"cat\n', r"line 2: not a CSV file"),
        ('path,label\na.png,"cat"x\nb.png,dog\n', r"line 2: not a CSV file"),
        ("path,label, label\na.png,cat,dog\n", "more than one column label"),
        ("path,class\na.png,cat\n", "no column label; there are path, class"),
        ("path;label\na.png;cat\n", "expected commas between the values, got semicolons in 'path;label'"),
        ("path\tlabel\na.png\tcat\n", r"expected commas between the values, got tabs in 'path\\tlabel'"),
        ("", "no rows"),
    ],
)
def test_a_ragged_manifest_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        rows(tmp_path / "m.csv", text)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,label\n" + b"a.png,a\n" * 40 + b"J\xfcrgen.png,a\n")
    with pytest.raises(ManifestError, match="line 42: not in UTF-8"):
        list(read_manifest(tmp_path / "m.csv", ("path",)))
    *_, (_, row) = read_manifest(tmp_path / "m.csv", ("path",), "surrogateescape")
    assert row["path"] == "J\udcfcrgen.png"


def test_names_are_clean_in_one_form() -> None:
    assert clean(" cat\u00a0") == clean("\ufeffcat\u200b ") == clean("cat") == "cat"
    assert clean(unicodedata.normalize("NFD", "café")) == unicodedata.normalize("NFC", "café")
    assert clean("black \r\n cat\t") == "black cat"
    assert clean("red  rash") == "red  rash"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_is_found_in_either_form(tmp_path: Path, form: Form) -> None:
    name = unicodedata.normalize(form, "café.png")
    (tmp_path / name).touch()
    (tmp_path / " blank.png").touch()
    asked: Form
    for asked in ("NFC", "NFD"):
        assert on_disk(tmp_path, f" {unicodedata.normalize(asked, 'café.png')} ") == name
    assert on_disk(tmp_path, " blank.png") == " blank.png"
    assert on_disk(tmp_path, " gone.png ") == "gone.png"
    assert on_disk(tmp_path, "a" * 300) == "a" * 300, "no name that a file can have"


def test_hidden_names() -> None:
    assert all(map(is_hidden, (".thumbnails", "._cat.jpg", ".Trash-1000", "@eaDir", "__MACOSX", "$RECYCLE.BIN")))
    assert not any(map(is_hidden, ("cat", "@home", "__background__", "$", "#1")))
