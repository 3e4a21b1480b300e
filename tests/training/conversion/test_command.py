import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from serving.contract.decode import decode
from serving.contract.extras import install_command
from tests.support.datasets import of
from tests.support.forged import animated, encoded, exif
from tests.support.pictures import RGB, RGBA, SMOOTH
from tests.support.tiff import Layout, tiff
from tests.support.trainer import command
from training.conversion import extras
from training.conversion.command import ImportConfig, import_images, import_summary
from training.data.sources.folders import folders
from training.data.sources.tree import IMPORT_RECORD
from training.errors import ConfigError, DataError

DEEP = SMOOTH[:, :, 0].astype(np.uint16) * 16


def source(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def imported(root: Path, files: dict[str, bytes]) -> tuple[Path, dict[str, dict[str, str]]]:
    """The new folder, and the rows of import.csv by source."""
    out = import_images(ImportConfig(source=source(root / "in", files), out=root / "out"))
    with (out / IMPORT_RECORD).open(newline="") as file:
        return out, {row["source"]: row for row in csv.DictReader(file)}


def pixels(path: Path) -> np.ndarray:
    return decode(path.read_bytes())


def test_every_copy_has_a_name_that_training_reads(tmp_path: Path) -> None:
    out, rows = imported(tmp_path, {"cat/IMG_1.HEIC": encoded(RGB, "JPEG"), "cat/scan_1": encoded(RGB, "PNG")})
    assert {row["done"] for row in rows.values()} == {"copied"}
    assert {*folders(out, ()).keys} == {"cat/IMG_1.HEIC.jpg", "cat/scan_1.png"}


def test_what_may_not_be_read_costs_its_own_row_alone(tmp_path: Path) -> None:
    root = source(tmp_path / "in", {"cat/a.png": encoded(RGB, "PNG")})
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    out = import_images(ImportConfig(source=root, out=tmp_path / "out"))
    with (out / IMPORT_RECORD).open(newline="") as file:
        done = {row["source"]: row["done"] for row in csv.DictReader(file)}
    assert done == {"cat/a.png": "copied", "cat/gone.png": "refused: No such file or directory"}


@pytest.mark.parametrize("low", [-1024, 0])
def test_values_with_a_sign_are_spread_by_what_they_are(tmp_path: Path, low: int) -> None:
    values = np.linspace(low, 3071, SMOOTH[:, :, 0].size).reshape(SMOOTH.shape[:2]).astype(np.int16)
    data = tiff(values.view(np.uint16)[:, :, None], Layout(tags={339: (3, [2])}))
    out, rows = imported(tmp_path, {"ct/a.tif": data})
    assert rows["ct/a.tif"]["done"] == "converted"
    made = pixels(out / rows["ct/a.tif"]["output"])
    assert made.min() < 5
    assert made.max() > 250


def test_other_formats_become_png_files_in_the_same_folders(tmp_path: Path) -> None:
    files = {
        "cat/a.jpg": encoded(RGB, "JPEG"),
        "cat/deep/b.avif": encoded(RGB, "AVIF", quality=100, subsampling="4:4:4"),
        "dog/c.jp2": encoded(RGB, "JPEG2000"),
        "dog/d.j2k": encoded(RGBA, "JPEG2000", no_jp2=True),
        "dog/e.tif": encoded(RGB.convert("CMYK"), "TIFF"),
        "dog/f.gif": animated("GIF", 3),
        "dog/notes.txt": b"text",
        "dog/cut.png": encoded(RGB, "PNG")[:50],
    }
    out, rows = imported(tmp_path, files)
    assert rows.keys() == files.keys()
    for name, data in files.items():
        assert rows[name]["sha256"] == hashlib.sha256(data).hexdigest()
    outputs = {name: row["output"] for name, row in rows.items() if row["output"]}
    assert outputs == {
        "cat/a.jpg": "cat/a.jpg",
        "cat/deep/b.avif": "cat/deep/b.avif.png",
        "dog/c.jp2": "dog/c.jp2.png",
        "dog/d.j2k": "dog/d.j2k.png",
        "dog/e.tif": "dog/e.tif.png",
        "dog/f.gif": "dog/f.gif.png",
    }
    assert (out / "cat/a.jpg").read_bytes() == files["cat/a.jpg"]
    assert rows["cat/a.jpg"]["done"] == "copied"
    assert np.abs(pixels(out / "cat/deep/b.avif.png").astype(int) - SMOOTH).max() < 12
    assert np.array_equal(pixels(out / "dog/c.jp2.png"), SMOOTH)
    white = Image.alpha_composite(Image.new("RGBA", RGBA.size, "white"), RGBA).convert("RGB")
    assert np.array_equal(pixels(out / "dog/d.j2k.png"), np.asarray(white))
    assert rows["dog/f.gif"]["frame"] == "1 of 3"
    assert rows["dog/notes.txt"]["done"] == "left out, no image"
    assert rows["dog/cut.png"]["done"].startswith("refused: the file is damaged")
    summary = import_summary(out)
    counted, first, *_ = summary.splitlines()
    assert counted == "5 converted, 1 copied, 1 left out, no image, 1 refused"
    assert first.startswith("  dog/cut.png: the file is damaged")
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            assert image.mode in ("L", "RGB")


def test_orientation_is_applied(tmp_path: Path) -> None:
    data = encoded(RGB, "AVIF", quality=100, exif=exif(6))
    out, _ = imported(tmp_path, {"a/a.avif": data})
    witness = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(out / "a/a.avif.png"), np.asarray(witness))


def test_deep_values_are_spread_and_the_record_says_how(tmp_path: Path) -> None:
    floats = DEEP.astype(np.float32) / 7 - 20
    files = {
        "a/jp2.jp2": encoded(Image.fromarray(DEEP * 16), "JPEG2000"),
        "a/float.tif": tiff(floats.view(np.uint32), Layout(tags={258: (3, [32]), 339: (3, [3])})),
    }
    out, rows = imported(tmp_path, files)
    assert (rows["a/jp2.jp2"]["depth"], rows["a/jp2.jp2"]["window"]) == ("16", "0 to 65535")
    expected = np.rint(DEEP * 16.0 / 65535 * 255)
    assert np.array_equal(pixels(out / "a/jp2.jp2.png")[:, :, 0], expected)
    low, high = (float(value) for value in rows["a/float.tif"]["window"].split(" to "))
    assert (low, high) == pytest.approx(np.percentile(floats, [0.5, 99.5]), rel=1e-4)
    assert rows["a/float.tif"]["depth"] == "32"
    assert len(np.unique(pixels(out / "a/float.tif.png"))) > 100


def test_a_copy_can_be_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(24)]
    files = {f"{'ab'[i % 2]}/{i}.avif": encoded(image, "AVIF") for i, image in enumerate(noise)}
    with pytest.raises(DataError, match=r"`python -m training import .*/in --out FOLDER` makes a copy"):
        folders(source(tmp_path / "in", files), [])
    out, _ = imported(tmp_path, {})
    assert len(of(out).keys) == 24


def test_files_that_can_be_imported_are_named_with_the_command(tmp_path: Path) -> None:
    image = encoded(RGB, "PNG")
    root = source(tmp_path, {"a/1.png": image, "a/2.heic": b"", "b/1.dcm": b"", "c/1.png": image, "d/1.psd": b""})
    hinted = [note for note in folders(root, []).notes if f"python -m training import {root} --out" in note]
    assert len(hinted) == 2
    assert any("1 .heic" in note for note in hinted)
    assert any("b (1 .dcm)" in note for note in hinted)


def test_nothing_is_overwritten_and_nothing_made_of_nothing(tmp_path: Path) -> None:
    full = source(tmp_path / "full", {"a.txt": b"mine"})
    with pytest.raises(ConfigError, match="expected an empty folder"):
        import_images(ImportConfig(source=full, out=full))
    with pytest.raises(ConfigError, match="expected a folder"):
        import_images(ImportConfig(source=tmp_path / "absent", out=tmp_path / "out"))
    with pytest.raises(DataError, match="no file is an image"):
        import_images(ImportConfig(source=full, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    twice = source(tmp_path / "twice", {"a.avif": encoded(RGB, "AVIF"), "a.avif.png": encoded(RGB, "PNG")})
    with pytest.raises(DataError, match="one name"):
        import_images(ImportConfig(source=twice, out=tmp_path / "out"))


def test_a_missing_extra_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "PACKAGES", {"heic": "absent_heif", "dicom": "absent_dicom"})
    files = {
        "a/1.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        "a/2": bytes(128) + b"DICM" + bytes(200),
        "a/3.jpg": encoded(RGB, "JPEG"),
    }
    with pytest.raises(ConfigError) as refused:
        imported(tmp_path, files)
    assert install_command("heic") in str(refused.value)
    assert install_command("dicom") in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_too_large_an_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    large = encoded(Image.new("L", (7000, 6000)), "JPEG2000")
    _, rows = imported(tmp_path, {"a/1.jp2": large, "a/2.png": encoded(RGB, "PNG")})
    assert rows["a/1.jp2"]["done"] == "refused: it has 7000 x 6000 px; at most 40 megapixels are read"


def test_a_manifest_whose_paths_are_no_longer_right_is_named(tmp_path: Path) -> None:
    files = {"a.avif": encoded(RGB, "AVIF"), "labels.csv": b"path,label\na.avif,cat\n"}
    out, rows = imported(tmp_path, files)
    assert rows["a.avif"]["output"] == "a.avif.png"
    note = next(line for line in import_summary(out).splitlines() if line.startswith("note: CSV files are left out"))
    assert "labels.csv. The paths of a manifest have to become those of the copies, which import.csv has" in note
    out, _ = imported(tmp_path / "plain", {"a.avif": files["a.avif"]})
    assert "note" not in import_summary(out)


@pytest.mark.long
def test_the_command_line(tmp_path: Path) -> None:
    root = source(tmp_path / "in", {"a/1.jp2": encoded(RGB, "JPEG2000")})
    words = ("import", root, "--out", tmp_path / "out")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "1 converted" in done.stdout
    again = command(*words)
    assert again.returncode == 2
    assert "expected an empty folder" in again.stderr
