import base64

import jinja2
import numpy as np
import pytest

from tests.support.pictures import opened
from training.report import html


def decoded(uri: str) -> np.ndarray:
    kind, content = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    return opened(base64.b64decode(content))


@pytest.mark.parametrize("shape", [(300, 450, 3), (20, 30, 3), (20, 30, 1)])
def test_a_thumbnail_keeps_shape_and_colour(shape: tuple[int, int, int]) -> None:
    colour = np.array([200, 120, 40], np.uint8)[: shape[2]]
    small = decoded(html.thumbnail(np.broadcast_to(colour, shape).copy()))
    assert small.shape == (64, 96, 3)
    assert np.abs(small.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("shape", [(10, 5000, 3), (5000, 10, 1), (8, 8192, 3)])
def test_a_thumbnail_of_a_line_has_a_pixel_across(shape: tuple[int, int, int]) -> None:
    assert min(decoded(html.thumbnail(np.zeros(shape, np.uint8))).shape[:2]) == 1


def test_what_is_undefined_is_a_dash_and_not_a_number() -> None:
    assert (html.percent(None), html.number(None), html.interval(None)) == ("-", "-", "-")
    assert (html.percent(0.0), html.number(0.0), html.interval((0.0, 1.0))) == ("0.0%", "0.000", "0.000 to 1.000")


def test_a_value_that_a_template_names_and_does_not_get_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'run' is undefined"):
        html.render("report.html.jinja")
