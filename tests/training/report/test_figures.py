from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from training.metrics.classification import score
from training.report import figures


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
def test_a_sheet_shows_every_image_in_its_place(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 16, 16, channels), dtype=np.uint8)
    [axes] = figures.sheet(images, "original").axes
    whole = np.asarray(axes.images[0].get_array()).reshape(3, 18, 4, 18, channels).swapaxes(1, 2)
    assert np.array_equal(whole[:, :, 2:, 1:17], images)
    assert (np.delete(whole, range(2, 18), axis=2) == 255).all(), "white above"
    assert [text.get_text() for text in axes.texts] == ["original"]


def test_a_gallery_shows_titles_above_their_images_and_nothing_where_there_is_none() -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 15, 15, 3), dtype=np.uint8)
    figure = figures.gallery(images, [f"cat\n-> dog {number}" for number in range(8)], [True, False] * 4)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    [axes] = figure.axes
    texts = {text.get_text(): text for text in axes.texts}
    assert len(texts) == 8
    whole = np.asarray(axes.images[0].get_array()).reshape(2, 20, 6, 17, 3).swapaxes(1, 2).reshape(12, 20, 17, 3)
    assert np.array_equal(whole[:8, 5:, 1:16], images)
    assert (whole[8:] == 255).all()
    for number in range(8):
        box = texts[f"cat\n-> dog {number}"].get_window_extent(canvas.get_renderer())
        (left, bottom), (right, top) = axes.transData.inverted().transform([(box.x0, box.y0), (box.x1, box.y1)])
        row, column = divmod(number, 6)
        assert (column <= left) & (right <= column + 1)
        assert row <= top <= bottom <= row + 0.25 + 1e-9, "in the white above the image"
    assert len({text.get_color() for text in axes.texts}) == 2


def test_a_panel_with_none_below_it_has_numbers_on_its_axis() -> None:
    panels = {f"panel {number}": {"line": [[0.1, 0.2, 0.3]]} for number in range(3)}
    figure = figures.bands("score", "epoch", panels)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    numbered = [any(label.get_visible() for label in axes.get_xticklabels()) for axes in figure.axes[:3]]
    assert numbered == [False, True, True]
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["", "epoch", "epoch"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("loss", [2.25, 0.004]),
        ("loss", [1e-7, 3e-7]),
        ("loss", [12345.0, 1.0]),
        ("accuracy, training less validation", [-0.155, 0.002]),
        ("accuracy, training less validation", [-0.00152, 0.0001]),
        ("learning rate", [0.003, 1e-6]),
    ],
)
def test_labels_of_any_numbers_are_inside_the_given_margins(name: str, values: list[float]) -> None:
    figure = figures.curve(name, [1, 2], {name: values}, 2)
    figure.draw_without_rendering()
    drawn, whole = figure.axes[0].get_tightbbox(), figure.bbox
    assert drawn is not None
    assert whole.x0 <= drawn.x0 <= drawn.x1 <= whole.x1
    assert whole.y0 <= drawn.y0 <= drawn.y1 <= whole.y1
