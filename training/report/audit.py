"""The report of an audit, and `python -m training audit`, which audits without training."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

import numpy as np
from scipy.stats import binomtest

from serving.contract.decode import Decoded
from serving.contract.formats.depth import SHIFTED
from serving.contract.formats.image_header import UPRIGHT
from training.data import formats
from training.data.audit import Audit
from training.data.cache import Cache
from training.data.dataset import divide_and_audit
from training.data.duplicates import Pair
from training.data.inspection.contents import inspect_files
from training.data.inspection.image_set import image_set
from training.data.sources.forgotten import Forgotten
from training.data.sources.source import NAMES_SHOWN, shortened
from training.data.splits import CONTRADICTION, SplitPolicy
from training.errors import DataError
from training.options.choices import Data, Leaks
from training.options.limits import Positive, Seed, check_limits, require
from training.options.rules import held_out
from training.report import html
from training.storage import kept_unless_empty

WIDE = 0.3
TYPICAL_RECALL = 0.8
EXAMPLES_OF_EACH = 6
SHEET = 8
CLASSES_SHOWN = 24


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Check for what falsifies scores: damaged files, duplicates, leaks between splits, contradictions, shortcuts."""

    data: Data | None = None
    """Images with labels, as for training."""
    corrections: Path | None = None
    """As for training."""
    leaks: Leaks = "drop"
    """As for training; error ends with exit code 3 if there is any leak."""
    val_fraction: Annotated[float, Positive] = 0.15
    """Share of the images held out for validation when the data brings no such split."""
    test_fraction: Annotated[float, Positive] = 0.15
    """Share of the images held out for the test when the data brings no such split."""
    seed: Annotated[int, Seed] = 0
    """Fixes the splits that are made."""
    cache: Path | None = None
    """Folder that keeps what is read from the images for the next time, such as runs/.cache, the one of training.
    None: nothing is kept."""
    out: Path | None = None
    """Folder for audit.json and audit.html. None: runs/audits/<date and time>."""

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option, the expected and the actual value."""
        check_limits(self, AuditConfig)
        require(*held_out(self.val_fraction, self.test_fraction))

    @property
    def split_policy(self) -> SplitPolicy:
        """The policy by which a training with these options divides the images."""
        return SplitPolicy(
            leaks=self.leaks, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
        )


def run_audit(config: AuditConfig) -> Path:
    """Audit without training and return the folder with audit.json and audit.html. Raises DataError, OSError."""
    out = config.out or Path("runs") / "audits" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    _make_writable(out)
    with kept_unless_empty(out):
        audited = _audited(config, out)
        facts = audit_facts(audited)
        (out / "audit.json").write_text(audit_json(facts), encoding="utf-8")
    values = {
        "audit": facts,
        "pairs": duplicate_examples(audited, audited.images.read),
        "sheets": class_sheets(audited, audited.images.read),
    }
    (out / "audit.html").write_text(html.render("audit.html.jinja", **values), encoding="utf-8")
    if audited.fault is not None:
        print(audit_summary(out))
        raise DataError(audited.fault)
    return out


def _make_writable(folder: Path) -> None:
    """Make the folder before any image is read: one that cannot be written to then costs no time. Raises OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({error.strerror}); --out names another place") from error


def _audited(config: AuditConfig, out: Path) -> Audit:
    cache = Cache(config.cache)
    source = formats.find_source(
        config.data, cache, [config.out or Path("runs")], config.corrections, Forgotten.of(out)
    )
    images = image_set(source, inspect_files(source, cache))
    return divide_and_audit(images, config.split_policy, cache)


def audit_summary(folder: Path) -> str:
    """The lines that an audit prints at its end, with the paths of its files."""
    facts = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    lines = [f"data   {facts['data']}: {facts['images']:,} images, {len(facts['classes'])} classes", audit_lines(facts)]
    if shortcut := facts["shortcut"]:
        lines.append(
            f"       Balanced accuracy from size, format and bytes alone: {shortcut['from_file']:.1%}; with the mean "
            f"colour: {shortcut['from_file_and_colour']:.1%}; by chance: {shortcut['chance']:.1%}."
        )
    lines += ["", f"report  {folder / 'audit.html'}", f"facts   {folder / 'audit.json'}"]
    return "\n".join(lines)


def audit_lines(facts: dict[str, Any]) -> str:
    """The facts of an audit in a few lines, for the console."""
    pairs, removed, unreadable = facts["duplicates"], len(facts["removed"]), facts["files"]["unreadable"]
    return "\n".join(
        (
            f"audit  {pairs['exact']:,} exact and {pairs['near']:,} near-duplicate pairs, {removed:,} images removed",
            *([f"       {depth_line(facts)}"] if facts["files"]["depth"]["images"] else []),
            *(f"       warning: {warning}" for warning in facts["warnings"]),
            *(f"       left out {key}: {reason}" for key, reason in list(unreadable.items())[:NAMES_SHOWN]),
        )
    )


def depth_line(facts: dict[str, Any]) -> str:
    """A sentence on the images of more than 8 bits and how they are shown."""
    files, depth = facts["files"], facts["files"]["depth"]
    images, readable, low, high = depth["images"], sum(files["formats"].values()), depth["low"], depth["high"]
    by = "the whole range" if (low, high) == (SHIFTED.low, SHIFTED.high) else "percentiles of the training split"
    return f"{images:,} of {readable:,} images have more than 8 bits: {low:,} to {high:,} become 0 to 255 ({by})."


def audit_warnings(audited: Audit) -> Iterator[str]:
    """Sentences on what to know before trusting a score."""
    unreadable, reasons = len(audited.images.unreadable), Counter(audited.division.removed.values())
    contradictory = reasons.pop(CONTRADICTION, 0)
    yield from audited.images.notes
    removed = reasons.total()
    if unreadable:
        yield f"{_images(unreadable)} cannot be read and {_were(unreadable)} left out."
    left = "" if audited.fault else "They stay in their splits, so the scores are too high."
    done = f"{_images(removed)} {_were(removed)} removed, never from the test split." if removed else left
    if pairs := len(audited.leaks):
        yield f"{pairs:,} pair{_s(pairs)} of images show one picture in two splits. {done}".strip()
    if groups := len(audited.parted_groups):
        yield f"{groups:,} group{_s(groups)} had images in two splits. {done}".strip()
    if pairs := len(audited.contradictions):
        what = "Neither image of such a pair is used, in any split." if contradictory else left
        yield f"{pairs:,} pair{_s(pairs)} of images show one picture under two labels. {what}".strip()
    if misnamed := len(audited.misnamed):
        yield f"{misnamed:,} file{_s(misnamed)} {_were(misnamed)} named as another format; the bytes decide."
    counts = audited.counts
    for split in ("val", "test"):
        if absent := [name for name, by_split in counts.items() if not by_split[split]]:
            yield f"The {split} split has no image of {shortened(absent)}: no score covers them."
        members = audited.division.components[audited.division.splits[split]]
        if (largest := int(np.bincount(members).max(initial=0))) > max(1, len(members) / 2):
            yield f"{largest:,} of the {_images(len(members))} of the {split} split are one group: scores rest on it."
    small = [(tested, name) for name, by_split in counts.items() if (tested := by_split["test"]) and _is_wide(tested)]
    if small:
        fewest, name = min(small)
        low, high = recall_interval(fewest)
        yield (
            f"{len(small)} of {len(counts)} classes have too few test images for a precise recall: with "
            f"{_images(fewest)} of {name}, the 95 % interval of a recall of {TYPICAL_RECALL:.0%} "
            f"is {low:.0%} to {high:.0%}."
        )


def duplicate_examples(audited: Audit, original: Callable[[int], Decoded]) -> list[dict[str, Any]]:
    """Duplicates as a page shows them: up to six each with two labels, in two splits, near and exact."""
    of_each = [audited.contradictions, audited.leaks]
    of_each += [[pair for pair in audited.images.duplicates.pairs if pair.kind == kind] for kind in ("near", "exact")]
    chosen: dict[Pair, None] = {}
    for pairs in of_each:
        chosen |= dict.fromkeys([pair for pair in pairs if pair not in chosen][:EXAMPLES_OF_EACH])
    return [
        {
            "what": pair.change or ("same pixels" if pair.kind == "exact" else "nearly the same"),
            "similarity": pair.similarity,
            "images": [
                {
                    "picture": html.thumbnail(original(i)),
                    "key": audited.images.keys[i],
                    "label": audited.images.classes[audited.images.labels[i]],
                    "split": audited.division.assigned[i],
                    "removed": audited.division.removed.get(i),
                }
                for i in (pair.first, pair.second)
            ],
        }
        for pair in chosen
    ]


def class_sheets(audited: Audit, original: Callable[[int], Decoded]) -> list[dict[str, Any]]:
    """Up to eight training images of each of the first 24 classes, evenly spread over those of the class."""
    train = audited.division.splits["train"]
    shown = []
    for label, name in enumerate(audited.images.classes[:CLASSES_SHOWN]):
        of_class = train[audited.images.labels[train] == label]
        count = min(SHEET, len(of_class))
        chosen = of_class[np.arange(count) * len(of_class) // max(count, 1)]
        pictures = [{"picture": html.thumbnail(original(int(i))), "key": audited.images.keys[i]} for i in chosen]
        shown.append({"name": name, "images": pictures})
    return shown


def audit_json(facts: dict[str, Any]) -> str:
    """The content of audit.json."""
    return json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False)


def recall_interval(support: int) -> tuple[float, float]:
    """The 95 % interval (Wilson 1927) of a recall of 80 % that was measured on `support` images."""
    interval = binomtest(round(TYPICAL_RECALL * support), support).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def audit_facts(audited: Audit) -> dict[str, Any]:
    """The facts of an audit: what audit.json holds and what its pages are filled with."""
    keys, assigned = audited.images.keys, audited.division.assigned
    return {
        "data": audited.images.name,
        "fault": audited.fault,
        "warnings": list(audit_warnings(audited)),
        "images": len(keys) + len(audited.images.unreadable),
        "files": _file_facts(audited),
        "classes": _class_facts(audited),
        "duplicates": _duplicate_facts(audited),
        "groups_in_two_splits": audited.parted_groups,
        "removed": [
            {"image": keys[i], "split": assigned[i], "why": why} for i, why in audited.division.removed.items()
        ],
        "shortcut": audited.baseline and asdict(audited.baseline),
    }


def _file_facts(audited: Audit) -> dict[str, Any]:
    sides = {
        name: np.array([getattr(file, name) for file in audited.images.files]) for name in ("width", "height", "bytes")
    }
    return {
        "unreadable": audited.images.unreadable,
        "misnamed": audited.misnamed,
        "ignored": audited.images.ignored,
        "formats": Counter(file.format for file in audited.images.files),
        "modes": Counter(file.mode for file in audited.images.files),
        "depth": {"images": len(audited.images.deep)} | asdict(audited.images.depth),
        "not_upright": sum(file.orientation != UPRIGHT for file in audited.images.files),
        **{name: _spread(values) for name, values in sides.items()},
    }


def _class_facts(audited: Audit) -> list[dict[str, Any]]:
    return [
        {"name": name} | counts | {"recall_interval": recall_interval(counts["test"]) if counts["test"] else None}
        for name, counts in audited.counts.items()
    ]


def _duplicate_facts(audited: Audit) -> dict[str, Any]:
    pairs, assigned = audited.images.duplicates.pairs, audited.division.assigned
    return {
        "least_similarity": audited.images.duplicates.least_similarity,
        "pairs": [
            {
                "images": [audited.images.keys[i] for i in (pair.first, pair.second)],
                "splits": [assigned[i] for i in (pair.first, pair.second)],
                "labels": [audited.images.classes[audited.images.labels[i]] for i in (pair.first, pair.second)],
                "kind": pair.kind,
                "change": pair.change,
                "similarity": round(pair.similarity, 4),
            }
            for pair in pairs
        ],
        "exact": sum(pair.kind == "exact" for pair in pairs),
        "near": sum(pair.kind == "near" for pair in pairs),
        "in_two_splits": len(audited.leaks),
        "under_two_labels": len(audited.contradictions),
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
