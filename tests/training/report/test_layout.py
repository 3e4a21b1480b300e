"""Every page in a real Chromium, as wide as a phone and as a laptop: nothing is cut and nothing overflows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.studies import invented_results
from training.evaluate import EvaluateConfig, evaluate
from training.options.config import TrainConfig
from training.report.audit import AuditConfig, run_audit
from training.study.config import StudyConfig, declared
from training.study.report import write_study_report
from training.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; `apt-get install chromium` brings it"),
]

CLASSES = (
    "nevus",
    "a_class_name_of_one_very_long_word_without_any_space_in_it",
    "benign keratosis-like lesions of all kinds",
)
OVERFLOWING = """() => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const faults = [], wide = document.documentElement.scrollWidth;
  const text = element => element.textContent.trim().slice(0, 40);
  if (wide > innerWidth) faults.push(`the page is ${wide} px wide`);
  for (const table of document.querySelectorAll("table")) {
    const box = table.closest(".scroll");
    if (!box) { faults.push(`table outside .scroll: ${text(table)}`); continue; }
    if (box.getBoundingClientRect().right > innerWidth) faults.push(`the box leaves the page: ${text(table)}`);
    if (getComputedStyle(box).overflowX != "auto") faults.push(`a table that does not scroll: ${text(table)}`);
    if (innerWidth >= 1280 && box.scrollWidth > box.clientWidth)
      faults.push(`a table is cut, ${box.scrollWidth} of ${box.clientWidth} px: ${text(table)}`);
  }
  for (const element of document.querySelectorAll("th, td, p, li, dt, dd, figcaption, summary, h1, h2, h3, .tile")) {
    const [needed, place] = [element.scrollWidth, element.clientWidth];
    if (place && needed > place + 1)
      faults.push(`${element.tagName} overflows, ${needed} of ${place} px: ${text(element)}`);
  }
  return faults;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each page of a model of noise, with long names of classes and files, a broken file, duplicates and mistakes."""
    root = tmp_path_factory.mktemp("pages")
    for number in range(240):
        folder = root / "data" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number % 234).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{'a_long_file_name_' * 6}{number}.png"), pixels)
    (root / "data" / CLASSES[0] / f"{'broken_file_' * 12}.png").write_bytes(b"cut off")
    options: dict[str, Any] = {"model": "mlp", "hidden": (8,), "image_size": 16, "epochs": 1, "val_fraction": 0.3}
    operate = tuple(f"{name}:sensitivity=0.9" for name in CLASSES)
    run = train(TrainConfig(data=root / "data", out=root, name="x", quantize="int8", operate=operate, **options))
    audit = run_audit(AuditConfig(data=root / "data", out=root / "audit"))
    config = EvaluateConfig(run=run, compare=run / "model.int8.onnx", data=root / "data", split="all", out=root / "e")
    if not (run / "model.int8.onnx").exists():
        config = replace(config, compare=run)
    study = declared(StudyConfig(study="regularisation"), "regularisation")
    write_study_report(root, study, invented_results(study, root))
    return {
        "report": run / "report" / "report.html",
        "audit": audit / "audit.html",
        "evaluation": evaluate(config) / "evaluation.html",
        "study": root / "study.html",
    }


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "audit", "evaluation", "study"])
def test_nothing_is_cut_and_nothing_overflows(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(pages[name].as_uri())
    faults = page.evaluate(OVERFLOWING)
    page.close()
    assert faults == []
