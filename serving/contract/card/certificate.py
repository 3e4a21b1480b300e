"""The certificate of promotion: the model may take the place of the one that was served."""

from dataclasses import dataclass
from typing import Literal

from serving.contract.decode import Digest


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A demand on a score of the test split that the model meets."""

    name: str
    """Name of a headline score, or `sensitivity:CLASS`."""
    least: float
    """What the lower limit of the score's 95 % interval must be at least."""
    lower: float
    """What it is."""


@dataclass(frozen=True, kw_only=True)
class ChampionComparison:
    """The model that was served when this one was judged, compared with it on the same test images."""

    digest: Digest
    """SHA-256 of its file."""
    version: str
    score: float
    """Its balanced accuracy."""
    difference: float
    """Balanced accuracy of the new model minus the champion's."""
    interval: tuple[float, float]
    """Paired 95 % interval of the difference."""
    p_value: float
    """Exact sign-flip p that both are right equally often, McNemar's where no two images share a group."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """States that the rule of promotion held on the test split, and by which numbers (training/README.md)."""

    rule: Literal["better"]
    test_split: Digest
    """Digest of key, label and pixels of the test images."""
    images: int
    balanced_accuracy: float
    chance: float
    """The balanced accuracy of one answer for all images, which the model exceeds."""
    margin: float
    """The loss of balanced accuracy, declared before the training, that the champion's interval excludes."""
    floors: tuple[Floor, ...]
    champion: ChampionComparison | None
    """None: no model was served."""
