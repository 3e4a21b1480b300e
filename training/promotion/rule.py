"""The rule of promotion: whether a model may take the place of the one that `latest` serves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np
from jaxtyping import Bool, Int64

from serving.contract.card.certificate import Certificate, ChampionComparison, Floor
from serving.contract.decode import Digest
from training.metrics.classification import Labels, Probabilities, balanced_accuracy
from training.metrics.comparison import sign_flip
from training.metrics.intervals.bootstrap import Intervals, balanced_accuracy_difference, bootstrap
from training.metrics.intervals.proportions import Interval
from training.options.config import TrainConfig
from training.promotion import floors


@dataclass(frozen=True, kw_only=True)
class TestAnswers:
    """The answers of a model to the images of a test split: all lists have one entry for each."""

    __test__ = False  # for pytest, which collects what is called Test

    digest: Digest
    """Digest of the test split: `dataset.digest_of_test`."""
    classes: tuple[str, ...]
    keys: list[str]
    labels: Labels
    components: Int64[np.ndarray, " images"]
    """Images of one number are one draw."""
    leaks: Bool[np.ndarray, " images"]
    """Whether picture or group of an image is in training or validation, too."""
    probabilities: Probabilities
    of_folds: bool = False
    """Whether they are the answers of the folds' models, not of the model that is judged."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """What `latest` serves, and its answers to the same images."""

    digest: Digest
    """SHA-256 of its file."""
    version: str
    probabilities: Probabilities | None
    """Columns in the order of the new model's classes; None where it cannot be compared."""
    learned_from: int = 0
    """Number of these images on which it was trained or chosen, so that its score is too high; without those that
    leak."""
    incomparable: str = ""
    """Why it cannot be compared, as a part of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether the rule holds, and by which numbers."""

    measured: Certificate
    faults: tuple[str, ...]
    """Why the rule does not hold, each a part of a sentence; empty if it holds."""
    rival: Digest | None
    """The file that `latest` served, with which the model was to be compared; None if it served none."""
    warnings: tuple[str, ...] = ()
    """Sentences on what the rule leaves out, whether it holds or not."""

    @property
    def certificate(self) -> Certificate | None:
        """What the model card holds: nothing, unless the rule holds."""
        return None if self.faults else self.measured


def judge(answers: TestAnswers, intervals: Intervals, config: TrainConfig, champion: Champion | None) -> Judgement:
    """Apply the rule that a run has declared in its options; `intervals` are those of its answers.

    Images that leak are not judged. Where all do, all are, and that is a fault.
    """
    warnings = []
    if answers.leaks.any() and not answers.leaks.all():
        warnings.append(
            f"The rule leaves out {answers.leaks.sum():,} of the {len(answers.leaks):,} test images: their picture or "
            "group is in training or validation, too."
        )
        answers, champion = _without_leaks(answers, champion)
        intervals = bootstrap(answers.labels, answers.probabilities, answers.components, answers.classes)
    if absent := [name for label, name in enumerate(answers.classes) if label not in answers.labels]:
        warnings.append(f"The rule says nothing of {', '.join(absent)}: no image that it judges is of such a class.")
    achieved = balanced_accuracy(answers.labels, answers.probabilities)
    measured = Certificate(
        rule="better",
        test_split=answers.digest,
        images=len(answers.labels),
        balanced_accuracy=achieved,
        chance=1 / len(np.unique(answers.labels)),
        margin=config.margin,
        floors=tuple(_floors(config, intervals)),
        champion=_compared(answers, achieved, champion),
    )
    faults = [*_never(answers, measured), *_missed(config, measured), *_lost(measured, champion)]
    served = champion.digest if champion else None
    return Judgement(measured=measured, faults=tuple(faults), rival=served, warnings=tuple(warnings))


def _without_leaks(answers: TestAnswers, champion: Champion | None) -> tuple[TestAnswers, Champion | None]:
    kept = ~answers.leaks
    if champion and champion.probabilities is not None:
        champion = replace(champion, probabilities=champion.probabilities[kept])
    return replace(
        answers,
        keys=[key for key, is_kept in zip(answers.keys, kept, strict=True) if is_kept],
        labels=answers.labels[kept],
        components=answers.components[kept],
        leaks=answers.leaks[kept],
        probabilities=answers.probabilities[kept],
    ), champion


def refusal(run: Path, faults: tuple[str, ...]) -> str:
    """The sentence on a model that is not promoted, with the command that promotes it nevertheless."""
    return (
        f"{run} is not promoted, `latest` stays as it is: {'; '.join(faults)}. "
        f'`python -m training promote {quote(str(run))} --force --reason "..."` promotes it nevertheless.'
    )


def _floors(config: TrainConfig, intervals: Intervals) -> Iterator[Floor]:
    """The declared floors; not those of undefined scores."""
    for wanted in map(floors.parse, config.floor):
        name = wanted.of_class
        interval: Interval | None = intervals.recall[name] if name else getattr(intervals, wanted.name)
        if interval is not None:
            yield Floor(name=wanted.name, least=wanted.least, lower=interval[0])


def _compared(answers: TestAnswers, challenger_score: float, champion: Champion | None) -> ChampionComparison | None:
    if champion is None or champion.probabilities is None:
        return None
    labels = answers.labels
    challenger_hits, champion_hits = (
        probabilities.argmax(1) == labels for probabilities in (answers.probabilities, champion.probabilities)
    )
    before = balanced_accuracy(labels, champion.probabilities)
    return ChampionComparison(
        digest=champion.digest,
        version=champion.version,
        score=before,
        difference=challenger_score - before,
        interval=balanced_accuracy_difference(
            labels, champion.probabilities, answers.probabilities, answers.components
        ),
        p_value=sign_flip(champion_hits, challenger_hits, answers.components),
    )


def _never(answers: TestAnswers, measured: Certificate) -> Iterator[str]:
    """What no model that is promoted does, and what no test split can show."""
    if answers.leaks.all():
        yield "each test image has its picture or group in training or validation, too, so none can be judged"
    if measured.chance == 1:
        yield f"each test image is {answers.classes[answers.labels[0]]}, so none shows that it knows another class"
        return
    predicted = np.unique(answers.probabilities.argmax(1))
    if len(predicted) == 1:
        yield f"it gives every test image the class {answers.classes[predicted[0]]}"
    elif measured.balanced_accuracy <= measured.chance:
        yield f"its balanced accuracy, {measured.balanced_accuracy:.3f}, is not above chance, {measured.chance:.3f}"


def _missed(config: TrainConfig, measured: Certificate) -> Iterator[str]:
    """The floors that are not reached."""
    reached = {floor.name: floor for floor in measured.floors}
    for wanted in map(floors.parse, config.floor):
        floor = reached.get(wanted.name)
        if floor is None:
            yield f"--floor {wanted.name}={wanted.least:g}: undefined on these test images"
        elif floor.lower < wanted.least:
            yield f"--floor {wanted.name}={wanted.least:g}: the 95 % interval begins at {floor.lower:.3f}"


def _lost(measured: Certificate, champion: Champion | None) -> Iterator[str]:
    """That the model may be worse than what `latest` serves by more than the margin."""
    comparison = measured.champion
    if champion and comparison is None:
        yield f"it cannot be compared with version {champion.version}, which `latest` serves: {champion.incomparable}"
    if comparison and comparison.interval[0] < -measured.margin:
        low, high = comparison.interval
        yield (
            f"its balanced accuracy is {measured.balanced_accuracy:.3f}, that of version {comparison.version}, which "
            f"`latest` serves, {comparison.score:.3f} on the same {measured.images:,} test images; the 95 % interval "
            f"of the difference, {low:+.3f} to {high:+.3f}, does not exclude a loss of more than --margin "
            f"{measured.margin:g} (sign-flip p = {comparison.p_value:.2g})"
        )
        if champion and champion.learned_from:
            count = champion.learned_from
            yield f"version {comparison.version} has learned from {count:,} of these images, its score is too high"
