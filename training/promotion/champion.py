"""What `latest` serves: its file, its card and its answers to the test images of another model."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from jaxtyping import Int64

from serving.contract.card.model_card import METADATA_KEY, CardError, ModelCard
from serving.contract.decode import Digest
from serving.contract.files.names import MODEL, signature_of
from serving.contract.model import ModelRefused, open_model
from training.data.dataset import LabelledImages, training_division
from training.engine.runs import FORGOTTEN, HAS_LEARNED, LATEST, PREDICTIONS, REPORT_FACTS
from training.errors import DataError
from training.metrics.classification import Probabilities
from training.metrics.comparison import unshared
from training.models.prediction import predict_images
from training.promotion.rule import Champion, TestAnswers
from training.report.predictions import read_predictions
from training.storage import digest

UNSIGNED = "it is not signed, as what `latest` serves is: a service that asks for signatures would refuse it"


@dataclass(frozen=True, kw_only=True)
class ChampionFile:
    """The model file that `latest` leads to."""

    target: str
    """What the link says: mostly the name of a run beside it."""
    digest: Digest | None
    """SHA-256 of the file; None where there is none, so that nothing is served."""


class Incomparable(ValueError):
    """Two models without answers to the same images; the message says why."""


def find_champion_file(out: Path) -> ChampionFile | None:
    """What `latest` in `out` leads to; None without a link. Raises OSError."""
    link = out / LATEST
    if not link.is_symlink():
        return None
    file = link / MODEL
    return ChampionFile(target=str(link.readlink()), digest=digest(file) if file.is_file() else None)


def folder_faults(run: Path) -> tuple[str, ...]:
    """Why a run may not take the place of what `latest` beside it serves, whatever it answers."""
    faults: tuple[str, ...] = (HAS_LEARNED,) if (run / FORGOTTEN).exists() else ()
    served = run.parent / LATEST / MODEL
    if signature_of(served).is_file() and not signature_of(run / MODEL).is_file():
        faults += (UNSIGNED,)
    return faults


def find_champion(out: Path, answers: TestAnswers, images: LabelledImages | None) -> Champion | None:
    """What `latest` in `out` serves, with its answers to the images of `answers`; None if it serves nothing.

    Its own record is read where its run was scored on the same test split; else its file is run on the test split of
    `images`, if they are given. Raises OSError.
    """
    champion = find_champion_file(out)
    if champion is None or champion.digest is None:
        return None
    folder, version = (out / LATEST).resolve(), "unknown"
    try:
        card = card_of(folder / MODEL)
        version = card.version
        if answers.of_folds:
            raise Incomparable(
                "the scores are those of the folds' models, and no image is left to compare the new model itself on; "
                "--promote always moves `latest` to it"
            )
        probabilities = _recorded(folder, card, answers)
        learned_from = 0
        if probabilities is None:
            if images is None:
                raise Incomparable("it was scored on other test images, and no images are read here")
            test = images.splits["test"]
            probabilities = predict_images(open_model(folder / MODEL, threads=0), images, test)
            learned_from = _learned_from(images, test[~answers.leaks], card)
    except (Incomparable, ModelRefused, DataError) as error:
        return Champion(digest=champion.digest, version=version, probabilities=None, incomparable=str(error))
    return Champion(digest=champion.digest, version=version, probabilities=probabilities, learned_from=learned_from)


def scored_on(run: Path, card: ModelCard) -> Digest | None:
    """Digest of the test split on which a run's file was scored, as its report has it; None for older reports."""
    try:
        facts = json.loads((run / REPORT_FACTS).read_text(encoding="utf-8"))
        return Digest(facts["data"]["test_digest"]) if facts["card"]["version"] == card.version else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def card_of(path: Path) -> ModelCard:
    """The card of a model file alone, without opening the graph. Raises Incomparable, OSError."""
    try:
        metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        return ModelCard.from_json(metadata.get(METADATA_KEY, ""))
    except (DecodeError, CardError) as error:
        raise Incomparable(f"its file cannot be read ({error})") from error


def _recorded(folder: Path, card: ModelCard, answers: TestAnswers) -> Probabilities | None:
    """The answers that its run has recorded; None without those to these images. Raises Incomparable, OSError."""
    if set(card.classes) != set(answers.classes):
        ours, theirs = unshared(answers.classes, card.classes)
        raise Incomparable(f"other classes, only here: {ours}; only there: {theirs}")
    if scored_on(folder, card) != answers.digest:
        return None
    recorded = read_predictions(folder / PREDICTIONS, answers.classes)
    return recorded.of(answers.keys) if recorded else None


def _learned_from(images: LabelledImages, tested: Int64[np.ndarray, " _"], card: ModelCard) -> int:
    """The number of the images `tested` that a model was trained or chosen on; 0 also where its data was another."""
    division = training_division(images.image_set, card)
    if division is None:
        return 0
    return int(np.isin(tested, np.r_[division.splits["train"], division.splits["val"]]).sum())
