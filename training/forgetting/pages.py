"""Pages of reports: the pictures in them, and a page without some of them and without some names."""

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from training.data import duplicates
from training.forgetting.names import Names
from training.forgetting.texts import Counts, sentences

SHEET = "Training images, each with several random changes"
"""The alternative text of the picture of augmented images in a run's page."""
_FIGURE = re.compile(r"<figure>.*?</figure>\s*", re.DOTALL)
_ROW = re.compile(r"<tr[ >](?:(?!<tr).)*?</tr>\s*|<li>.*?</li>\s*", re.DOTALL)
_IMG = re.compile(r"<img [^>]*>")
_PICTURE = re.compile(r'src="data:image/(?:jpeg|png);base64,([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class UnwantedParts:
    """What is to go from a page."""

    names: Names
    pictures: frozenset[str] = frozenset()
    """As `pictures` gives them."""
    sheet: bool = False
    """The picture of augmented training images, which may show any of them."""
    examples: bool = False
    """All small pictures without a name."""


@dataclass
class _Page:
    """A page from which parts are taken."""

    text: str
    counts: Counts = field(default_factory=Counts)

    def drop(self, part: re.Pattern[str], unwanted: Callable[[str], bool]) -> None:
        """Take away the parts that are unwanted, and count the pictures or lines in them."""

        def replacement(match: re.Match[str]) -> str:
            if not unwanted(match[0]):
                return match[0]
            pictures = len(_IMG.findall(match[0]))
            self.counts["pictures" if pictures else "lines"] += pictures or 1
            return ""

        self.text = part.sub(replacement, self.text)


def pictures(page: str) -> Iterator[str]:
    """The photographs in a page, as Base64; drawings (SVG) show no image."""
    yield from _PICTURE.findall(page)


def fingerprint(picture: str) -> np.ndarray | None:
    """The fingerprint of a picture of a page, a scalar array of FINGERPRINT; None where it is none."""
    try:
        return fingerprint_of(base64.b64decode(picture, validate=True))
    except binascii.Error:
        return None


def fingerprint_of(content: bytes) -> np.ndarray | None:
    """The fingerprint of a picture of this program's own reports; None where it is none."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    return None if pixels is None else duplicates.fingerprint(np.ascontiguousarray(pixels[..., ::-1]))


def without(page: str, unwanted: UnwantedParts) -> tuple[str, Counts]:
    """The page without what is unwanted: a figure goes as a whole, another picture alone; and what was taken away."""
    names = unwanted.names

    def shows(part: str) -> bool:
        return part in names or any(picture in unwanted.pictures for picture in pictures(part))

    rest = _Page(page)
    rest.drop(_FIGURE, lambda figure: shows(figure) or (unwanted.examples and "figcaption" not in figure))
    rest.drop(_IMG, lambda image: shows(image) or (unwanted.sheet and f'alt="{SHEET}"' in image))
    rest.drop(_ROW, lambda row: row in names)
    rest.text, others = sentences(rest.text, names)
    return rest.text, rest.counts + others
