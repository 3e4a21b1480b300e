from collections.abc import Iterator

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from serving.contract.card.decisions import Calibration, Costs
from training.metrics import calibration
from training.metrics.classification import ScoredImages, brier_score, expected_calibration_error
from training.metrics.familiarity import novelty
from training.options.choices import Balance

CLASSES = ("a", "b", "c", "d")


def synthetic(seed: int, images: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of known logits, and those logits times `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(images, len(CLASSES)))
    cumulative = softmax(logits, axis=1).cumsum(1)
    labels = (rng.random((images, 1)) > cumulative).sum(1)
    return np.minimum(labels, len(CLASSES) - 1), (logits * sharpness).astype(np.float32)


def alone(labels: np.ndarray, probabilities: np.ndarray) -> ScoredImages:
    """Images each of its own group."""
    return ScoredImages(labels=labels, probabilities=probabilities, components=np.arange(len(labels)))


def with_sets(labels: np.ndarray, logits: np.ndarray, level: float = 0.9) -> Calibration:
    """Fitted to images each of its own group, of classes that were not balanced."""
    fitted = calibration.fit(labels, logits, level, "none", np.full(logits.shape[1], 1 / logits.shape[1]))
    if len(labels) < calibration.MIN_IMAGES:
        return fitted
    probabilities = softmax(calibration.corrected(logits, fitted), axis=1)
    return calibration.with_thresholds(fitted, alone(labels, probabilities), by_class=False)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_over_and_underconfidence(sharpness: float) -> None:
    labels, logits = synthetic(0, 20_000, sharpness)
    temperature = calibration.fit_temperature(labels, logits)
    assert temperature == pytest.approx(sharpness, rel=0.05)
    before = expected_calibration_error(labels, softmax(logits, axis=1))
    after = expected_calibration_error(labels, softmax(logits / np.float32(temperature), axis=1))
    assert after < 0.02
    assert after <= before + 0.005


@pytest.mark.parametrize("seed", range(20))
def test_the_temperature_never_changes_a_label(seed: int) -> None:
    labels, logits = synthetic(seed, 100, sharpness=3)
    temperature = np.float32(calibration.fit_temperature(labels, logits))
    assert np.array_equal(softmax(logits, axis=1).argmax(1), softmax(logits / temperature, axis=1).argmax(1))


def test_a_split_without_a_mistake_does_not_make_every_answer_certain() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = (10 * np.eye(4)[labels] + rng.normal(size=(200, 4))).astype(np.float32)
    temperature = np.float32(calibration.fit_temperature(labels, logits))
    doubt = 1 - softmax(logits / temperature, axis=1).max(1).mean()
    assert doubt == pytest.approx(1 / 201, rel=0.5)


def test_sets_hold_the_true_class_as_often_as_they_say() -> None:
    shares = []
    for seed in range(200):
        labels, logits = synthetic(seed, 400)
        fitted = with_sets(labels[:200], logits[:200])
        probabilities = softmax(logits[200:] / np.float32(fitted.temperature), axis=1)
        measured = calibration.coverage(labels[200:], fitted.prediction_sets(probabilities), 0.9, CLASSES)
        assert measured is not None
        assert 1 <= measured.mean_size <= len(CLASSES)
        shares.append(measured.coverage)
    assert 0.88 <= np.mean(shares) <= 0.92


def test_sets_of_familiar_images_hold_the_true_class_as_often_as_they_say_and_the_others_are_empty() -> None:
    familiar_shares, shares = [], []
    for seed in range(200):
        labels, logits = synthetic(seed, 800)
        distances = np.random.default_rng(seed).exponential(size=800).astype(np.float32)
        logits = (logits / (0.5 + distances[:, np.newaxis])).astype(np.float32)  # less sure of what is far
        val, new = slice(0, 400), slice(400, 800)
        familiarity = novelty.choose(distances[val], np.arange(400), 0.1)
        assert familiarity is not None
        known = ~familiarity.unfamiliar(distances)
        unfitted = Calibration(temperature=1.0, level=0.9, threshold=None)
        probabilities = softmax(logits, axis=1)
        fitted = calibration.with_thresholds(
            unfitted, alone(labels[val][known[val]], probabilities[val][known[val]]), by_class=False
        )
        sets = fitted.prediction_sets(probabilities[new]) & known[new, np.newaxis]
        measured = calibration.coverage(labels[new], sets, 0.9, CLASSES, known[new])
        assert measured is not None
        assert measured.familiar is not None
        assert measured.familiar.images == known[new].sum()
        assert measured.coverage == pytest.approx(measured.familiar.coverage * known[new].mean())
        familiar_shares.append(measured.familiar.coverage)
        shares.append(measured.coverage)
    assert 0.89 <= np.mean(familiar_shares) <= 0.91
    assert 0.8 <= np.mean(shares) <= 0.85, (
        "of familiar images 0.9; at most 0.1 are not, by a limit that is seldom exceeded"
    )


FREQUENCIES = np.array([0.6, 0.12, 0.1, 0.08, 0.05, 0.03, 0.02])
"""Of seven classes, about as frequent as those of a dermatoscopic data set."""


def draw(rng: np.random.Generator, images: int, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.choice(len(FREQUENCIES), images, p=FREQUENCIES)
    return labels, (means[labels] + rng.normal(size=(images, means.shape[1]))).astype(np.float32)


def trained(rng: np.random.Generator, means: np.ndarray) -> Iterator[np.ndarray]:
    """The weights of a softmax regression after each of 20 epochs, by steps so large that epochs differ."""
    labels, features = draw(rng, 600, means)
    weights = np.zeros((means.shape[1], len(means)))
    for _ in range(20):
        for batch in rng.permutation(len(labels)).reshape(-1, 10):
            error = softmax(features[batch] @ weights, axis=1)
            error[np.arange(len(batch)), labels[batch]] -= 1
            weights = weights - 0.03 * features[batch].T @ error
        yield weights


@pytest.mark.long
def test_sets_hold_as_often_when_the_same_images_choose_the_epoch() -> None:
    """As in a run: one split of 100 images chooses the best epoch, the temperature and the threshold."""
    classes = tuple(map(str, range(len(FREQUENCIES))))
    together: list[float] = []
    apart: list[float] = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        means = rng.normal(0, 0.55, (len(FREQUENCIES), 20))
        (val, val_features), (own, own_features), (test, test_features) = (
            draw(rng, images, means) for images in (100, 100, 5_000)
        )
        best = max(trained(rng, means), key=lambda weights: recall_score(
            val, (val_features @ weights).argmax(1), average="macro", zero_division=0))  # fmt: skip
        for labels, features, shares in ((val, val_features, together), (own, own_features, apart)):
            fitted = with_sets(labels, (features @ best).astype(np.float32))
            probabilities = softmax(test_features @ best / fitted.temperature, axis=1).astype(np.float32)
            measured = calibration.coverage(test, fitted.prediction_sets(probabilities), 0.9, classes)
            assert measured is not None
            shares.append(measured.coverage)
    assert 0.88 <= np.mean(together) <= 0.92
    assert abs(np.mean(together) - np.mean(apart)) < 0.01, f"{np.mean(together):.3f}, apart {np.mean(apart):.3f}"


def test_the_bias_finds_the_rare_classes_again() -> None:
    """The true logits of classes of which one is rare: its bias undoes what its frequency takes from its recall."""
    rng = np.random.default_rng(4)
    labels, features = draw(rng, 4_000, rng.normal(0, 0.4, (7, 20)))
    means = np.stack([features[labels == label].mean(0) for label in range(7)])
    logits = (features @ means.T - (means**2).sum(1) / 2 + np.log(FREQUENCIES)).astype(np.float32)

    bias = calibration.fit_bias(labels, logits, FREQUENCIES)
    share = bias[-1] / -np.log(FREQUENCIES[-1])
    assert 0 < share < 1, "0 is best for accuracy, 1 for balanced accuracy: the logits are those of Bayes' rule"
    assert bias == pytest.approx(tuple(-share * np.log(FREQUENCIES)), abs=1e-6)
    fitted = calibration.fit(labels, logits, 0.9, "bias", FREQUENCIES)
    assert fitted.bias == bias
    before, after = (of.argmax(1) for of in (logits, calibration.corrected(logits, fitted)))
    gain = balanced_accuracy_score(labels, after) - balanced_accuracy_score(labels, before)
    assert gain > 0.05
    assert gain > accuracy_score(labels, before) - accuracy_score(labels, after)
    assert calibration.fit(labels[:29], logits[:29], 0.9, "bias", FREQUENCIES).bias == ()


@pytest.mark.parametrize("balance", ["sampler", "bias"])
def test_the_priors_of_balanced_answers_are_found_again(balance: Balance) -> None:
    """True logits from which balancing has taken the frequencies, or a share of them: the correction gives them back.

    With it the answers of the least expected cost cost as little as those of the true probabilities.
    """
    rng = np.random.default_rng(4)
    means = rng.normal(0, 0.4, (7, 20))
    costs = Costs(actions=tuple("abcdefg"), matrix=tuple(map(tuple, (1 - np.eye(7)) * rng.uniform(1, 10, (7, 1)))))
    labels, features = draw(rng, 20_000, means)
    true = features @ means.T - (means**2).sum(1) / 2 + np.log(FREQUENCIES)
    trained = (3 * (true - np.log(FREQUENCIES) if balance == "sampler" else true)).astype(np.float32)
    fitted = calibration.fit(labels[:2_000], trained[:2_000], 0.9, balance, FREQUENCIES)
    assert fitted.prior_correction is not None
    served, right = softmax(calibration.corrected(trained, fitted), axis=1), softmax(true, axis=1)
    corrected = fitted.prior_correction(served)
    assert np.abs(corrected - right).mean() < 0.01
    assert np.abs(served - right).mean() > 0.03
    paid = [
        np.array(costs.matrix)[labels, costs.least(of.astype(np.float64))][2_000:].mean()
        for of in (served, corrected, right)
    ]
    assert paid[1] < 0.9 * paid[0]
    assert paid[1] == pytest.approx(paid[2], rel=0.02)


def test_answers_of_classes_that_were_not_balanced_are_not_corrected() -> None:
    labels, logits = synthetic(0, 400)
    assert calibration.fit(labels, logits, 0.9, "none", np.full(4, 0.25)).prior_correction is None


def test_sets_hold_for_an_image_of_a_new_group() -> None:
    """20 patients of 1 to 20 images, some patients easy and some hard: their images counted one by one hold less."""
    by_group: list[bool] = []
    by_image: list[bool] = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 21, 21)
        groups = np.repeat(np.arange(21), sizes)
        of_true = 1 / (1 + np.exp(-rng.normal(size=21)[groups] * 2 - rng.normal(size=len(groups)) / 2))
        probabilities = np.stack([of_true, 1 - of_true], 1).astype(np.float32)
        labels, old = np.zeros(len(groups), np.int64), groups < 20
        new = rng.choice(np.flatnonzero(~old))
        grouped = ScoredImages(labels=labels, probabilities=probabilities, components=groups).chosen(old)
        for scored, held in ((grouped, by_group), (alone(labels[old], probabilities[old]), by_image)):
            threshold = calibration.fit_threshold(scored, 0.9)
            assert threshold is not None
            held.append(of_true[new] >= threshold)
    assert 0.88 <= np.mean(by_group) <= 0.96
    assert np.mean(by_image) < np.mean(by_group)
    few = ScoredImages(labels=labels, probabilities=probabilities, components=groups % 8)
    assert calibration.fit_threshold(few, 0.9) is None, "8 groups cannot promise 90 %"


def test_a_set_is_never_empty_and_grows_with_its_level() -> None:
    labels, logits = synthetic(0, 2000)
    probabilities = softmax(logits, axis=1)
    sizes = []
    for level in (0.5, 0.8, 0.9, 0.99):
        threshold = calibration.fit_threshold(alone(labels, probabilities), level)
        sets = Calibration(temperature=1.0, level=level, threshold=threshold).prediction_sets(probabilities)
        assert sets.any(1).all()
        sizes.append(sets.sum())
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_too_few_images_calibrate_nothing() -> None:
    labels, logits = synthetic(0, 29, sharpness=4)
    unfitted = Calibration(temperature=1.0, level=0.9, threshold=None)
    assert with_sets(labels, logits) == unfitted
    assert calibration.fit(labels, logits, 0.9, "sampler", np.full(4, 0.25)) == unfitted
    labels, logits = synthetic(0, 40)
    assert with_sets(labels, logits, level=0.99).threshold is None, "40 images cannot promise 99 %"


def test_certain_answers_stay_finite() -> None:
    logits = np.array([[200.0, -200.0], [-200.0, 200.0]] * 20, np.float32)
    labels = np.array([0, 1] * 20)
    right, wrong = with_sets(labels, logits), with_sets(1 - labels, logits)
    for true in (labels, 1 - labels):
        correction = calibration.fit_priors(true, logits, np.array([0.9, 0.1]))
        assert np.isfinite([correction.power, *correction.factors]).all()
        assert correction(softmax(logits, axis=1)).sum(1) == pytest.approx(1)
    found = (right.temperature, right.threshold, wrong.temperature, wrong.threshold)
    assert all(value is not None and np.isfinite(value) for value in found)
    assert wrong.temperature > 19


def test_sets_that_hold_too_seldom_are_a_warning_unless_chance_explains_it() -> None:
    def warned(right: int, images: int, familiar: np.ndarray | None = None) -> list[str]:
        labels, sets = np.zeros(images, np.int64), np.zeros((images, 2), bool)
        sets[:right, 0] = True
        scored = ScoredImages(labels=labels, probabilities=sets.astype(np.float32), components=np.arange(images))
        return list(calibration.coverage_warnings(scored, sets, 0.9, familiar, "images"))

    [sentence] = warned(80, 100)
    assert sentence.startswith(
        "The prediction sets, meant to hold the true class of 90% of the images, hold it in 80.0% "
    )
    assert warned(8, 10) == []
    assert warned(90, 100) == []
    assert warned(80, 100, np.arange(100) < 85) == [], "the level is meant for familiar images"
    assert warned(0, 100, np.zeros(100, bool)) == []


def test_hand_worked_scores() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.2, 0.8]], np.float32)
    assert brier_score(labels, probabilities) == pytest.approx((3 * 2 * 0.2**2 + 2 * 0.8**2) / 4)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0.05)  # 80 % sure, 75 % right


def test_thresholds_by_class_cover_each_class_and_the_shared_one_does_not() -> None:
    """Class c is rare and hard: all images together keep the level without it."""
    rng = np.random.default_rng(0)
    shares: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(60):
        labels = rng.choice(3, 1400, p=[0.6, 0.3, 0.1])
        logits = (rng.normal(size=(1400, 3)) + np.array([2.5, 2.0, 0.0])[labels, None] * np.eye(3)[labels]).astype(
            np.float32
        )
        probabilities = softmax(logits, axis=1)
        for by_class, found in shares.items():
            fitted = calibration.with_thresholds(
                Calibration(temperature=1.0, level=0.9, threshold=None),
                alone(labels[:400], probabilities[:400]),
                by_class=by_class,
            )
            sets = fitted.prediction_sets(probabilities[400:])
            measured = calibration.coverage(labels[400:], sets, 0.9, ("a", "b", "c"))
            assert measured is not None
            found.append([measured.by_class[name] or 0 for name in "abc"])
    together, apart = (np.mean(shares[by_class], axis=0) for by_class in (False, True))
    assert together[2] < 0.75
    assert apart[1:] == pytest.approx([0.9, 0.9], abs=0.025)
    assert apart[0] > 0.9, "the most likely class is in every set, and is right more often"


def test_a_class_of_few_images_has_the_shared_threshold() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 19, 20])
    probabilities = rng.dirichlet(np.ones(3), 99).astype(np.float32)
    unfitted = Calibration(temperature=1.0, level=0.9, threshold=None)
    fitted = calibration.with_thresholds(unfitted, alone(labels, probabilities), by_class=True)
    first, second, third = fitted.class_thresholds
    assert second is None
    for own, label in ((first, 0), (third, 2)):
        of_class = labels == label
        assert own == calibration.fit_threshold(alone(labels[of_class], probabilities[of_class]), 0.9)
    sets = fitted.prediction_sets(probabilities)
    limits = np.array([first, fitted.threshold, third], np.float32)
    expected = (probabilities >= limits) | np.eye(3, dtype=bool)[probabilities.argmax(1)]
    assert np.array_equal(sets, expected)
    assert calibration.held_for(fitted, ("a", "b", "c")).startswith("for each class but b, ")
    assert calibration.with_thresholds(unfitted, alone(labels, probabilities), by_class=False).class_thresholds == ()
    few = calibration.with_thresholds(unfitted, alone(labels[:5], probabilities[:5]), by_class=True)
    assert (few.threshold, few.class_thresholds) == (None, ())
