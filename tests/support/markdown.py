"""The pages of the project and their code blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
IGNORED = {".venv", "runs", "build", "dist", ".bench", ".git"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block; `language` is what stands behind the fence."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(language=language, text=text) for language, text in FENCE.findall(page.read_text())]


def table(page: Path, title: str) -> list[list[str]]:
    """The rows of all tables of a page whose first column has this title, each as its cells."""
    rows: list[list[str]] = []
    inside = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == title:
            inside = True
        elif inside and set(cells[0]) - set("-: "):
            rows.append(cells)
    return rows


PAGES = sorted(
    (
        page
        for top in ROOT.iterdir()
        if top.name not in IGNORED
        for page in ([top] if top.is_file() else top.rglob("*"))
        if page.suffix == ".md"
    ),
    key=lambda page: (len(page.relative_to(ROOT).parts), page),
)
"""From the root downwards: the first page makes what the later ones name."""
