"""What a study says of more images and more seeds, in sentences for its report."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from training.engine.runs import REPORT_FACTS
from training.study.conclusions import Conclusion
from training.study.results import RunResult
from training.study.sample_size import GAIN, MoreImages, more_images, more_seeds, more_tested
from training.study.spec.grid import Study

CAP = "images_per_class"
OVERALL = "balanced accuracy"
POINTS = f"{100 * GAIN:.0f} points"

Curves = dict[str, dict[int, dict[int, float]]]
"""By what is scored, and seed: the score on the test split by number of training images."""


def image_outlook(study: Study, results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """A sentence for each combination of the axes that do not change the number of images; empty without such an axis.

    The classes, by their recall and own images, are those of the combination with the best score.
    """
    sizes = [axis for axis, levels in study.axes.items() if any(CAP in options for options in levels.values())]
    if not sizes:
        return []
    by_others: dict[str, list[RunResult]] = defaultdict(list)
    for result in results:
        others = [f"{axis} {level}" for axis, level in result.cell.levels.items() if axis not in sizes]
        by_others[", ".join(others)].append(result)
    curves = {title: curves_of(group) for title, group in by_others.items()}
    best = max(curves, key=lambda title: _score_at_most(curves[title][OVERALL]))
    forecasts = [
        each
        for title, scored in curves.items()
        for each in _more(title, scored if title == best else {OVERALL: scored[OVERALL]})
    ]
    return [*forecasts, *_tested(best, by_others[best])]


def _more(title: str, scored: Curves) -> Iterator[dict[str, Any]]:
    """The images that raise each of these scores; of the classes, one sentence for all of which the same is unknown."""
    unknown: dict[str, list[str]] = defaultdict(list)
    for what, curve in scored.items():
        more = more_images(curve)
        if more.more is None and what != OVERALL:
            unknown[more.reason].append(what)
        else:
            yield {"runs": title, "of": what, "sentence": _images(title, what, more)} | asdict(more)
    for reason, classes in unknown.items():
        recall = f"the recall of {', '.join(classes)}"
        yield {"runs": title, "of": ", ".join(classes), "sentence": _unknown(title, "", recall, reason), "more": None}


def _tested(title: str, results: Sequence[RunResult]) -> Iterator[dict[str, Any]]:
    """The test images that each class lacks for a narrow interval, by its recall in the runs of the most images."""
    reports = [facts for result in results if (facts := _report(result)) is not None]
    most = max((sum(each["train"] for each in facts["data"]["classes"]) for facts in reports), default=0)
    largest = [facts for facts in reports if sum(each["train"] for each in facts["data"]["classes"]) == most]
    scores: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for facts in largest:
        for each in facts["scores"]["test"]["by_class"]:
            if each["recall"] is not None:
                scores[each["name"]].append(each)
    for name, of_class in scores.items():
        recall, images = fmean(each["recall"] for each in of_class), of_class[0]["support"]
        more = more_tested(recall, images)
        sentence = (
            f"About {more:,} more test images of {name} than {images:,} for a 95 % interval of its recall of 5 points "
            f"each way, at a recall of {recall:.2f}."
            if more
            else f"{images:,} test images of {name} are enough for a 95 % interval of its recall of 5 points each way."
        )
        yield {"runs": title, "of": name, "sentence": sentence, "images": images, "more": more}


def _report(result: RunResult) -> dict[str, Any] | None:
    path = result.folder / REPORT_FACTS
    if result.outcome != "done" or not path.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def curves_of(results: Sequence[RunResult]) -> Curves:
    """The learning curves of finished runs, by their reports: balanced accuracy by images a class, recall of each."""
    curves: Curves = {OVERALL: defaultdict(dict)}
    for result in results:
        facts = _report(result)
        if facts is None:
            continue
        images = {each["name"]: each["train"] for each in facts["data"]["classes"]}
        test = facts["scores"]["test"]
        curves[OVERALL][result.cell.seed][round(fmean(images.values()))] = test["balanced_accuracy"]
        for each in test["by_class"]:
            if each["recall"] is not None:
                of_class = curves.setdefault(each["name"], defaultdict(dict))
                of_class[result.cell.seed][images[each["name"]]] = each["recall"]
    return curves


def seed_outlook(conclusions: Sequence[Conclusion | None]) -> list[dict[str, Any]]:
    """How many seeds would decide each question that is open."""
    answered = [conclusion for conclusion in conclusions if conclusion is not None]
    tested = sum(conclusion.tested for conclusion in answered)
    return [each for conclusion in answered if not conclusion.decided for each in _seeds(conclusion, tested)]


def _seeds(conclusion: Conclusion, tested: int) -> Iterator[dict[str, Any]]:
    for row in conclusion.differences:
        if row.value is None or row.interval is None or row.verdict != "undecided":
            continue
        more = more_seeds(row.value, row.interval, row.seeds, tested)
        which = f"{conclusion.question.ask} {row.level} against {conclusion.reference}"
        sentence = (
            f"{which}: 100 seeds more would not decide it; the difference is small beside its spread."
            if more is None
            else f"{which}: {more} more seed{'' if more == 1 else 's'} decide it with a probability of 80 %, if "
            "difference and spread stay as they are."
        )
        yield {"ask": conclusion.question.ask, "level": row.level, "more": more, "sentence": sentence}


def _images(title: str, what: str, more: MoreImages) -> str:
    kind = "a class" if what == OVERALL else f"of {what}"
    score = what if what == OVERALL else f"recall of {what}"
    if more.more is None or more.interval is None:
        return _unknown(title, f" {kind}", f"the {score}", more.reason)
    low, high = more.interval
    return (
        f"{_where(title)}about {more.more:,} more images {kind} than {more.images:,} for {POINTS} more of {score} "
        f"(95 % interval {low:,.0f} to {high:,.0f})."
    )


def _unknown(title: str, kind: str, score: str, reason: str) -> str:
    return f"{_where(title)}how many more images{kind} raise {score} by {POINTS} is not known: {reason}."


def _where(title: str) -> str:
    return f"{title}: " if title else ""


def _score_at_most(curve: dict[int, dict[int, float]]) -> float:
    return fmean([of_seed[max(of_seed)] for of_seed in curve.values() if of_seed] or [0.0])
