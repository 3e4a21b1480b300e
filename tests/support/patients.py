"""A data set of patients with a column `group`, copies of a patient's pictures under other names, and given splits."""

import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np

COLOURS = {"blue": (200, 60, 40), "green": (60, 180, 60), "red": (40, 40, 200)}
SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 4
PERSON = "P0"
HEADER = ["path", "label", "split", "group"]


def picture(seed: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Blots on a ground, as different from others as two photographs are: uint8 `[112, 96, 3]`."""
    blots = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (112, 96)), (0, 0), 2.5)
    return np.clip(np.array(colour) + 60 * (blots / blots.std())[..., None], 0, 255).astype(np.uint8)


def write(root: Path, first_seed: int = 0, *, copies: bool = True) -> Path:
    """Write images and a manifest and return that; the same names with other pictures for another seed.

    The person has an image of each class in each split. One has three copies: re-encoded, cropped, mirrored.
    """
    rows, seed = [], first_seed
    for label, colour in COLOURS.items():
        for number, split in enumerate(SPLITS):
            seed += 1
            group = PERSON if number in (0, 6, 8) else f"P{seed % 1000}"
            rows.append(_saved(root, f"{label}/{number}.png", picture(seed, colour), (label, split, group)))
    if copies:
        rows += _copies(root)
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return root / "labels.csv"


def _copies(root: Path) -> list[tuple[str, ...]]:
    original = cv2.imread(str(root / "blue" / "0.png"))
    assert original is not None
    height, width = original.shape[:2]
    y, x = round(height * 0.025), round(width * 0.025)
    changed = {
        "blue/again.jpg": original,
        "blue/part.png": original[y : height - y, x : width - x],
        "blue/mirror.png": original[:, ::-1],
    }
    return [_saved(root, name, copy, ("blue", "train", f"Q{name}")) for name, copy in changed.items()]


def _saved(root: Path, name: str, pixels: np.ndarray, others: tuple[str, str, str]) -> tuple[str, ...]:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 70] if name.endswith(".jpg") else []
    assert cv2.imwrite(str(root / name), np.ascontiguousarray(pixels), quality)
    return (name, *others)


COPIES = ("blue/again.jpg", "blue/mirror.png", "blue/part.png")
NAMES = (*(f"{label}/{number}.png" for label in COLOURS for number in (0, 6, 8)), *COPIES)
"""Of all images to forget."""


def digests(*roots: Path) -> dict[Path, str]:
    """SHA-256 of each file."""
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
