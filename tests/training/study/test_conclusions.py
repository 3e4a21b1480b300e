import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from training.metrics.correction import holm
from training.study.conclusions import Conclusion, conclude, why_none
from training.study.measures import MEASURES
from training.study.results import RunResult
from training.study.spec.grid import Cell, Question
from training.study.statistics import student


def result(
    level: str, seed: int, value: float | None, measure: str = "val_score", other: str = "x", *, ended: bool = False
) -> RunResult:
    return RunResult(
        cell=Cell(levels={"axis": level, "other": other}, seed=seed, options={}),
        folder=Path(level),
        outcome="diverged" if value is None and not ended else "done",
        reason="",
        values=dict.fromkeys(MEASURES) | {measure: value},
        epochs=[],
        at_start=[],
    )


def asked(results: list[RunResult], **question: Any) -> Conclusion:
    [conclusion] = conclude(
        [Question(**{"ask": "?", "measure": "val_score", "axis": "axis", "where": {}} | question)], results
    )
    assert conclusion is not None
    return conclusion


def test_a_reference_without_a_value_is_named_with_what_was_lost() -> None:
    results = [result(level, seed, value) for level, value in (("a", 0.5), ("b", None)) for seed in range(2)]
    question = Question(ask="?", measure="val_score", axis="axis", compare=("a", "b"), where={})
    assert conclude([question], results) == [None]
    assert why_none(question, results) == (
        "No run of b, with which others are compared, has a value. Runs that diverged: 2 of b."
    )
    alone = Question(ask="?", measure="val_score", axis="axis", where={})
    assert why_none(alone, results[2:]).startswith("No run that the question concerns has a value.")


def test_students_interval_is_that_of_the_table() -> None:
    low, high = student([1.0, 2.0, 3.0])
    half = 4.30265 * 1 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert (low, high) == pytest.approx((2 - half, 2 + half), abs=1e-4)


def test_differences_are_paired_over_seeds() -> None:
    """The seeds differ by far more than the levels do; unpaired, nothing could be decided."""
    results = [result("a", seed, 0.2 * seed + 0.05 + 0.001 * (seed % 2)) for seed in range(4)]
    results += [result("b", seed, 0.2 * seed) for seed in range(4)]
    found = asked(results, compare=("a", "b"))
    only = found.differences[0]
    assert only.value == pytest.approx(0.0505)
    assert only.verdict == "higher"
    assert found.decided
    assert found.sentence.startswith("A scored 0.351 on validation images against 0.300 of b (difference +0.051, ")
    assert "95 % interval +0.050 to +0.051, 4 seeds, corrected p < 0.001" in found.sentence


def test_the_p_value_is_that_of_scipy_s_paired_test() -> None:
    a, b = [0.61, 0.58, 0.67, 0.60], [0.55, 0.57, 0.60, 0.52]
    results = [result(level, seed, value) for level, of in {"a": a, "b": b}.items() for seed, value in enumerate(of)]
    [only] = asked(results, compare=("a", "b")).differences
    assert only.p == pytest.approx(ttest_rel(a, b).pvalue)
    assert only.corrected_p == only.p, "there is one comparison"


def test_chance_among_many_comparisons_decides_nothing() -> None:
    """Twenty levels that are equal but for noise: alone, some intervals exclude zero; corrected, nothing is decided."""
    noise = np.random.default_rng(1)
    results = [result(f"level {level}", seed, 0.5 + noise.normal(0, 0.05)) for level in range(20) for seed in range(5)]
    results += [result("reference", seed, 0.5 + noise.normal(0, 0.05)) for seed in range(5)]
    found = asked(results, against="reference")
    excluded = [row for row in found.differences if row.interval and not row.interval[0] <= 0 <= row.interval[1]]
    assert excluded, "the case would show nothing"
    assert not found.decided


def test_all_questions_of_a_study_are_corrected_together() -> None:
    a, b = [0.61, 0.58, 0.67, 0.60], [0.55, 0.57, 0.60, 0.52]
    results = [result(level, seed, value) for level, of in {"a": a, "b": b}.items() for seed, value in enumerate(of)]
    question = Question(ask="?", measure="val_score", axis="axis", where={}, compare=("a", "b"))
    [alone] = conclude([question], results)
    twice = conclude([question, question], results)
    assert alone is not None
    assert alone.decided
    for answer in twice:
        assert answer is not None
        assert answer.differences[0].corrected_p == pytest.approx(2 * ttest_rel(a, b).pvalue)
        assert not answer.decided


def test_a_reference_that_the_data_choose_decides_no_more_than_one_study_in_twenty_by_chance() -> None:
    """Eight equal levels and ten seeds: corrected for the seven comparisons with the best, one study in eight is."""
    noise = np.random.default_rng(0)
    decided = []
    for _ in range(200):
        scores = noise.normal(0.5, 0.05, (8, 10))
        results = [result(f"level {level}", seed, float(score)) for (level, seed), score in np.ndenumerate(scores)]
        decided.append(asked(results).decided)
    assert np.mean(decided) <= 0.05


def test_where_the_data_choose_the_reference_all_pairs_are_counted() -> None:
    a, b, c = [0.61, 0.58, 0.67, 0.60], [0.55, 0.57, 0.60, 0.52], [0.50, 0.56, 0.51, 0.54]
    results = [
        result(level, seed, value) for level, of in {"a": a, "b": b, "c": c}.items() for seed, value in enumerate(of)
    ]
    chosen, given = asked(results), asked(results, against="a")
    assert chosen.reference == given.reference == "a"
    corrected = holm([ttest_rel(a, b).pvalue, ttest_rel(a, c).pvalue, ttest_rel(b, c).pvalue])
    assert [row.corrected_p for row in chosen.differences] == pytest.approx(corrected[:2])
    assert (chosen.tested, given.tested) == (3, 2)
    assert chosen.differences[0].corrected_p == pytest.approx(3 * ttest_rel(a, b).pvalue), "the smallest of three"
    assert given.differences[0].corrected_p == pytest.approx(2 * ttest_rel(a, b).pvalue)


def test_an_interval_that_contains_zero_is_undecided() -> None:
    results = [result("a", seed, value) for seed, value in enumerate((0.5, 0.4, 0.6))]
    results += [result("b", seed, 0.45) for seed in range(3)]
    found = asked(results, compare=("a", "b"))
    assert found.differences[0].verdict == "undecided"
    assert not found.decided
    assert found.sentence.endswith(", corrected p = 0.48). Undecided.")


def test_what_is_the_same_with_every_seed_is_called_equal() -> None:
    results = [result(level, seed, 0.1 * seed) for seed in range(3) for level in "ab"]
    found = asked(results, compare=("a", "b"))
    assert found.differences[0].verdict == "equal"
    assert found.decided
    assert found.sentence.endswith("Equal with every seed.")
    assert asked(results, against="b").sentence.endswith("Equal: a.")


def test_the_same_difference_with_each_of_two_seeds_may_be_chance_but_for_what_no_seed_changes() -> None:
    """Scores of 100 images tie: +0.01 twice is one image more, twice."""
    scores = {"a": (0.62, 0.52), "b": (0.61, 0.51)}
    results = [result(level, seed, value) for level, of in scores.items() for seed, value in enumerate(of)]
    found = asked(results, compare=("a", "b"))
    assert (found.differences[0].verdict, found.differences[0].p, found.decided) == ("no spread", None, False)
    assert found.sentence.endswith("so their spread is unknown: undecided.")
    assert "Undecided (each seed has the same difference, so their spread is unknown): b." in asked(results).sentence
    sizes = [result(level, seed, value, "parameters") for level, value in (("a", 9), ("b", 7)) for seed in range(2)]
    assert asked(sizes, measure="parameters", compare=("a", "b")).differences[0].verdict == "higher"


@pytest.mark.parametrize("measure", ["epochs_to_common", "epochs_to_95", "val_score_in_equal_time"])
def test_runs_that_never_get_there_are_named_and_leave_it_undecided(measure: str) -> None:
    results = [result("slow", seed, 9.0 + seed / 10, measure) for seed in range(5)]
    results += [
        result("fast", seed, value, measure, ended=True) for seed, value in enumerate((3, 3.1, 3.3, None, None))
    ]
    found = asked(results, measure=measure, compare=("fast", "slow"))
    assert found.differences[0].verdict == "not reached"
    assert not found.decided
    assert found.sentence.endswith(
        "Runs without a value are left out: undecided. Runs that ended without getting there: 2 of fast."
    )
    assert asked([one for one in results if one.cell.seed < 3], measure=measure, compare=("fast", "slow")).decided
    against = asked(results, measure=measure, against="slow")
    assert "Undecided (runs without a value are left out): fast." in against.sentence


def test_one_seed_has_no_interval_and_says_so() -> None:
    found = asked([result("a", 0, 0.9), result("b", 0, 0.1)], compare=("a", "b"))
    assert found.differences[0].interval is None
    assert not found.decided
    assert "One seed has no interval" in found.sentence
    assert "difference +0.800, 1 seed)" in found.sentence


def test_all_levels_are_compared_with_the_best_and_the_best_of_a_loss_is_the_lowest() -> None:
    results = [result(level, seed, value + value * seed / 100, "train_loss") for seed in range(3) for level, value in
               {"a": 0.3, "b": 0.1, "c": 0.2}.items()]  # fmt: skip
    found = asked(results, measure="train_loss")
    assert found.reference == "b"
    assert {row.level: row.verdict for row in found.differences} == {"a": "higher", "c": "higher"}
    against = asked(results, measure="train_loss", against="a")
    assert {row.level: row.verdict for row in against.differences} == {"b": "lower", "c": "lower"}


def test_the_best_of_validation_log_losses_is_the_lowest_and_the_answer_says_so() -> None:
    results = [result(level, seed, value + value * seed / 100) for seed in range(3) for level, value in
               {"a": 0.3, "b": 0.1}.items()]  # fmt: skip
    assert asked(results).reference == "a"
    judged = [replace(one, cell=replace(one.cell, options={"best_by": "log_loss"})) for one in results]
    found = asked(judged)
    assert found.reference == "b"
    assert found.sentence.startswith("Validation score: b has 0.101, the best mean. Higher: a ")
    assert found.sentence.endswith("The score is a log loss: lower is better.")


def test_only_runs_that_differ_in_nothing_else_are_paired_and_lost_ones_are_reported() -> None:
    results = [result(level, seed, value, other=other) for seed in range(3) for other, value in
               {"x": 0.1, "y": 0.9}.items() for level in "ab"]  # fmt: skip
    results = [one for one in results if (one.cell.levels["axis"], one.cell.levels["other"]) != ("a", "y")]
    results += [result("a", seed, None, other="y") for seed in range(3)]
    found = asked(results, compare=("a", "b"))
    assert found.differences[0].value == 0, "b's runs on y have nothing to be compared with"
    assert "Runs that diverged: 3 of a." in found.sentence
    assert conclude([Question(ask="?", measure="gap", axis="axis", where={})], results) == [None]
    inside = asked(results, compare=("a", "b"), where={"other": "x"})
    assert "diverged" not in inside.sentence
