"""Two models, A and B, on the same images: what their scores differ by, and where their labels do."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64
from scipy.stats import binom

from training.metrics.classification import TITLES, Labels, Probabilities, Scores
from training.metrics.intervals.bootstrap import paired
from training.metrics.intervals.proportions import Interval, Right

Letter = Literal["A", "B"]


def unshared(ours: Iterable[str], theirs: Iterable[str]) -> tuple[str, str]:
    """The classes that the first of two models has alone, and the second, in words."""
    first, second = set(ours), set(theirs)
    return ", ".join(sorted(first - second)) or "none", ", ".join(sorted(second - first)) or "none"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B's score minus A's with its paired 95 % interval; None where the score is undefined."""

    value: float | None
    interval: Interval | None
    better: Letter | None
    """Whose score is better; None where the interval contains zero."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the same images say of two models."""

    differences: dict[str, Difference]
    labels_differ: int
    only_a_right: int
    only_b_right: int
    both_wrong: int
    """Images to which both give a wrong label, and not the same one."""
    p_value: float
    """The result of `sign_flip`."""
    disagreements: Int64[np.ndarray, " labels_differ"]
    """Rows of the images on which the labels differ, those first of which both are the most confident."""

    @property
    def verdict(self) -> str:
        """Which model is better in what, in plain sentences."""
        named = {
            letter: [TITLES[name] for name, difference in self.differences.items() if difference.better == letter]
            for letter in ("A", "B")
        }
        undecided = [
            TITLES[name]
            for name, difference in self.differences.items()
            if difference.value is not None and difference.better is None
        ]
        sentences = [f"{letter} is better in {_listed(scores)}." for letter, scores in named.items() if scores]
        if not sentences:
            return "The evidence does not decide which is better: every 95 % interval of a difference contains zero."
        if undecided:
            sentences.append(f"The evidence does not decide on {_listed(undecided)}: the interval contains zero.")
        return " ".join(sentences)

    @property
    def tally(self) -> str:
        """Which model is right where the labels differ, in a plain sentence."""
        if not self.labels_differ:
            return "Both give every image the same label."
        return (
            f"Their labels differ on {self.labels_differ:,} images: only A is right on {self.only_a_right:,}, "
            f"only B on {self.only_b_right:,}, neither on {self.both_wrong:,}; exact sign-flip p = {self.p_value:.2g}."
        )


def compare(
    labels: Labels,
    answers: tuple[Probabilities, Probabilities],
    scores: tuple[Scores, Scores],
    components: Int64[np.ndarray, " images"],
) -> Comparison:
    """Compare the answers of A and B, columns in one order; all images of one component are one draw."""
    a, b = (probabilities.argmax(1) for probabilities in answers)
    only_a, only_b = (a == labels) & (b != labels), (b == labels) & (a != labels)
    differing = np.flatnonzero(a != b)
    confidence = answers[0][differing].max(1) + answers[1][differing].max(1)
    intervals = asdict(paired(labels, *answers, components))
    return Comparison(
        differences={name: _difference(name, scores, interval) for name, interval in intervals.items()},
        labels_differ=len(differing),
        only_a_right=int(only_a.sum()),
        only_b_right=int(only_b.sum()),
        both_wrong=len(differing) - int(only_a.sum()) - int(only_b.sum()),
        p_value=sign_flip(a == labels, b == labels, components),
        disagreements=differing[np.argsort(-confidence, kind="stable")],
    )


def sign_flip(a: Right, b: Right, components: Int64[np.ndarray, " images"]) -> float:
    """Exact two-sided p-value of two models being right equally often; all images of one component are one draw.

    By how many images a component favours one of them is taken as it is, which one is a coin's toss (Fisher's
    randomization test, 1935). Where each component is one image, this is McNemar's exact test (1947).
    """
    _, index = np.unique(components, return_inverse=True)
    net = np.bincount(index, weights=b.astype(float) - a)
    sizes, counts = np.unique(np.abs(net[net != 0]).astype(int), return_counts=True)
    chances = np.ones(1)  # by the number of images in components that favour B
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    away = np.abs(2 * np.arange(len(chances)) - (len(chances) - 1))
    return min(1.0, float(chances[away >= abs(net.sum())].sum()))


def _difference(name: str, scores: tuple[Scores, Scores], interval: Interval | None) -> Difference:
    a, b = (getattr(scored, name) for scored in scores)
    if interval is None:
        return Difference(value=None, interval=None, better=None)
    low, high = interval
    better: Letter | None = None
    if not low <= 0 <= high:
        better = "B" if (low > 0) != (name == "log_loss") else "A"
    return Difference(value=b - a, interval=interval, better=better)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
