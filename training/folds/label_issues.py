"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

A class is confident of an image when it gives it at least the probability that it gives its own images on average.
Counting the likeliest confident class against the label estimates how many images of each label show each other class.
As many, those whose probability of the other class exceeds that of their label most, are issues (pruning by noise
rate, section 3.2). The averages make a class that the model is unsure of count as much as one that it is sure of.
Probabilities must be out of fold: a model that has learned a wrong label repeats it.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from training.data.dataset import LabelledImages
from training.metrics.classification import Labels, Probabilities

COLUMNS = ("path", "label", "suggested", "score")
"""Of label-issues.csv. `label` may be corrected by hand; --corrections reads it."""


@dataclass(frozen=True, kw_only=True)
class LabelIssue:
    """The label of an image that is probably another one."""

    row: int
    """Of the probabilities."""
    suggested: int
    """Index of the class that the image probably shows."""
    score: float
    """Probability of the suggested class minus that of the label, 0 to 1; the larger, the likelier the issue."""


def find_label_issues(labels: Labels, probabilities: Probabilities) -> list[LabelIssue]:
    """The issues among images with these labels and out-of-fold probabilities, the likeliest first.

    Images that the model gives their label are none.
    """
    wrong = mislabelled(labels, probabilities)
    margin = probabilities - probabilities[np.arange(len(labels)), labels][:, None]
    suggested: dict[int, int] = {}
    for label, other in np.argwhere(wrong > 0):
        mine = np.flatnonzero((labels == label) & (margin[:, other] > 0))
        for row in mine[np.argsort(-margin[mine, other], kind="stable")][: wrong[label, other]]:
            known = suggested.get(int(row), int(other))
            suggested[int(row)] = int(other) if margin[row, other] > margin[row, known] else known
    issues = [LabelIssue(row=row, suggested=to, score=float(margin[row, to])) for row, to in suggested.items()]
    return sorted(issues, key=lambda issue: (-issue.score, issue.row))


def mislabelled(labels: Labels, probabilities: Probabilities) -> Int64[np.ndarray, "labels classes"]:
    """How many images of each label are estimated to show each other class; zeros on the diagonal."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    usual = np.bincount(labels, probabilities[np.arange(len(labels)), labels], classes) / np.maximum(counts, 1)
    # A class without an image is confident of none.
    confident = probabilities >= np.where(counts > 0, usual, np.inf)
    likeliest = np.where(confident, probabilities, -1.0).argmax(1)
    sure = confident.any(1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[sure], likeliest[sure]), 1)
    # Of the images of a label that no class is confident of, as many are wrong as of the others.
    share = joint / np.maximum(joint.sum(1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    wrong: np.ndarray = np.rint(share * counts[:, None]).astype(np.int64)
    return wrong


def write_label_issues(
    path: Path, images: LabelledImages, indices: Sequence[int], issues: Sequence[LabelIssue]
) -> None:
    """Write a line of CSV for each issue; the rows of the issues are those of `indices`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for issue in issues:
            index = indices[issue.row]
            names = images.keys[index], images.classes[images.labels[index]], images.classes[issue.suggested]
            writer.writerow([*names, f"{issue.score:.3f}"])
