"""What a study's runs say to its questions: differences paired over seeds, with 95 % intervals, in plain sentences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import t

from training.metrics.bootstrap import LEVEL, Interval
from training.study.measures import MEASURES, Measure
from training.study.results import Result
from training.study.spec import Question

Verdict = Literal["higher", "lower", "equal", "undecided", "no interval", "no runs"]
Values = Mapping[tuple[int, tuple[str, ...]], float]
"""By seed and by the levels on the other axes."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A level's measure less the reference's, over the runs that differ in nothing else."""

    level: str
    mean: float | None
    reference_mean: float | None
    value: float | None
    interval: Interval | None
    """Student's, over the seeds; None of one seed."""
    seeds: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question answered, as far as the runs suffice."""

    question: Question
    reference: str
    differences: Sequence[Difference]
    sentence: str
    decided: bool
    """Whether any interval leaves zero out, or holds nothing else."""


def answer(question: Question, results: Sequence[Result]) -> Answer | None:
    """What the results say; None when no run that it asks of has a value."""
    concerned = [
        result for result in results if all(result.cell.levels[axis] == level for axis, level in question.where.items())
    ]
    levels = list(dict.fromkeys(result.cell.levels[question.axis] for result in concerned))
    values = {level: _values(question, concerned, level) for level in levels}
    measured = [level for level in levels if values[level]]
    measure = MEASURES[question.measure]
    reference = question.compare[1] if question.compare else question.against
    if reference is None and measured:
        sign = -1 if measure.better == "lower" else 1
        reference = max(measured, key=lambda level: sign * fmean(values[level].values()))
    if reference not in measured:
        return None
    asked = question.compare[:1] if question.compare else [level for level in levels if level != reference]
    differences = [difference(level, values[level], values[reference]) for level in asked]
    said = (
        _pair(measure, differences[0], reference)
        if question.compare
        else _all(question, differences, reference, values)
    )
    return Answer(
        question=question,
        reference=reference,
        differences=differences,
        sentence=" ".join([said[0].upper() + said[1:], *_losses(question, concerned, [*asked, reference])]),
        decided=any(found.verdict in ("higher", "lower", "equal") for found in differences),
    )


def difference(level: str, values: Values, reference: Values) -> Difference:
    """Pair what shares seed and other levels, take the mean for each seed, and its interval over the seeds."""
    pairs = sorted(values.keys() & reference.keys())
    if not pairs:
        return Difference(
            level=level, mean=None, reference_mean=None, value=None, interval=None, seeds=0, verdict="no runs"
        )
    seeds = sorted({seed for seed, _ in pairs})
    by_seed = [fmean(values[key] - reference[key] for key in pairs if key[0] == seed) for seed in seeds]
    interval = student(by_seed) if len(seeds) > 1 else None
    verdict: Verdict = "no interval"
    if interval is not None:
        verdict = "higher" if interval[0] > 0 else "lower" if interval[1] < 0 else "undecided"
        if not any(by_seed):
            verdict = "equal"
    return Difference(
        level=level,
        mean=fmean(values[key] for key in pairs),
        reference_mean=fmean(reference[key] for key in pairs),
        value=fmean(by_seed),
        interval=interval,
        seeds=len(seeds),
        verdict=verdict,
    )


def student(values: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of two or more independent values (Student 1908)."""
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def _values(question: Question, results: Sequence[Result], level: str) -> Values:
    found = {}
    for result in results:
        value = result.values[question.measure]
        if result.cell.levels[question.axis] == level and value is not None:
            others = tuple(other for axis, other in result.cell.levels.items() if axis != question.axis)
            found[result.cell.seed, others] = value
    return found


def _pair(measure: Measure, found: Difference, reference: str) -> str:
    if found.value is None or found.mean is None or found.reference_mean is None:
        return f"no run of {found.level} has a value to compare with {reference}."
    x, y = (f"{value:,.{measure.places}f}" for value in (found.mean, found.reference_mean))
    said = measure.sentence.format(a=found.level, b=reference, x=x, y=y) + f" ({_numbers(measure, found)})."
    return said + {
        "equal": " Equal with every seed.",
        "undecided": " The interval contains zero: undecided.",
        "no interval": " Of one seed there is no interval: undecided.",
    }.get(found.verdict, "")


def _all(question: Question, differences: Sequence[Difference], reference: str, values: Mapping[str, Values]) -> str:
    measure = MEASURES[question.measure]
    mean = f"{fmean(values[reference].values()):,.{measure.places}f}"
    parts = [f"{measure.title}: {reference} has {mean}" + ("" if question.against else ", the best mean") + "."]
    for verdict, title in {"higher": "Higher", "lower": "Lower"}.items():
        listed = [f"{found.level} ({_numbers(measure, found)})" for found in differences if found.verdict == verdict]
        if listed:
            parts.append(f"{title}: {', '.join(listed)}.")
    if equal := [found.level for found in differences if found.verdict == "equal"]:
        parts.append(f"Equal: {', '.join(equal)}.")
    for verdict, why in {
        "undecided": "the interval contains zero",
        "no interval": "one seed has no interval",
        "no runs": "no run has a value to compare",
    }.items():
        listed = [found.level for found in differences if found.verdict == verdict]
        if listed:
            parts.append(f"Undecided ({why}): {', '.join(listed)}.")
    return " ".join(parts)


def _numbers(measure: Measure, found: Difference) -> str:
    places = measure.places
    seeds = f"{found.seeds} seed{'' if found.seeds == 1 else 's'}"
    if found.interval is None:
        return f"difference {found.value:+,.{places}f}, {seeds}"
    low, high = found.interval
    return f"difference {found.value:+,.{places}f}, 95 % interval {low:+,.{places}f} to {high:+,.{places}f}, {seeds}"


def _losses(question: Question, results: Sequence[Result], levels: Sequence[str]) -> list[str]:
    """Runs that the answer had to do without."""
    sentences = []
    for outcome, said in {"diverged": "diverged", "failed": "failed", "not run": "were not run"}.items():
        counts = Counter(result.cell.levels[question.axis] for result in results if result.outcome == outcome)
        named = [f"{counts[level]} of {level}" for level in levels if counts[level]]
        if named:
            sentences.append(f"Runs that {said}: {', '.join(named)}.")
    return sentences
