"""Figures of the reports, drawn with matplotlib."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.metrics.classification import RiskCoverage, Scores
from training.metrics.curves import SHARES, Band, ClassCurves
from training.metrics.intervals.proportions import Interval
from training.metrics.operating_points import MeasuredPoint
from training.report.names import displayed, legend

# Okabe and Ito (2008), Color universal design: distinguishable with colour blindness.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "svg.fonttype": "none",
}
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", GREY)
DASHES = ("-", "--", ":", "-.")
Panels = Mapping[str, Mapping[str, Sequence[Sequence[float | None]]]]
"""By panel title and line name: the values of each seed, which may be of different lengths."""
COUNTS_SHOWN_UP_TO = 20
NAMES_SHOWN_UP_TO = 120
LEFT, BELOW, AROUND = 1.0, 0.55, 0.2
"""Margins in inches around axes whose labels have a known length. Measured ones double the time of a drawing."""
GAP, ROOM_FOR_TITLE = 1 / 8, 1 / 3
"""Space between images, and above an image with a title of two lines; in shares of the image's side."""


def curve(name: str, epochs: Sequence[int], lines: Mapping[str, Sequence[float]], best: int) -> Figure:
    """Lines by epoch, at most two, named in the legend; `best` is the epoch whose weights are exported."""
    with rc_context(STYLE):
        figure, axes = _single(5, 3.4)
        marker = "o" if len(epochs) == 1 else None  # one epoch makes no line
        for (label, values), colour, style in zip(lines.items(), (BLUE, ORANGE), ("-", "--"), strict=False):
            axes.plot(epochs, values, color=colour, linestyle=style, marker=marker, label=label)
        axes.axvline(best, color=GREY, linewidth=1, linestyle=":", label=f"best, epoch {best}")
        axes.set(xlabel="epoch", ylabel=name)
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))  # more digits than the margin has room for
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name.startswith("accuracy"):
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend()
    return figure


def bands(name: str, along: str, panels: Panels) -> Figure:
    """Means over seeds with a band from the lowest to the highest; a line ends with the shortest seed's values.

    The axis is logarithmic where the values above zero span more than three powers of ten and none is below zero. A
    zero, such as the gradient of a branch that starts at zero, is then a gap between the dots.
    """
    values = [
        value for lines in panels.values() for seeds in lines.values() for seed in seeds for value in seed if value
    ]
    logarithmic = bool(values) and min(values) > 0 and max(values) > 1000 * min(values)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.5 * columns + 2, 3.4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        for place, (axes, (title, lines)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
            _panel(axes, lines, logarithmic=logarithmic)
            axes.set(title=title, ylabel=name, yscale="log" if logarithmic else "linear")
            if place + columns >= len(panels):  # nothing below it
                axes.set_xlabel(along)
                axes.xaxis.set_tick_params(labelbottom=True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _panel(axes: Axes, lines: Mapping[str, Sequence[Sequence[float | None]]], *, logarithmic: bool) -> None:
    """Draw each line of one panel: the mean over its seeds, and a band where it has several."""
    dots: dict[str, Any] = {"marker": "o", "markersize": 3} if logarithmic else {}
    for number, (line, seeds) in enumerate(lines.items()):
        series = [values for values in seeds if values]
        length = min(map(len, series), default=0)
        values = np.array([values[:length] for values in series], float).reshape(len(series), length)
        if logarithmic:
            values[values == 0] = np.nan
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        places = np.arange(1, length + 1)
        means = values.mean(0) if series else []
        axes.plot(places, means, color=colour, linestyle=dashes, label=line, **dots)
        if len(series) > 1:
            axes.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def confusion(scores: Scores) -> Figure:
    """Confusion matrix: colour is the share of the true class, numbers are counts."""
    classes = [scored.name for scored in scores.by_class]
    names, note = displayed(classes), legend(classes)
    counts = np.array(scores.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(4.0, 0.55 * len(names) + 2), 14)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes: Axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
        bar.ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set(xlabel=f"predicted{note}", ylabel="true")
        every = math.ceil(len(names) / NAMES_SHOWN_UP_TO)
        shown, size = names[::every], min(10, 0.6 * 72 * side / len(names[::every]))
        turned = {"rotation": 45, "rotation_mode": "anchor"} if size == 10 else {"rotation": 90}
        axes.set_xticks(
            range(0, len(names), every), shown, ha="right" if size == 10 else "center", fontsize=size, **turned
        )
        axes.set_yticks(range(0, len(names), every), shown, fontsize=size)
        if len(names) <= COUNTS_SHOWN_UP_TO:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, f"{count:,}" if count else "", ha="center", va="center", color=colour)
    return figure


def reliability(bins: Sequence[tuple[float, float, int]], images: str) -> Figure:
    """Accuracy against confidence by bin; a calibrated model lies on the diagonal. Areas are shares of the images."""
    confidence, accuracy, count = np.array(bins).T
    with rc_context(STYLE):
        figure, axes = _single(4.4, 4)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="calibrated")
        areas = 20 + 400 * count / count.sum()
        axes.scatter(confidence, accuracy, areas, BLUE, alpha=0.7, clip_on=False, label=images)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.legend(markerscale=0.5)
    return figure


def roc(curves: ClassCurves, measured: MeasuredPoint | None) -> Figure:
    """Sensitivity against the share of other images decided yes, with its band; `measured` is a dot on it."""
    figure, axes = _shares("other images decided yes", "sensitivity", curves.sensitivity)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="by chance")
    if measured and measured.rates.specificity.value is not None:
        _dot(axes, 1 - measured.rates.specificity.value, measured.rates.sensitivity.value)
    axes.legend(loc="lower right", frameon=False)
    return figure


def precision_recall(curves: ClassCurves, measured: MeasuredPoint | None) -> Figure:
    """Precision against sensitivity, with its band; `measured` is a dot on it."""
    figure, axes = _shares("sensitivity", "precision", curves.precision)
    axes.plot([0, 1], [curves.share, curves.share], color=GREY, linewidth=1, linestyle=":", label="by chance")
    if measured:
        _dot(axes, measured.rates.sensitivity.value, measured.rates.precision.value)
    axes.legend(loc="lower left", frameon=False)
    return figure


def _shares(along: str, name: str, band: Band) -> tuple[Figure, Axes]:
    """Axes of shares with a curve in its band."""
    value, low, high = (np.array(values, float) for values in (band.value, band.low, band.high))
    with rc_context(STYLE):
        figure, axes = _single(4.4, 3.4)
        axes.fill_between(SHARES, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(SHARES, value, color=BLUE)
        axes.set(xlabel=along, ylabel=name, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
    return figure, axes


def _single(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches, and its only axes, inside the given margins."""
    figure = Figure(figsize=(width, height))
    share = (LEFT / width, BELOW / height, 1 - (LEFT + AROUND) / width, 1 - (BELOW + AROUND) / height)
    return figure, figure.add_axes(share)


def _dot(axes: Axes, x: float | None, y: float | None) -> None:
    if x is not None and y is not None:
        axes.plot([x], [y], "o", color=ORANGE, label="operating point")


def risk_coverage(curve: RiskCoverage) -> Figure:
    """Accuracy of the images kept against the share of images on which the model abstains."""
    handed_over, accuracy = np.array(curve.curve).T
    with rc_context(STYLE):
        figure, axes = _single(5, 3.4)
        axes.plot(handed_over, accuracy, color=BLUE, label="the least confident first", clip_on=False)
        axes.axhline(accuracy[0], color=GREY, linewidth=1, linestyle=":", label="at random")
        axes.set(xlabel="test images abstained on", ylabel="accuracy of the others", xlim=(0, 1))
        axes.set_ylim(top=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.legend()
    return figure


def gallery(images: np.ndarray, titles: Sequence[str], wrong: Sequence[bool]) -> Figure:
    """Up to 24 images `[n, height, width, channels]`, each below its title of two lines, orange for a wrong label."""
    columns = 6
    rows = max(1, -(-len(images) // columns))
    cells = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    cells[: len(images)] = images
    with rc_context(STYLE | {"font.size": 8}):
        figure = Figure(figsize=(columns * 1.7, rows * 2.02 + 0.3), layout="constrained")
        figure.suptitle("true label -> predicted label and confidence; orange where wrong")
        height, above = images.shape[1], round(images.shape[1] * ROOM_FOR_TITLE)
        axes = _mosaic(figure, cells.reshape(rows, columns, *images.shape[1:]), above)
        for place, (title, is_wrong) in enumerate(zip(titles, wrong, strict=True)):
            row, column = divmod(place, columns)
            axes.text(
                column + 0.5,
                row + (above - 0.5) / (above + height),
                title,
                color=ORANGE if is_wrong else "black",
                horizontalalignment="center",
                verticalalignment="bottom",
            )
    return figure


def drifts(unchanged: float, changes: Mapping[str, Sequence[tuple[float, float, Interval]]]) -> Figure:
    """A panel for each change: by strength, the score, and around it the interval of its difference to `unchanged`."""
    columns = min(len(changes), 5)
    rows = -(-len(changes) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.2 * columns, 2.2 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(changes) :]:
            axes.axis("off")
        for axes, (name, points) in zip(grid.flat, changes.items(), strict=False):
            places = np.arange(len(points))
            low, high = (np.array([unchanged + interval[side] for *_, interval in points]) for side in (0, 1))
            axes.axhline(unchanged, color=GREY, linewidth=1, linestyle=":")
            axes.fill_between(places, low.clip(0, 1), high.clip(0, 1), color=BLUE, alpha=0.15, linewidth=0)
            axes.plot(places, [value for _, value, _ in points], color=BLUE, marker="o", markersize=3)
            axes.set(title=name, xticks=places, ylim=(0, 1))
            axes.set_xticklabels([f"{strength:g}" for strength, *_ in points], fontsize=7)
        for axes in grid[:, 0]:
            axes.set_ylabel("balanced accuracy", fontsize=8)
    return figure


def sheet(images: np.ndarray, first: str) -> Figure:
    """Rows of images `[rows, columns, height, width, channels]`; the first column is titled."""
    rows, columns = images.shape[:2]
    with rc_context(STYLE):
        figure = Figure(figsize=(columns * 1.2, rows * 1.2 + 0.3), layout="constrained")
        axes = _mosaic(figure, images, round(images.shape[2] * GAP))
        axes.text(0.5, 0, first, horizontalalignment="center", verticalalignment="bottom")
    return figure


def _mosaic(figure: Figure, images: np.ndarray, above: int) -> Axes:
    """Images `[rows, columns, height, width, channels]` as one picture, cell (row, column) at y = row, x = column.

    `above` is the space above each image in pixels. One axes object for all images takes less than half the time of
    24 (a third of a second).
    """
    beside = round(images.shape[3] * GAP / 2)
    padded = np.pad(images, ((0, 0), (0, 0), (above, 0), (beside, beside), (0, 0)), constant_values=255)
    rows, columns, cell_height, cell_width, channels = padded.shape
    whole = padded.swapaxes(1, 2).reshape(rows * cell_height, columns * cell_width, channels)
    axes = figure.subplots()
    axes.imshow(
        whole,
        cmap="gray" if channels == 1 else None,
        vmin=0,
        vmax=255,
        extent=(0, columns, rows, 0),
        aspect=cell_height / cell_width,
    )
    axes.axis("off")
    return axes
