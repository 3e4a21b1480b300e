"""The results of `python -m training parity`: parity.json for programs, parity.html for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.contract.card.model_card import TOLERANCE, ModelCard
from training.export.ways import WayCheck
from training.report import html


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one way answered, compared with the first, and how long it took."""

    check: WayCheck
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """All ways of asking a model about the same images. The first is what the others are compared with."""

    model: Path
    card: ModelCard
    data: str
    split: str
    images: int
    answers: Sequence[Answers]

    @property
    def faults(self) -> list[str]:
        """A line for each way whose answers differ."""
        return [str(answer.check) for answer in self.answers if not answer.check.holds]


def write_parity(report: ParityReport, folder: Path) -> None:
    """Write both files into `folder`."""
    facts = _facts(report)
    (folder / "parity.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "parity.html").write_text(html.render("parity.html.jinja", **facts), encoding="utf-8")


def parity_summary(folder: Path) -> str:
    """The table that the command prints at its end."""
    facts = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    reference, *others = facts["ways"]
    width = max(len(way["way"]) for way in facts["ways"])
    lines = ["", f"{'compared with ' + reference['way']:{width}}  largest difference  other labels  ties  seconds"]
    lines += [
        f"{way['way']:{width}}  {way['largest_difference']:18.1e}  {way['labels_differ']:12,}  {way['ties']:4,}  "
        f"{way['seconds']:7.1f}"
        for way in others
    ]
    verdict = "Every answer is the same" if facts["held"] else "NOT every answer is the same"
    lines += ["", f"{verdict}, on {facts['images']:,} images, within {facts['tolerance']:g}.", ""]
    return "\n".join([*lines, f"report  {folder / 'parity.html'}"])


def _facts(report: ParityReport) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": str(report.model),
        "name": report.card.name,
        "version": report.card.version,
        "data": report.data,
        "split": report.split,
        "images": report.images,
        "tolerance": TOLERANCE,
        "held": not report.faults,
        "ways": [
            {name: value for name, value in asdict(answer.check).items() if name != "pixels_equal"}
            | {"holds": answer.check.holds, "seconds": round(answer.seconds, 3)}
            for answer in report.answers
        ],
    }
