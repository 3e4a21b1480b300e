"""What each --fit costs, and what it leaks: python -m tests.bench.data.fit --data MANIFEST.

The centres of the images are cut out with other proportions, twice: drawn without regard to the label (mixed), and by
the label alone (planted), which any model may learn in place of the picture. A model is trained on each, by each fit
and seed. One that was trained on the planted set is scored on both: on the mixed one it has lost what it learned of
proportions.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import cv2
import numpy as np
import tyro
from sklearn.model_selection import StratifiedGroupKFold

from serving.contract.decode import Fit, decode

FITS: tuple[Fit, ...] = ("stretch", "pad", "crop")
MIXED, PLANTED = "mixed", "planted"
PARTS = 7
"""One is the test split, one the validation split."""
WIDEST = 2.0
"""Width over height lies between 1 / WIDEST and WIDEST."""
MOVED = "planted, scored on mixed"
FILE_ALONE = "size, proportions and bytes alone, "
SCORES = (MIXED, PLANTED, MOVED, FILE_ALONE + MIXED, FILE_ALONE + PLANTED)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure --fit on images of mixed proportions."""

    data: Path
    """A CSV manifest with path, label and group."""
    out: Path
    """Folder for images and runs; what is there already is not made again."""
    seeds: tuple[int, ...] = (0, 1, 2)
    image_size: int = 128


def aspect(draw: float, label: int | None, classes: int) -> float:
    """Width over height for a draw of 0 to 1; each label has a range of its own, None all of it."""
    share = draw if label is None else (label + draw) / classes
    return float(WIDEST ** (2 * share - 1))


def cut(pixels: np.ndarray, ratio: float) -> np.ndarray:
    """The largest centre of this width over height, of pixels `[height, width, 3]`."""
    height, width = pixels.shape[:2]
    rows, columns = min(height, round(width / ratio)), min(width, round(height * ratio))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]


def make(options: Options, seed: int) -> dict[str, Path]:
    """The manifests of both sets, which have the same images in the same splits."""
    with options.data.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    classes = sorted(set(labels))
    folds = StratifiedGroupKFold(PARTS, shuffle=True, random_state=seed)
    (_, test), (_, val), *_ = folds.split(rows, labels, [row["group"] for row in rows])
    split = dict.fromkeys(test.tolist(), "test") | dict.fromkeys(val.tolist(), "val")
    random = np.random.default_rng(seed)
    manifests = {kind: options.out / f"{kind}-{seed}" / "manifest.csv" for kind in (MIXED, PLANTED)}
    if all(manifest.exists() for manifest in manifests.values()):
        return manifests
    for kind, manifest in manifests.items():
        manifest.parent.mkdir(parents=True, exist_ok=True)
        lines = ["path,label,split,group"]
        for number, (row, draw) in enumerate(zip(rows, random.random(len(rows)), strict=True)):
            ratio = aspect(draw, classes.index(row["label"]) if kind == PLANTED else None, len(classes))
            pixels = cut(decode((options.data.parent / row["path"]).read_bytes()), ratio)
            cv2.imwrite(str(manifest.parent / f"{number}.png"), pixels[:, :, ::-1])
            lines.append(f"{number}.png,{row['label']},{split.get(number, 'train')},{row['group']}")
        manifest.write_text("\n".join(lines) + "\n")
    return manifests


def training(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "training", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def measure(options: Options, fit: Fit, seed: int) -> dict[str, float]:
    """Balanced accuracy by each of SCORES."""
    manifests, figures = make(options, seed), {}
    for kind, manifest in manifests.items():
        run = options.out / f"{kind}-{seed}-{fit}"
        if not (run / "report" / "report.json").exists():
            training(
                *("--data", manifest, "--fit", fit, "--freeze", "--image-size", options.image_size),
                *("--model", "tf_efficientnet_lite0", "--seed", seed, "--promote", "never"),
                *("--out", options.out, "--name", run.name),
            )
        report = json.loads((run / "report" / "report.json").read_text())
        figures[kind] = report["scores"]["test"]["balanced_accuracy"]
        figures[FILE_ALONE + kind] = report["shortcut"]["from_file"]
    scored = options.out / f"{run.name}-on-{MIXED}"
    if not scored.exists():
        training("evaluate", "--run", run, "--data", manifests[MIXED], "--split", "test", "--out", scored)
    evaluation = json.loads((scored / "evaluation.json").read_text())
    figures[MOVED] = evaluation["scores"]["balanced_accuracy"]
    return figures


def table(figures: Mapping[Fit, Sequence[dict[str, float]]]) -> Iterator[str]:
    """Means over the seeds, lowest to highest."""
    yield f"| | {' | '.join(figures)} |"
    yield f"|---|{'---:|' * len(figures)}"
    for score in SCORES:
        cells = []
        for of_seeds in figures.values():
            values = [each[score] for each in of_seeds]
            cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        yield f"| {score} | {' | '.join(cells)} |"


def main() -> None:
    options = tyro.cli(Options)
    figures: dict[Fit, list[dict[str, float]]] = {fit: [] for fit in FITS}
    for seed in options.seeds:
        for fit in FITS:
            figures[fit].append(measure(options, fit, seed))
            print(seed, fit, figures[fit][-1], flush=True)
    print("\n".join(table(figures)))


if __name__ == "__main__":
    main()
