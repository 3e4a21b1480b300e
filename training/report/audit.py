"""An audit in words, numbers and pictures; and `python -m training audit`, which makes one and trains nothing."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from serving.contract.decode import Decoded
from serving.contract.image_header import UPRIGHT
from training.config import Leaks
from training.data import formats, inspection
from training.data.audit import Audit
from training.data.cache import Cache
from training.data.dataset import divide_and_audit
from training.data.duplicates import Pair
from training.data.formats import NAMES_SHOWN
from training.data.splits import CONTRADICTION, SplitPolicy
from training.errors import DataError
from training.report import html as page

WIDE = 0.3
TYPICAL_RECALL = 0.8
EXAMPLES_OF_EACH = 6
SHEET = 8
CLASSES_SHOWN = 24


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Look for what makes scores lie: damaged files, duplicates, leaks between splits, contradictions, shortcuts."""

    data: Path | None = None
    """Images with labels, as for training."""
    leaks: Leaks = "drop"
    """As for training; error ends with exit code 3 when anything is found."""
    val_fraction: float = 0.15
    """Share of the images held out for validation when the data brings no such split."""
    test_fraction: float = 0.15
    """Share of the images held out for the test when the data brings no such split."""
    seed: int = 0
    """Fixes the splits that are made."""
    cache: Path | None = None
    """Folder in which what was found in the images is kept for the next time, such as runs/.cache, where training keeps
    it. None: nothing is kept."""
    out: Path | None = None
    """Folder for audit.json and audit.html. None: runs/audits/ and the time."""

    @property
    def split_policy(self) -> SplitPolicy:
        """The policy by which a training with these options divides the images."""
        return SplitPolicy(
            leaks=self.leaks, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
        )


def run(config: AuditConfig) -> Path:
    """Audit without training and return the folder with audit.json and audit.html. Raises DataError, OSError."""
    out = config.out or Path("runs") / "audits" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    cache = Cache(config.cache)
    source = formats.find(config.data, cache)
    images = inspection.image_set(source, inspection.inspect_files(source, cache))
    audited = divide_and_audit(images, config.split_policy, cache)
    values = facts(audited)
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_text(to_json(values), encoding="utf-8")
    shown = {"audit": values, "pairs": examples(audited, images.read), "sheets": sheets(audited, images.read)}
    (out / "audit.html").write_text(page.render("audit.html.jinja", **shown), encoding="utf-8")
    if audited.fault is not None:
        print(summary(out))
        raise DataError(audited.fault)
    return out


def summary(folder: Path) -> str:
    """What an audit found and where to read of it, for the console."""
    found = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    shortcut = found["shortcut"]
    told = shortcut and (
        f"Balanced accuracy from size, format and bytes alone: {shortcut['from_file']:.1%}; with the mean colour: "
        f"{shortcut['from_file_and_colour']:.1%}; by chance: {shortcut['chance']:.1%}."
    )
    return "\n".join(
        (
            f"data   {found['data']}: {found['images']:,} images, {len(found['classes'])} classes",
            console(found),
            *([f"       {told}"] if told else []),
            "",
            f"report  {folder / 'audit.html'}",
            f"facts   {folder / 'audit.json'}",
        )
    )


def console(found: dict[str, Any]) -> str:
    """What `facts` tells, in a few lines."""
    pairs, removed, unreadable = found["duplicates"], len(found["removed"]), found["files"]["unreadable"]
    return "\n".join(
        (
            f"audit  {pairs['exact']:,} exact and {pairs['near']:,} near-duplicate pairs, {removed:,} images taken out",
            *(f"       warning: {warning}" for warning in found["warnings"]),
            *(f"       left out {key}: {reason}" for key, reason in list(unreadable.items())[:NAMES_SHOWN]),
        )
    )


def warnings(audited: Audit) -> Iterator[str]:
    """What a person must know before trusting a score, in plain sentences."""
    unreadable, reasons = len(audited.images.unreadable), Counter(audited.division.removed.values())
    contradictory = reasons.pop(CONTRADICTION, 0)
    removed = reasons.total()
    if unreadable:
        yield f"{_images(unreadable)} cannot be read and {_were(unreadable)} left out."
    left = "" if audited.fault else "They stay where they are, so the scores flatter the model."
    done = f"{_images(removed)} {_were(removed)} taken out, never from the test split." if removed else left
    if pairs := len(audited.leaks):
        yield f"{pairs:,} pair{_s(pairs)} of images show one picture in two splits. {done}".strip()
    if groups := len(audited.parted_groups):
        yield f"{groups:,} group{_s(groups)} had images in two splits. {done}".strip()
    if pairs := len(audited.contradictions):
        what = "Neither image of such a pair is used, in any split." if contradictory else left
        yield f"{pairs:,} pair{_s(pairs)} of images show one picture under two labels. {what}".strip()
    if misnamed := len(audited.misnamed):
        yield f"{misnamed:,} file{_s(misnamed)} {_were(misnamed)} of another format than named; the bytes decide."
    counts = audited.counts
    for split in ("val", "test"):
        if absent := [name for name, found in counts.items() if not found[split]]:
            yield f"The {split} split has no image of {', '.join(absent)}: no score says anything of them."
    small = [(found["test"], name) for name, found in counts.items() if found["test"] > 0 and _is_wide(found["test"])]
    if small:
        fewest, name = min(small)
        low, high = recall_interval(fewest)
        yield (
            f"{len(small)} of {len(counts)} classes have so few test images that little can be said of them: of "
            f"{_images(fewest)} of {name}, a recall of {TYPICAL_RECALL:.0%} would mean {low:.0%} to {high:.0%}."
        )


def examples(audited: Audit, original: Callable[[int], Decoded]) -> list[dict[str, Any]]:
    """Pairs as a page shows them: those under two labels, those in two splits, then some of the rest."""
    images = audited.images
    of_each = [audited.contradictions, audited.leaks]
    of_each += [[pair for pair in images.duplicates.pairs if pair.kind == kind] for kind in ("near", "exact")]
    chosen: dict[Pair, None] = {}
    for pairs in of_each:
        chosen |= dict.fromkeys([pair for pair in pairs if pair not in chosen][:EXAMPLES_OF_EACH])
    return [
        {
            "what": pair.change or ("same pixels" if pair.kind == "exact" else "nearly the same"),
            "similarity": pair.similarity,
            "images": [
                {
                    "picture": page.thumbnail(original(i)),
                    "key": images.keys[i],
                    "label": images.classes[images.labels[i]],
                    "split": audited.division.assigned[i],
                    "removed": audited.division.removed.get(i),
                }
                for i in (pair.first, pair.second)
            ],
        }
        for pair in chosen
    ]


def sheets(audited: Audit, original: Callable[[int], Decoded]) -> list[dict[str, Any]]:
    """Eight training images of each of the first 24 classes, evenly over what there is."""
    images, train = audited.images, audited.division.splits["train"]
    shown = []
    for label, name in enumerate(images.classes[:CLASSES_SHOWN]):
        mine = train[images.labels[train] == label]
        some = mine[np.arange(min(SHEET, len(mine))) * len(mine) // max(min(SHEET, len(mine)), 1)]
        pictures = [{"picture": page.thumbnail(original(int(i))), "key": images.keys[i]} for i in some]
        shown.append({"name": name, "images": pictures})
    return shown


def to_json(found: dict[str, Any]) -> str:
    """What `facts` gives, as audit.json holds it."""
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False)


def recall_interval(support: int) -> tuple[float, float]:
    """The 95 % interval (Wilson 1927) of a recall of 80 % that was measured on `support` images."""
    interval = binomtest(round(TYPICAL_RECALL * support), support).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def facts(audited: Audit) -> dict[str, Any]:
    """What audit.json holds."""
    images, keys, assigned = audited.images, audited.images.keys, audited.division.assigned
    sides = {name: np.array([getattr(file, name) for file in images.files]) for name in ("width", "height", "bytes")}
    return {
        "data": images.name,
        "fault": audited.fault,
        "warnings": list(warnings(audited)),
        "images": len(keys) + len(images.unreadable),
        "files": {
            "unreadable": images.unreadable,
            "misnamed": audited.misnamed,
            "ignored": images.ignored,
            "formats": Counter(file.format for file in images.files),
            "modes": Counter(file.mode for file in images.files),
            "not_upright": sum(file.orientation != UPRIGHT for file in images.files),
            **{name: _spread(values) for name, values in sides.items()},
        },
        "classes": [
            {"name": name, **found, "recall_interval": recall_interval(found["test"]) if found["test"] else None}
            for name, found in audited.counts.items()
        ],
        "duplicates": {
            "least_similarity": images.duplicates.least_similarity,
            "pairs": [
                {
                    "images": [keys[i] for i in (pair.first, pair.second)],
                    "splits": [assigned[i] for i in (pair.first, pair.second)],
                    "labels": [images.classes[images.labels[i]] for i in (pair.first, pair.second)],
                    "kind": pair.kind,
                    "change": pair.change,
                    "similarity": round(pair.similarity, 4),
                }
                for pair in images.duplicates.pairs
            ],
            "exact": sum(pair.kind == "exact" for pair in images.duplicates.pairs),
            "near": sum(pair.kind == "near" for pair in images.duplicates.pairs),
            "in_two_splits": len(audited.leaks),
            "under_two_labels": len(audited.contradictions),
        },
        "groups_in_two_splits": audited.parted_groups,
        "removed": [
            {"image": keys[i], "split": assigned[i], "why": why} for i, why in audited.division.removed.items()
        ],
        "shortcut": audited.baseline and asdict(audited.baseline),
    }


def _spread(values: np.ndarray) -> dict[str, int]:
    return {name: int(getattr(np, name)(values)) for name in ("min", "median", "max")} if len(values) else {}


def _is_wide(support: int) -> bool:
    low, high = recall_interval(support)
    return high - low > WIDE


def _images(count: int) -> str:
    return f"{count:,} image{_s(count)}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
