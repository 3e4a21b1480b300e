"""Names of classes as a figure can show them: matplotlib takes text between dollars for mathematics."""

import functools
from collections.abc import Sequence

from matplotlib.font_manager import findfont, get_font

MAX_NAME = 30
"""A longer name would leave no room for the picture; the tables have it in full."""


def displayed(names: Sequence[str]) -> list[str]:
    """The names with dollars as text and at most MAX_NAME characters.

    A name with a character that the font lacks is its number in the list, from 1, as `#3`: no font of a machine that
    trains can be relied on to have every script, and boxes say nothing.
    """
    return [_plain(name) if _has_glyphs(name) else f"#{number}" for number, name in enumerate(names, 1)]


def legend(names: Sequence[str]) -> str:
    """What an axis has to say about `displayed` names; empty where none is a number."""
    return "" if all(map(_has_glyphs, names)) else " (#: number of the class in the tables)"


def _plain(name: str) -> str:
    short = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."
    return short.replace("$", r"\$")


def _has_glyphs(name: str) -> bool:
    return all(ord(character) in _characters() for character in name)


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
