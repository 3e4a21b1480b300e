"""How well the labels can be told without looking at the picture: from the file and the mean colour alone.

A model may learn that one class was photographed with another camera, cropped by another program or stored in another
format. What a baseline reaches from such facts is printed beside what the model reaches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from training.data.inspection import ImageFile

FOLDS = 5
IMAGES_AT_MOST = 10_000
TREES = 50
LEAF = 3
LARGE_SHARE = 0.5
"""A baseline that reaches this share of what the model gains over chance is warned of."""


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """Cross-validated balanced accuracy of a random forest that sees facts about the files, never the pictures."""

    images: int
    folds: int
    chance: float
    from_file: float
    """From width, height, aspect, format and bytes."""
    from_file_and_colour: float
    """From those and the mean colour."""

    @property
    def best(self) -> float:
        """The better of the two."""
        return max(self.from_file, self.from_file_and_colour)

    def share(self, balanced_accuracy: float) -> float | None:
        """The share of a model's gain over chance that the baseline reaches; None when the model gains nothing."""
        gain = balanced_accuracy - self.chance
        return None if gain <= 0 else max(0.0, (self.best - self.chance) / gain)


def baseline(
    files: Sequence[ImageFile], labels: Int64[np.ndarray, " images"], components: Int64[np.ndarray, " images"]
) -> Shortcut | None:
    """What the facts about the files alone tell; images of one component are never in two folds.

    Of more than 10,000 images a random 10,000 are taken. None where a class has not two components.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:IMAGES_AT_MOST])
    labels, components = labels[chosen], components[chosen]
    classes = np.unique(labels)
    folds = min([FOLDS, *(len(np.unique(components[labels == label])) for label in classes)])
    if folds < 2 or len(classes) < 2:
        return None
    formats = sorted({file.format for file in files})
    facts = np.array(
        [
            (file.width, file.height, file.width / file.height, file.bytes, formats.index(file.format), *file.colour)
            for file in (files[index] for index in chosen)
        ]
    )

    def score(columns: int) -> float:
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=LEAF, class_weight="balanced", n_jobs=-1, random_state=0
        )
        splitter = StratifiedGroupKFold(folds)
        predicted = cross_val_predict(forest, facts[:, :columns], labels, groups=components, cv=splitter)
        return float(balanced_accuracy_score(labels, predicted))

    return Shortcut(
        images=len(labels),
        folds=folds,
        chance=1 / len(classes),
        from_file=score(5),
        from_file_and_colour=score(8),
    )
