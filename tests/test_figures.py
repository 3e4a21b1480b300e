from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from training import figures
from training.scores import score


@pytest.mark.parametrize("classes", [2, 10, 40, 100, 300])
def test_names_beside_the_confusion_matrix_do_not_run_into_each_other(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 2000)
    probabilities = rng.dirichlet(np.ones(classes), 2000).astype(np.float32)
    names = tuple(f"a rather long name {number}" for number in range(classes))
    figure = figures.confusion(score(labels, probabilities, names))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in axes.get_yticklabels()]
    assert min(100, classes) <= len(boxes) + 1
    assert all(upper.ymin >= lower.ymax for upper, lower in pairwise(boxes))
    if classes >= 100:  # below, they are slanted and their boxes say nothing
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in axes.get_xticklabels()]
        assert all(left.xmax <= right.xmin for left, right in pairwise(boxes))
    assert {label.get_text() for label in axes.get_xticklabels()} <= set(names)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_every_image(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, channels), dtype=np.uint8)
    figure = figures.sheet(images, "original")
    assert len(figure.axes) == 12
    shown = np.array([axes.images[0].get_array() for axes in figure.axes])
    assert np.array_equal(shown.reshape(images.shape), images)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["original", ""]
