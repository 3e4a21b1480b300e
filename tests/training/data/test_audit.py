import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support.datasets import manifest, write
from tests.support.forged import animated, encoded
from tests.support.pictures import RGB
from training.__main__ import main
from training.data import formats
from training.data.audit import Audit
from training.data.cache import Cache
from training.data.dataset import divide_and_audit
from training.data.inspection.contents import inspect_files
from training.data.inspection.image_set import image_set
from training.data.splits import SplitPolicy
from training.errors import ConfigError
from training.options.choices import Leaks
from training.report.audit import AuditConfig, audit_facts, audit_lines, audit_warnings, recall_interval


def audited(data: Path, leaks: Leaks = "drop") -> Audit:
    source = formats.find_source(data, Cache())
    images = image_set(source, inspect_files(source, Cache()))
    policy = SplitPolicy(leaks=leaks, val_fraction=0.15, test_fraction=0.15, seed=0)
    return divide_and_audit(images, policy, Cache())


def picture(path: Path, seed: int, ending: str = "") -> Path:
    """Smooth noise, unique to the seed, written as `path`; in the format of `ending` when one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).normal(128, 60, (24, 24, 3))
    pixels = np.clip(cv2.resize(coarse, (80, 80), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    path.write_bytes(cv2.imencode(ending or path.suffix, pixels)[1].tobytes())
    return path


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    """Two classes in three splits that the data brings: a leak, a contradiction, and files of many kinds."""
    for number, split in enumerate(["train"] * 20 + ["val"] * 10 + ["test"] * 10):
        picture(tmp_path / split / "ab"[number % 2] / f"{number}.png", number)
    picture(tmp_path / "train" / "a" / "leak.jpg", 30)  # test/a/30.png, encoded anew
    picture(tmp_path / "train" / "b" / "leak.png", 20 + 1)  # val/b/21.png
    picture(tmp_path / "train" / "b" / "contradiction.webp", 2)  # train/a/2.png
    picture(tmp_path / "test" / "b" / "misnamed.png", 99, ".jpg")
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    return tmp_path


def test_what_leaks_is_found_named_and_taken_out(brought: Path) -> None:
    found = audited(brought)
    assert found.fault is None
    removed = {found.images.keys[i]: why for i, why in found.division.removed.items()}
    assert removed == {
        "train/a/leak.jpg": "also in the test split",
        "train/b/leak.png": "also in the val split",
        "train/a/2.png": "one picture under two labels",
        "train/b/contradiction.webp": "one picture under two labels",
    }
    assert len(found.leaks) == 2
    assert len(found.contradictions) == 1
    assert found.misnamed == {"test/b/misnamed.png": "JPEG"}
    assert found.images.ignored == ["train/a/notes.txt"]
    assert found.counts == {"a": {"train": 9, "val": 5, "test": 5}, "b": {"train": 10, "val": 5, "test": 6}}
    said = " ".join(audit_warnings(found))
    assert "2 pairs of images show one picture in two splits. 2 images were removed" in said
    assert "1 pair of images show one picture under two labels" in said
    assert "1 file was named as another format" in said


def test_warn_leaves_everything_and_says_so(brought: Path) -> None:
    found = audited(brought, "warn")
    assert not found.division.removed
    assert found.counts == {"a": {"train": 11, "val": 5, "test": 5}, "b": {"train": 12, "val": 5, "test": 6}}
    assert "the scores are too high" in " ".join(audit_warnings(found))


def test_error_names_the_images(brought: Path) -> None:
    found = audited(brought, "error")
    assert found.fault is not None
    assert "2 pairs show one picture in two splits, 1 show one under two labels" in found.fault
    assert "test/a/30.png  train/a/leak.jpg  (near)" in found.fault
    assert "train/a/2.png  train/b/contradiction.webp  (exact)" in found.fault


def test_a_group_in_two_splits_is_named(tmp_path: Path) -> None:
    rows = []
    for number in range(30):
        path = write(tmp_path / f"{number}.png", number)
        split = ("train", "val", "test")[number % 3]
        group = "patient 7" if number in (3, 4) else ""
        rows.append({"path": path.name, "label": "ab"[number // 15], "split": split, "group": group})
    found = audited(manifest(tmp_path / "m.csv", rows))
    assert found.parted_groups == {"patient 7": {"train": 1, "val": 1}}
    assert [found.images.keys[i] for i in found.division.removed] == ["3.png"]
    assert "1 group had images in two splits. 1 image was removed" in " ".join(audit_warnings(found))


@pytest.mark.parametrize("size", [4, 8])
def test_a_group_that_is_most_of_a_split_is_named(tmp_path: Path, size: int) -> None:
    rows = []
    for number in range(30):
        path = write(tmp_path / f"{number}.png", number)
        split = ("train", "val", "test")[number % 3]
        group = "patient 7" if split == "val" and number < 3 * size else ""
        rows.append({"path": path.name, "label": "ab"[number // 15], "split": split, "group": group})
    said = [line for line in audit_warnings(audited(manifest(tmp_path / "m.csv", rows))) if "one group" in line]
    named = ["8 of the 10 images of the val split are one group: scores rest on it."]
    assert said == (named if size == 8 else [])


def test_splits_that_are_made_part_no_picture_so_nothing_leaks(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png", number)
        picture(tmp_path / "ab"[number % 2] / f"{number} again.jpg", number)
    found = audited(tmp_path, "error")
    assert len(found.images.duplicates.pairs) == 40
    assert not found.leaks
    assert found.fault is None
    assert not list(audit_warnings(found))[1:], "only that there are few test images"


def test_a_fault_leaves_the_audit_to_read(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / "a" / f"{number}.png", number)
    (tmp_path / "a" / "empty.png").touch()
    (tmp_path / "a" / "link.png").symlink_to("nowhere")
    found = audited(tmp_path)
    assert found.fault is not None
    assert found.fault.startswith(f"{tmp_path}: 2 of 12 images cannot be read")
    assert found.images.unreadable["a/empty.png"] == "the file is empty"
    assert "left out a/link.png" in audit_lines(audit_facts(found))
    assert audit_facts(found)["fault"] == found.fault


def test_images_that_the_import_makes_readable_are_named_with_it(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "whole.png", 1)
    importable = {
        "avif.jpg": encoded(RGB, "AVIF"),
        "cmyk.tif": encoded(RGB.convert("CMYK"), "TIFF"),
        "film.gif": animated("GIF", 3),
        "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    }
    others = {"cut.png": encoded(RGB, "PNG")[:50], "cut.tif": encoded(RGB, "TIFF")[:50], "page.jpg": b"<html>"}
    for name, data in {**importable, **others}.items():
        (tmp_path / "a" / name).write_bytes(data)
    fault = audited(tmp_path).fault or ""
    named = {line.strip().partition(":")[0] for line in fault.splitlines() if "`python -m training import`" in line}
    assert fault.startswith(f"{tmp_path}: 7 of 8 images cannot be read")
    assert named == {f"a/{name}" for name in importable}


def test_facts_hold_counts_sizes_and_pairs_by_name(brought: Path) -> None:
    facts = audit_facts(audited(brought))
    assert facts["files"]["formats"] == {"PNG": 41, "JPEG": 2, "WEBP": 1}
    assert facts["files"]["width"] == {"min": 80, "median": 80, "max": 80}
    assert facts["duplicates"]["exact"] == 2, "PNG of the same pixels, and WebP without loss"
    near = next(pair for pair in facts["duplicates"]["pairs"] if pair["kind"] == "near")
    assert near["images"] == ["test/a/30.png", "train/a/leak.jpg"]
    assert near["splits"] == ["test", "train"]
    assert near["labels"] == ["a", "a"]
    assert {row["image"] for row in facts["removed"]} >= {"train/a/leak.jpg"}


def test_a_class_without_test_images_and_one_with_few_are_warned_of(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        path = write(tmp_path / f"{number}.png", number)
        split = ("train", "train", "val", "test")[number % 4]
        label = "c" if number in (0, 2) else "ab"[number % 3 == 0]
        rows.append({"path": path.name, "label": label, "split": split})
    said = list(audit_warnings(audited(manifest(tmp_path / "m.csv", rows))))
    assert "The test split has no image of c: no score covers them." in said
    low, high = recall_interval(5)
    assert (low, high) == pytest.approx((0.376, 0.964), abs=1e-3), "Wilson's interval of 4 in 5"
    assert any("with 5 images of b, the 95 % interval of a recall of 80% is 38% to 96%" in line for line in said)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": -1}, "--seed: expected 0 to 4294967295, got -1"),
        ({"val_fraction": 15.0}, "--val-fraction and test-fraction: expected together below 1, got 15.15"),
        ({"test_fraction": 0.0}, "--test-fraction: expected above 0, got 0.0"),
    ],
)
def test_options_have_the_limits_of_a_training(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        AuditConfig(**options)


def test_a_folder_that_cannot_be_written_to_costs_no_reading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "data" / "a" / "0.png", 0)
    (tmp_path / "file").touch()
    places = ["--data", str(tmp_path / "data"), "--cache", str(tmp_path / "cache")]
    assert main(["audit", *places, "--out", str(tmp_path / "file" / "out")]) == 6
    assert "file/out: cannot be written to (Not a directory); --out names another place" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_fault_of_the_list_leaves_no_empty_folder(tmp_path: Path) -> None:
    assert main(["audit", "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]) == 3
    assert not (tmp_path / "out").exists()
