"""Runs that had a person's images: in which of their splits, and whose weights therefore depend on them."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from serving.contract.decode import Digest
from serving.contract.files.names import MODEL
from serving.contract.formats.image_header import ImageError
from serving.contract.model import ModelRefused
from training.data.dataset import training_division
from training.data.formats import DIGITS
from training.data.inspection.image_file import read_image
from training.data.inspection.image_set import ImageSet
from training.data.sources.source import SPLITS, Split
from training.data.splits import Division
from training.engine import history, runs
from training.errors import ConfigError
from training.forgetting.person import Person
from training.promotion.champion import Incomparable, card_of
from training.report.predictions import keys_in
from training.storage import write_atomically

NOTE = "Its weights depend on images that were forgotten. `python -m training forget` says more."
SAMPLE = 20
"""Images by which a copy of the data is recognised."""
ABOUT = ("config.yaml", "options.yaml", "audit.json", "evaluation.json", "robustness.json", "folds.json")
"""Files that say of which data the others in their folder are."""


@dataclass(frozen=True, kw_only=True)
class Dependent:
    """A run that had images of the person."""

    run: Path
    splits: frozenset[Split]
    """The splits that held them."""
    known: bool = True
    """False where the data is another by now, so that these are all splits that may have held them."""
    started_from: Path | None = None
    """The run of --init-from, which is one of these."""

    @property
    def depends(self) -> bool:
        """Whether its weights do: training images made them, validation images chose the epoch."""
        return bool(self.splits & {"train", "val"}) or self.started_from is not None

    @property
    def sentence(self) -> str:
        """What is said of it."""
        if self.depends and not self.known:
            return "its weights depend on them, as far as is known: the data is not what it was trained on any more"
        if self.splits & {"train", "val"}:
            return f"its weights depend on them ({', '.join(split for split in SPLITS if split in self.splits)})"
        if self.started_from:
            return f"its weights depend on them, as it started from {self.started_from}"
        return "its weights do not depend on them: they were test images"


def dependents(folders: list[Path], person: Person) -> list[Dependent]:
    """The runs among `folders` that had images of the person, those that others started from first."""
    holders = {one.run: one for run in folders if (one := _holds(run, person)) is not None}
    parents = {run: _parent(run, folders) for run in folders}
    ordered: dict[Path, Dependent] = {}

    def add(run: Path) -> None:
        parent = parents[run]
        if parent is not None and parent not in ordered:
            add(parent)
        origin = ordered.get(parent) if parent else None
        started_from = parent if origin is not None and origin.depends else None
        holder = holders.get(run)
        if holder is not None or started_from is not None:
            ordered[run] = replace(holder or Dependent(run=run, splits=frozenset()), started_from=started_from)

    for run in folders:
        if run not in ordered:
            add(run)
    return list(ordered.values())


def mark(run: Path) -> None:
    """Leave the file `FORGOTTEN` in a run, for which promotion refuses it. Raises OSError."""
    facts = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "note": NOTE}
    write_atomically(run / runs.FORGOTTEN, lambda file: file.write(json.dumps(facts, indent=1).encode()))


def of_other_data(folder: Path, out: Path, person: Person) -> bool:
    """Whether what is in a folder is of other data, in which the same name is another image.

    Not where that cannot be known: data that is not there any more may be the same, in another place.
    """
    for place in (folder, *folder.parents):
        data = next((source for name in ABOUT if (source := _data(place / name)) is not None), None)
        if data is not None:
            return _is_other(data, place, person)
        if place == out:
            break
    return False


def _holds(run: Path, person: Person) -> Dependent | None:
    """What a run held of the person; None for nothing, and for other data."""
    if of_other_data(run, run, person) or not person.keys:
        return None
    trained_on = _trained_on(run, person)
    if trained_on is None:
        tested = set(person.keys) <= keys_in(run / runs.PREDICTIONS)
        return Dependent(run=run, splits=frozenset({"test"}) if tested else frozenset(SPLITS), known=False)
    images, division = trained_on
    theirs = np.flatnonzero(np.isin(images.keys, person.present))
    splits = frozenset(split for split, members in division.splits.items() if np.isin(members, theirs).any())
    return Dependent(run=run, splits=splits) if splits else None


def _trained_on(run: Path, person: Person) -> tuple[ImageSet, Division] | None:
    """The data of a run, as it is or without what was forgotten before, divided as then; None where it is another."""
    with suppress(Incomparable, ModelRefused, OSError):  # no model yet, or of another version
        card = card_of(run / MODEL)
        for images in (person.all_images, person.images_of_later_runs):
            if images is not None and (division := training_division(images, card)) is not None:
                return images, division
    return None


def _parent(run: Path, others: list[Path]) -> Path | None:
    """The one of the others whose weights a run started from."""
    try:
        start = runs.load_config(run).init_from
    except ConfigError:  # a run of another version
        return None
    if start is None:
        return None
    places = history.places(start)
    return next((other for other in others if other != run and other.resolve() in places), None)


def _data(path: Path) -> str | None:
    """Which data a file is about, by the name of its source; None where it does not say."""
    try:
        text = path.read_text(encoding="utf-8")
        facts: Any = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(facts, dict) or "data" not in facts:
        return None
    data = facts["data"]
    return str((data.get("name") if isinstance(data, dict) else data) or DIGITS)


def _is_other(data: str, folder: Path, person: Person) -> bool:
    """Whether the data of this name is other data, by where it is, by its images or by those answered in a folder."""
    name, place = person.all_images.name, Path(data)
    if data == name:
        return False
    if DIGITS in (data, name):
        return True
    if place.exists() and person.root is not None:
        root = place if place.is_dir() else place.parent
        return not any(_digest(root / key) == digest for key, digest in _sample(person))
    answered = keys_in(folder / runs.PREDICTIONS)
    if answered:
        return not answered <= {*person.all_images.keys, *person.keys}  # a copy of the data has no others
    return "://" in f"{data} {name}" or (place.exists() and place.resolve() != Path(name).resolve())


def _sample(person: Person) -> list[tuple[str, Digest]]:
    """Name and digest of each of the person's images, and of some of all others."""
    images = person.all_images
    theirs = np.flatnonzero(np.isin(images.keys, person.present))
    others = np.linspace(0, len(images.keys) - 1, min(SAMPLE, len(images.keys)), dtype=int)
    return [(images.keys[index], images.files[index].digest) for index in np.r_[theirs, others]]


def _digest(path: Path) -> Digest | None:
    """Digest of the pixels of an image file; None where there is none."""
    try:
        return read_image(path.read_bytes())[0].digest
    except (ImageError, OSError):
        return None
