"""The names of a person's images, and where a text has them."""

import re
from collections.abc import Iterable

from markupsafe import escape

REMOVED = "[forgotten]"
"""What takes the place of a name in a sentence."""


def _forms(name: str) -> tuple[str, ...]:
    """As a text has it, a page, and a CSV table."""
    return name, str(escape(name)), name.replace('"', '""')


class Names:
    """Names of images and of a group, as they stand in texts and pages."""

    def __init__(self, names: Iterable[str]) -> None:
        self.exact = frozenset(names)
        self._forms = sorted({form for name in self.exact for form in _forms(name)}, key=len, reverse=True)

    def __contains__(self, text: object) -> bool:
        """Whether a text has one of the names; `a/1.png` is not in `b/a/1.png`, nor in `a/1.pngs`."""
        return isinstance(text, str) and self._pattern(text) is not None

    def replaced(self, text: str) -> tuple[str, int]:
        """The text with REMOVED in the place of each name, and how many there were."""
        pattern = self._pattern(text)
        return (text, 0) if pattern is None else pattern.subn(REMOVED, text)

    def _pattern(self, text: str) -> re.Pattern[str] | None:
        """What matches the names that this text has. Of thousands of names, most are ruled out by the first search."""
        there = [form for form in self._forms if form in text]
        if not there:
            return None
        pattern = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, there))})(?![\w/-]|\.\w)")
        return pattern if pattern.search(text) else None
