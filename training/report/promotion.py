"""The part of a run's report on its promotion, which is decided after the report is written: it is then rewritten."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from serving.contract.card.certificate import Certificate
from training.engine import runs
from training.options.choices import Promote
from training.report import html
from training.storage import write_atomically

PARTS = ("line", "section")
"""Parts of a page, between comments that name them: what its first screen has, and the section with the numbers."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Whether `latest` moved to a run at its end, and by which numbers."""

    outcome: Literal["promoted", "refused", "not settled", "not asked"]
    promote: Promote
    """The rule, as the run's option names it."""
    sentence: str
    measured: Certificate | None
    """None: nothing was measured, as the rule says."""
    faults: tuple[str, ...]
    """Why it was refused, each a part of a sentence."""
    warnings: tuple[str, ...]
    """Sentences on what the rule leaves out."""
    time: str | None
    """When `latest` moved or did not, UTC; None before that."""

    def facts(self) -> dict[str, Any]:
        """What report.json holds."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return facts


def write_promotion(run: Path, promotion: Promotion) -> None:
    """Put what was decided into the finished report of a run: report.json, report.html and report.md.

    Reports of older versions, which have no such part, stay as they are. Raises OSError.
    """
    folder = run / runs.REPORT
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if "promotion" not in report:
        return
    facts = promotion.facts()
    _write(folder / "report.json", json.dumps(report | {"promotion": facts}, indent=1, ensure_ascii=False))
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        template = f"promotion{Path(name).suffix}.jinja"
        for part in PARTS:
            rendered = html.render(template, promotion=facts, part=part)
            between = re.compile(rf"(<!-- promotion {part} -->\n).*?(<!-- end -->)", re.DOTALL)
            text = between.sub(lambda match, new=rendered: f"{match[1]}{new}{match[2]}", text)  # type: ignore[misc]
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
