"""How well the labels can be predicted without the picture: from facts about the file and from the mean colour.

A model may learn that one class was photographed with another camera, cropped by another program or stored in another
format. The report shows the score of this baseline beside the score of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from training.data.inspection.image_file import ImageFile

FOLDS = 5
IMAGES_AT_MOST = 10_000
TREES = 50
LEAF = 3
IMAGES_OF_A_THREAD = 2_000
"""Up to this number, more threads wait longer for one another than they save."""
LARGE_SHARE = 0.5
"""The report warns when the baseline reaches this share of the model's gain over chance."""


@dataclass(frozen=True, kw_only=True)
class MetadataBaseline:
    """Cross-validated balanced accuracy of a random forest on facts about the files, without the pictures."""

    images: int
    folds: int
    chance: float
    from_file: float
    """From width, height, aspect, format and bytes."""
    from_file_and_colour: float
    """From the same and the mean colour."""

    @property
    def best(self) -> float:
        """The better of the two."""
        return max(self.from_file, self.from_file_and_colour)

    def share(self, balanced_accuracy: float) -> float | None:
        """The baseline's gain over chance as a share of a model's; None when the model gains nothing."""
        gain = balanced_accuracy - self.chance
        return None if gain <= 0 else max(0.0, (self.best - self.chance) / gain)


def measure(
    files: Sequence[ImageFile], labels: Int64[np.ndarray, " images"], components: Int64[np.ndarray, " images"]
) -> MetadataBaseline | None:
    """Measure the baseline. The images of one component are in one fold.

    Of more than 10,000 images, a random sample of 10,000 is used. None where a class has fewer than two components.
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

    parts = list(StratifiedGroupKFold(folds).split(facts, labels, components))  # seconds, so once for both

    def score(columns: int) -> float:
        forest = RandomForestClassifier(
            TREES,
            min_samples_leaf=LEAF,
            class_weight="balanced",
            n_jobs=-1 if len(labels) > IMAGES_OF_A_THREAD else None,
            random_state=0,
        )
        predicted = cross_val_predict(forest, facts[:, :columns], labels, cv=parts)
        return float(balanced_accuracy_score(labels, predicted))

    return MetadataBaseline(
        images=len(labels),
        folds=folds,
        chance=1 / len(classes),
        from_file=score(5),
        from_file_and_colour=score(8),
    )
