"""Fill the templates of pages, with pictures as data URIs: a page is one file that opens offline."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from shlex import quote
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from training.metrics.classification import CALIBRATION_TITLES, TITLES

THUMBNAIL = 96


def render(template: str, **values: object) -> str:
    """Fill a template of this package. Raises jinja2.UndefinedError for a value that it uses and does not get."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    """One for all pages, since templates include one another, and to compile one takes longer than to fill it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.report", "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number, "interval": interval, "places": places, "code": code}
    environment.filters |= {"percent_interval": percent_interval, "quote": lambda path: quote(str(path))}
    environment.filters |= {"gap": gap, "name": name, "sentence": sentence}
    environment.globals |= {"titles": TITLES, "calibration_titles": CALIBRATION_TITLES}
    return environment


def drawing(figure: Figure) -> str:
    """A figure as an SVG inside a data URI."""
    return svg_uri(svg(figure))


def svg(figure: Figure) -> bytes:
    """A figure as an SVG file's content."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


def svg_uri(content: bytes) -> str:
    """An SVG file's content inside a data URI."""
    return _data_uri("image/svg+xml", content)


def photo(figure: Figure) -> str:
    """A figure that is mostly photographs as a JPEG inside a data URI."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=100)
    return _data_uri("image/jpeg", file.getvalue())


def thumbnail(pixels: np.ndarray) -> str:
    """Pixels uint8 `[height, width, 1 or 3]` as a small JPEG inside a data URI."""
    scale = THUMBNAIL / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    done, encoded = cv2.imencode(".jpg", small[..., ::-1] if small.ndim == 3 else small)
    assert done
    return _data_uri("image/jpeg", bytes(encoded))


def code(text: str) -> Markup:
    """Escaped text in which what stands between backticks is set as code, as in Markdown."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 (it is escaped)


def name(text: str) -> str:
    """A name from the data in Markdown, as it is: one line without HTML, links, code, emphasis or columns."""
    return re.sub(r"[&<>\[\]`*|\\]", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def sentence(text: str) -> str:
    """A sentence of ours in Markdown, which may hold names from the data: one line without HTML and links."""
    return re.sub(r"<(?=[\w/!?])|(?<=\])[(\[:]", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def percent(share: float | None) -> str:
    """A share in percent; a dash where it is undefined."""
    return "-" if share is None else f"{share:.1%}"


def number(value: float | None) -> str:
    """A score to three places; a dash where it is undefined."""
    return "-" if value is None else f"{value:.3f}"


def places(value: float | None, count: int) -> str:
    """A measure to `count` places; a dash where there is none."""
    return "-" if value is None else f"{value:,.{count}f}"


def interval(limits: Sequence[float] | None) -> str:
    """Both limits to three places; a dash where there are none."""
    return "-" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}"


def percent_interval(limits: Sequence[float] | None) -> str:
    """Both limits of a share in percent; a dash where there are none."""
    return "-" if limits is None else f"{limits[0]:.1%} to {limits[1]:.1%}"


def gap(difference: Mapping[str, Any] | None) -> str:
    """A difference of scores with its interval; a dash where there is none."""
    if difference is None:
        return "-"
    low, high = difference["interval"]
    return f"{difference['difference']:+.3f}, {low:+.3f} to {high:+.3f}"


def novelty_lines(facts: dict[str, Any] | None, images: str) -> list[str]:
    """How many images are unfamiliar, in a line for the console; none for a model without novelty."""
    if facts is None:
        return []
    measured = facts["measured"]
    return [
        f"{percent(measured['value'])} ({percent_interval(measured['interval'])}) of the {images} are unfamiliar; the "
        f"limit is set for {percent(facts['false_alarms'])} at most."
    ]


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
