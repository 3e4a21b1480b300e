import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.contract.model import open_model
from tests.support.pages import References
from training.data.cache import Cache
from training.data.formats import find_source
from training.data.selection import Selection, gather_images
from training.models import prediction
from training.report.evaluation import EvaluationReport, ModelPredictions, evaluation_summary, write_evaluation
from training.report.html import render


@pytest.fixture(scope="module")
def folders(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Results of one model, and of the same model against one that answers a third of the images the other way."""
    classifier = open_model(run / "model.onnx")
    source = find_source(photos, Cache())
    images, trained_on = gather_images(source, Cache(), [classifier.card])
    images.unreadable["broken <b>.png"] = "cut off"
    first = prediction.predict_images(classifier, images, np.arange(90))
    other = first.copy()
    other[::3] = other[::3, ::-1]
    # Files of the same weights are not compared, so that the second is of other ones.
    second = copy.copy(classifier)
    second.card = replace(classifier.card, version="another")
    models = [
        ModelPredictions(classifier=classifier, probabilities=first),
        ModelPredictions(classifier=second, probabilities=other),
    ]
    selection = Selection(
        source=source,
        images=images,
        split="all images",
        indices=np.arange(90),
        reason="as asked",
        trained_on=trained_on,
    )
    found = []
    for count in (1, 2):
        found.append(tmp_path_factory.mktemp("evaluation"))
        write_evaluation(
            EvaluationReport(
                selection=selection,
                warnings=["a <i>warning"],
                models=models[:count],
                looks=None,
            ),
            found[-1],
        )
    return found[0], found[1]


def test_the_pages_open_offline_and_say_what_there_is_to_say(folders: tuple[Path, Path]) -> None:
    one, two = ((folder / "evaluation.html").read_text() for folder in folders)
    for text in (one, two):
        references = References()
        references.feed(text)
        assert references.found
        assert all(reference.startswith("data:") for reference in references.found)
        assert not {"script", "i"} & set(references.tags)
        assert "a &lt;i&gt;warning." in text
        assert "1 unreadable image was left out" in text
        assert "Every image is predicted correctly" in text
        assert len(text) < 3_000_000
    assert "A against B" not in one
    assert "A is better in accuracy, balanced accuracy, macro F1, ROC AUC and log loss." in two
    differing = json.loads((folders[1] / "evaluation.json").read_text())["comparison"]["labels_differ"]
    assert f"Their labels differ on {differing} images: only A is right on {differing}, only B on 0" in two
    assert two.count("<figure>") == min(differing, 24)


def test_names_cannot_write_html(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        text = (folder / "evaluation.json").read_text().replace("green leaf", "<script>").replace(".png", "<script>")
        pictures = {"confusion": "", "reliability": ""}
        curves = [{"roc": "", "precision_recall": ""}] * 3
        values = {
            "pictures": pictures,
            "curve_pictures": curves,
            "decided_on": "these",
            "held_for": "all",
            "mistakes": [],
        }
        filled = render("evaluation.html.jinja", **json.loads(text), **values, disputed=["x"])
        assert "&lt;script&gt;" in filled
        assert "<script>" not in filled


def test_the_summary_says_scores_and_places(folders: tuple[Path, Path]) -> None:
    one, two = map(evaluation_summary, folders)
    assert re.search(r"accuracy +1\.0000   0\.9\d\d to 1\.000", one)
    assert re.search(r"log loss +0\.\d{4}\n", one)
    assert re.search(r" A +B +B - A   95 % interval of B - A\n", two)
    assert re.search(r"\naccuracy +1\.0000 +0\.\d{4} +-0\.\d{4}   -0\.\d{3} to -0\.\d{3}\n", two)
    assert "sign-flip p" in two
    for folder, text in zip(folders, (one, two), strict=True):
        for name in ("evaluation.html", "evaluation.json", "predictions.csv"):
            assert str(folder / name) in text
