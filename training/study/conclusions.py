"""Answers of a study to its questions, in sentences, from differences between levels.

A study compares much at once, and one comparison in twenty would seem decided by chance. So verdicts follow from p
values that are corrected for all comparisons of the study (Holm, A simple sequentially rejective multiple test
procedure, 1979). The best of many equal levels is far from some of them by chance. So where the data choose the
reference, all pairs of levels count as compared. Intervals are those of each comparison alone.

They are about the mean over all seeds on these images. Seeds share the images, so intervals are too narrow for a claim
about new ones (Nadeau and Bengio, Inference for the generalization error, 2003).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from statistics import fmean

from training.metrics.correction import holm
from training.study.measures import MEASURES, Measure
from training.study.results import RunResult
from training.study.spec.grid import Question
from training.study.statistics import LevelDifference, Values, paired_difference


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The answer to one question, as far as the runs suffice."""

    question: Question
    reference: str
    differences: Sequence[LevelDifference]
    sentence: str
    decided: bool
    """Whether any level is higher, lower or equal."""
    tested: int
    """P values that the question adds to those of the study: of its differences, or of all pairs of levels."""


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """The differences that one question asks for, with the runs that it concerns."""

    question: Question
    selected: Sequence[RunResult]
    reference: str
    reference_values: Values
    differences: Sequence[LevelDifference]
    other_p: Sequence[float | None]
    """P values of the pairs without the reference, where the data chose it."""

    @property
    def p_values(self) -> list[float | None]:
        """All that the correction has to count, those of the differences first."""
        return [*(difference.p for difference in self.differences), *self.other_p]


def conclude(questions: Sequence[Question], results: Sequence[RunResult]) -> list[Conclusion | None]:
    """The answer of these results to each question; None when no run, or none of its reference, has a value."""
    comparisons = [_compare(question, results) for question in questions]
    corrected = iter(holm([p for each in comparisons if each is not None for p in each.p_values]))
    return [None if each is None else _conclusion(each, corrected) for each in comparisons]


def why_none(question: Question, results: Sequence[RunResult]) -> str:
    """Sentences for a question that has no answer."""
    selected = _selected(question, results)
    levels = list(dict.fromkeys(result.cell.levels[question.axis] for result in selected))
    reference = question.compare[1] if question.compare else question.against
    concerned = (
        "that the question concerns" if reference is None else f"of {reference}, with which others are compared,"
    )
    return " ".join([f"No run {concerned} has a value.", *_losses(question, selected, levels)])


def _selected(question: Question, results: Sequence[RunResult]) -> list[RunResult]:
    """The runs that a question concerns."""
    return [
        result for result in results if all(result.cell.levels[axis] == level for axis, level in question.where.items())
    ]


def _compare(question: Question, results: Sequence[RunResult]) -> Comparisons | None:
    selected = _selected(question, results)
    levels = list(dict.fromkeys(result.cell.levels[question.axis] for result in selected))
    values = {level: _values(question, selected, level) for level in levels}
    measured = [level for level in levels if values[level]]
    measure = MEASURES[question.measure]
    given = question.compare[1] if question.compare else question.against
    reference = given
    if reference is None and measured:
        is_less = measure.better == "lower" or measure.is_loss(selected[0].cell.score)
        sign = -1 if is_less else 1
        reference = max(measured, key=lambda level: sign * fmean(values[level].values()))
    if reference not in measured:
        return None
    compared = question.compare[:1] if question.compare else [level for level in levels if level != reference]
    censored = _censored(question, selected)
    differences = [
        replace(
            paired_difference(level, values[level], values[reference], exact=measure.exact),
            censored=censored[level] + censored[reference],
        )
        for level in compared
    ]
    return Comparisons(
        question=question,
        selected=selected,
        reference=reference,
        reference_values=values[reference],
        differences=differences,
        other_p=[]
        if given
        else _p_of_pairs({level: values[level] for level in measured if level != reference}, exact=measure.exact),
    )


def _censored(question: Question, results: Sequence[RunResult]) -> Counter[str]:
    """By level, how many runs ended without a value that only a run has that got somewhere."""
    if not MEASURES[question.measure].can_be_censored:
        return Counter()
    ended = (one for one in results if one.outcome in ("done", "diverged") and one.values[question.measure] is None)
    return Counter(one.cell.levels[question.axis] for one in ended)


def _p_of_pairs(values: Mapping[str, Values], *, exact: bool) -> list[float | None]:
    """P values of all pairs of levels."""
    if len({seed for of_level in values.values() for seed, _ in of_level}) < 2:
        return []  # there are none, and a search may have a hundred thousand pairs of trials
    return [paired_difference(a, values[a], values[b], exact=exact).p for a, b in combinations(values, 2)]


def _conclusion(comparisons: Comparisons, corrected: Iterator[float | None]) -> Conclusion:
    """Take the next corrected p values, one for each that the question has."""
    question, reference = comparisons.question, comparisons.reference
    taken = list(islice(corrected, len(comparisons.p_values)))
    differences = [
        replace(difference, corrected_p=p) for difference, p in zip(comparisons.differences, taken, strict=False)
    ]
    sentence = (
        _pair(MEASURES[question.measure], differences[0], reference)
        if question.compare
        else _all(question, differences, reference, comparisons.reference_values)
    )
    is_loss = MEASURES[question.measure].is_loss(comparisons.selected[0].cell.score)
    scale = ["The score is a log loss: lower is better."] if is_loss else []
    levels = [*(difference.level for difference in differences), reference]
    return Conclusion(
        question=question,
        reference=reference,
        differences=differences,
        sentence=" ".join(
            [sentence[0].upper() + sentence[1:], *scale, *_losses(question, comparisons.selected, levels)]
        ),
        decided=any(difference.verdict in ("higher", "lower", "equal") for difference in differences),
        tested=sum(p is not None for p in comparisons.p_values),
    )


def _values(question: Question, results: Sequence[RunResult], level: str) -> Values:
    values = {}
    for result in results:
        value = result.values[question.measure]
        if result.cell.levels[question.axis] == level and value is not None:
            others = tuple(other for axis, other in result.cell.levels.items() if axis != question.axis)
            values[result.cell.seed, others] = value
    return values


def _pair(measure: Measure, difference: LevelDifference, reference: str) -> str:
    if difference.value is None or difference.mean is None or difference.reference_mean is None:
        return f"no run of {difference.level} has a value to compare with {reference}."
    x, y = (f"{value:,.{measure.places}f}" for value in (difference.mean, difference.reference_mean))
    sentence = (
        measure.sentence.format(a=difference.level, b=reference, x=x, y=y) + f" ({_numbers(measure, difference)})."
    )
    return sentence + {
        "equal": " Equal with every seed.",
        "undecided": " Undecided.",
        "no interval": " One seed has no interval: undecided.",
        "no spread": " Each seed has this same difference, so their spread is unknown: undecided.",
        "not reached": " Runs without a value are left out: undecided.",
    }.get(difference.verdict, "")


def _all(question: Question, differences: Sequence[LevelDifference], reference: str, reference_values: Values) -> str:
    measure = MEASURES[question.measure]
    mean = f"{fmean(reference_values.values()):,.{measure.places}f}"
    parts = [f"{measure.title}: {reference} has {mean}" + ("" if question.against else ", the best mean") + "."]
    for verdict, title in {"higher": "Higher", "lower": "Lower"}.items():
        listed = [
            f"{difference.level} ({_numbers(measure, difference)})"
            for difference in differences
            if difference.verdict == verdict
        ]
        if listed:
            parts.append(f"{title}: {', '.join(listed)}.")
    if equal := [difference.level for difference in differences if difference.verdict == "equal"]:
        parts.append(f"Equal: {', '.join(equal)}.")
    for verdict, why in {
        "undecided": "could be chance",
        "no interval": "one seed has no interval",
        "no spread": "each seed has the same difference, so their spread is unknown",
        "not reached": "runs without a value are left out",
        "no runs": "no run has a value to compare",
    }.items():
        listed = [difference.level for difference in differences if difference.verdict == verdict]
        if listed:
            parts.append(f"Undecided ({why}): {', '.join(listed)}.")
    return " ".join(parts)


def _numbers(measure: Measure, difference: LevelDifference) -> str:
    places = measure.places
    seeds = f"{difference.seeds} seed{'' if difference.seeds == 1 else 's'}"
    if difference.interval is None:
        return f"difference {difference.value:+,.{places}f}, {seeds}"
    low, high = difference.interval
    interval = f"95 % interval {low:+,.{places}f} to {high:+,.{places}f}"
    tested = "" if difference.corrected_p is None else f", corrected p {_p(difference.corrected_p)}"
    return f"difference {difference.value:+,.{places}f}, {interval}, {seeds}{tested}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def _losses(question: Question, results: Sequence[RunResult], levels: Sequence[str]) -> list[str]:
    """A sentence for each way in which runs have no value."""
    sentences = []
    for outcome, ended in {"diverged": "diverged", "failed": "failed", "not run": "were not run"}.items():
        counts = Counter(result.cell.levels[question.axis] for result in results if result.outcome == outcome)
        named = [f"{counts[level]} of {level}" for level in levels if counts[level]]
        if named:
            sentences.append(f"Runs that {ended}: {', '.join(named)}.")
    censored = _censored(question, [result for result in results if result.outcome == "done"])
    if named := [f"{censored[level]} of {level}" for level in levels if censored[level]]:
        sentences.append(f"Runs that ended without getting there: {', '.join(named)}.")
    return sentences
