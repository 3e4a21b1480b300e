import base64
import re
from html import unescape

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


def test_a_name_in_markdown_is_text() -> None:
    hostile = "<img src=x>\n# [a](//b) ![c](d) `e` *f* | g \\h &lt; i_j + -"
    shown = html.name(hostile)
    assert not set(shown) & set("<>[]`*|\\\n")
    assert unescape(shown) == hostile.replace("\n", " ")
    assert html.name("i_j + -") == "i_j + -", "an ordinary name stays readable"


def test_a_sentence_in_markdown_has_code_but_neither_html_nor_links_nor_a_second_line() -> None:
    assert html.sentence("`--balance`: p < 0.05, [0.1, 0.2]") == "`--balance`: p < 0.05, [0.1, 0.2]"
    shown = html.sentence("class '<b>' and '</b>'\n\n# '[a](//b)' '[a][b]' '[a]: b'")
    assert not re.search(r"<\S|\][(\[:]|\n", shown)


def test_a_data_sheet_shows_names_as_they_are() -> None:
    span = {"min": 1, "median": 1, "max": 1}
    files = {"formats": {"PNG": 1}, "width": span, "height": span, "not_upright": 0, "unreadable": []}
    duplicates = dict.fromkeys(("exact", "near", "in_two_splits", "under_two_labels"), 0)
    audit = {"files": files, "duplicates": duplicates, "groups_in_two_splits": [], "removed": []}
    label = {"name": "<script>a|b</script>", "train": 1, "val": 1, "test": 1}
    data = {"name": "[x](//y)", "images": 3, "digest": "d", "test_digest": "t", "classes": [label]}
    page = html.render("data_sheet.md.jinja", data=data, audit=audit | {"warnings": ["of '<script>'"]})
    assert "<script" not in page
    assert "](" not in page
    assert "&#60;script&#62;a&#124;b&#60;/script&#62; | 1 | 1 | 1 |" in page
