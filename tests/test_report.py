import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from training import page
from training.report import summary


def test_predictions_hold_every_test_image_once(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == report["scores"]["test"]["images"]
    names = report["card"]["classes"]
    for row in rows:
        values = [float(row[name]) for name in names]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == names[values.index(max(values))]
    accuracy = sum(row["true"] == row["predicted"] for row in rows) / len(rows)
    assert accuracy == report["scores"]["test"]["accuracy"]


class References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]


def test_the_page_opens_offline(run: Path) -> None:
    text = (run / "report" / "report.html").read_text()
    page = References()
    page.feed(text)
    assert page.found
    assert all(reference.startswith("data:") for reference in page.found)
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 3_000_000


def test_class_names_cannot_write_html(run: Path) -> None:
    assert "<script>" not in page.render(
        "report.html.jinja",
        **_with_class_name(run, "<script>"),
        pictures={"loss": "", "accuracy": "", "confusion": "", "reliability": ""},
        mistakes=[],
    )


def _with_class_name(run: Path, name: str) -> dict[str, object]:
    facts = json.loads((run / "report" / "report.json").read_text())
    facts["data"]["classes"][0]["name"] = facts["scores"]["test"]["by_class"][0]["name"] = name
    facts["intervals"]["recall"][name] = facts["intervals"]["precision"][name] = None
    return facts


def test_the_summary_says_results_places_and_the_next_command(run: Path) -> None:
    text = summary(run)
    assert re.search(r"accuracy +1\.0000 +1\.0000 +1\.0000", text)
    assert "Parity held on all 12 test images" in text
    for path in ("report/report.html", "model.onnx"):
        assert str(run / path) in text
    assert f"TWINLENS_MODEL={run}/model.onnx bentoml serve" in text


def test_the_model_card_is_markdown_with_front_matter(run: Path) -> None:
    text = (run / "report" / "report.md").read_text()
    assert text.startswith("---\n")
    assert "not a medical device" in text
    assert "| Red rash | 1.000 | 1.000 | 1.000 | 4 |" in text
    assert "768 of 768" in text
