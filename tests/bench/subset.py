"""A smaller copy of an .npz in the MedMNIST layout: `python tests/bench/subset.py IN.npz OUT.npz TRAIN VAL TEST`.

The first images of each split are taken, so that it is the same copy everywhere.
"""

import sys
from pathlib import Path

import numpy as np


def subset(source: Path, target: Path, counts: dict[str, int]) -> None:
    """Write the first `counts` images and labels of each split."""
    with np.load(source) as arrays:
        kept = {name: arrays[name][: counts[name.split("_")[0]]] for name in arrays.files}
    np.savez(target, **kept)


if __name__ == "__main__":
    source, target, *sizes = sys.argv[1:]
    subset(Path(source), Path(target), dict(zip(("train", "val", "test"), map(int, sizes), strict=True)))
