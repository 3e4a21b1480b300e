"""`python -m training robustness`: the scores of a model on changed images, from `robustness` down."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Int64
from tqdm import tqdm

from serving.contract.decode import Decoded
from serving.contract.formats.depth import Depth
from serving.contract.model import Classifier, open_model
from training.data.dataset import LabelledImages
from training.data.selection import Wanted, select
from training.engine import runs
from training.models.prediction import fitted_batches, predict_images
from training.options.choices import Data
from training.options.limits import NotNegative, Share, check_limits
from training.robustness.changes import DRIFTS, PROBES, Change
from training.robustness.decisive import answers_without_regions
from training.robustness.drift_limits import distances, feature_rows
from training.robustness.report import EXAMPLES, AnswersUnderChange, RobustnessReport, write_robustness


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """Ask a model about changed images: how far may camera, light and network drift, and does it look at the object?

    Ten changes of five strengths and four that hide a part, applied to the images before they are resized; then each
    image without the quarter on which its answer depends the most. It takes as long as 54 evaluations of the same
    images, and 67 predictions of each image.
    """

    run: tyro.conf.Positional[Path]
    """The model: a run's folder, or an .onnx file."""
    data: Data | None = None
    """Images with labels, in one of the formats of training. None: the digits."""
    corrections: Path | None = None
    """As for evaluate."""
    split: Wanted | None = None
    """Images to change. None: as for evaluate, the test split where there is one."""
    margin: Annotated[float, Share] = 0.02
    """The loss of balanced accuracy up to which a drift counts as harmless, if its 95 % interval excludes a larger
    one."""
    seed: Annotated[int, NotNegative] = 0
    """Fixes the noise, the side to which an image is turned, and the places of patches."""
    cache: Path | None = None
    """As for evaluate."""
    out: Path | None = None
    """Folder for robustness.html and robustness.json, which must not exist yet. None: robustness/<date, time> beside
    the model."""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option, the expected and the actual value."""
        check_limits(self, RobustnessConfig)


def robustness(config: RobustnessConfig) -> Path:
    """Predict the images as they are and changed, write the page and return its folder.

    Raises ModelRefused, ConfigError, DataError, OSError.
    """
    path = runs.model_file(config.run)
    classifier = open_model(path, threads=0)
    with runs.results_folder(config.out, path.parent / "robustness" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}") as folder:
        selection = select(config, [classifier.card], path, folder)
        images, indices = selection.images, selection.indices
        print(selection.line)
        warnings = [f"{sentence}." for sentence in selection.learned_from([path])]
        for warning in warnings:
            print(f"warning: {warning}")
        steps = [(change, strength) for change in (*DRIFTS, *PROBES) for strength in change.strengths]
        plain = predict_images(classifier, images, indices)
        answers = []
        for change, strength in tqdm(steps, "changes", unit=" changes", disable=None):
            shown = changed(images, change, strength, classifier.card.preprocessing.depth, config.seed)
            answers.append(answered(classifier, shown, indices, change, strength))
        examples = indices[:: max(1, len(indices) // EXAMPLES)][:EXAMPLES].tolist()
        report = RobustnessReport(
            model=path,
            card=classifier.card,
            images=images,
            split=selection.split,
            indices=indices,
            plain=plain,
            answers=answers,
            examples=examples,
            without=answers_without_regions(classifier, images, indices, examples, config.seed),
            margin=config.margin,
            seed=config.seed,
            warnings=warnings,
        )
        write_robustness(report, folder)
    return folder


def answered(
    classifier: Classifier, shown: LabelledImages, indices: Int64[np.ndarray, " _"], change: Change, strength: float
) -> AnswersUnderChange:
    """The answers to changed images, and how far these are from the card's reference."""
    batches, rows = [], []
    for batch in fitted_batches(classifier.card, shown, indices):
        batches.append(classifier.predict(batch))
        rows.append(feature_rows(batch, batches[-1]))
    probabilities = np.concatenate(batches)
    return AnswersUnderChange(
        change=change.name,
        strength=strength,
        probabilities=probabilities[:, [classifier.card.classes.index(name) for name in shown.classes]],
        stability=distances(classifier.card.reference, np.concatenate(rows)),
    )


def changed(images: LabelledImages, change: Change, strength: float, depth: Depth, seed: int) -> LabelledImages:
    """The images, each changed after it is decoded. What is drawn depends on the seed and on the image alone."""
    original = replace(images.image_set, depth=depth)

    def read(index: int) -> Decoded:
        return change.apply(original.read(index), strength, np.random.default_rng((seed, index)))

    return replace(images, image_set=replace(images.image_set, raw=read))
