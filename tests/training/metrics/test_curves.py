import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from tests.support.simulated_models import CLASSES, split
from training.metrics.classification import ScoredImages
from training.metrics.curves import SHARES, class_curves


def scored(seed: int, images: int, repeat: int = 1) -> ScoredImages:
    labels, probabilities = split(seed, images)
    copies = np.repeat(np.arange(images), repeat)
    return ScoredImages(labels=labels[copies], probabilities=probabilities[copies], components=copies)


def test_the_curves_are_scikit_learn_s() -> None:
    images = scored(0, 300)
    coarse = ScoredImages(
        labels=images.labels, probabilities=images.probabilities.round(1), components=images.components
    )
    for given in (images, coarse):  # coarse: most probabilities are tied
        for label, curves in enumerate(class_curves(given, CLASSES, [0, 1, 2])):
            is_class, of_class = given.labels == label, given.probabilities[:, label]
            alarms, sensitivity, _ = roc_curve(is_class, of_class, drop_intermediate=False)
            assert curves.sensitivity.value == pytest.approx(np.interp(SHARES, alarms, sensitivity), abs=1e-4)
            assert curves.roc_auc == pytest.approx(auc(alarms, sensitivity))
            precision, recall, _ = precision_recall_curve(is_class, of_class)
            expected = [precision[:-1][recall[:-1] >= share - 1e-12][-1] for share in SHARES[1:]]
            assert curves.precision.value[1:] == pytest.approx(expected, abs=1e-4)
            assert curves.precision.value[0] is curves.precision.low[0] is None
            assert (curves.name, curves.images) == (CLASSES[label], is_class.sum())


@pytest.mark.slow
def test_bands_hold_the_curve_of_all_images_as_often_as_they_say_also_where_it_is_flat() -> None:
    [truth] = class_curves(scored(99, 20_000), CLASSES, [1])
    seeds = 40
    for name in ("sensitivity", "precision"):
        true, bands = (
            getattr(truth, name),
            [getattr(class_curves(scored(seed, 200), CLASSES, [1])[0], name) for seed in range(seeds)],
        )
        for place in (10, 30, 50, 70, 90):
            held = sum(band.low[place] <= true.value[place] <= band.high[place] for band in bands)
            assert held >= 0.85 * seeds, (name, place)


def test_copies_of_a_group_make_no_band_narrower() -> None:
    [alone], [grouped] = (class_curves(scored(3, 120, repeat), CLASSES, [0]) for repeat in (1, 5))
    assert grouped.sensitivity == alone.sensitivity
    assert grouped.precision == alone.precision


def test_a_class_of_one_image_has_curves_of_the_resamples_that_hold_it() -> None:
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.5, 0.5]], np.float32)
    images = ScoredImages(labels=labels, probabilities=probabilities, components=np.arange(4))
    [curves] = class_curves(images, ("a", "b"), [1])
    assert curves.sensitivity.value[0] == 0
    assert curves.sensitivity.value[-1] == 1
    assert curves.precision.value[1:] == [0.5] * 100
    assert curves.precision.high[1] == 1
