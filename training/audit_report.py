"""An audit in words and numbers: warnings in plain sentences, audit.json."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import binomtest

from serving.contract import UPRIGHT
from training.audit import Audit
from training.sources import NAMES_SHOWN

WIDE = 0.3
TYPICAL_RECALL = 0.8


def summary(audited: Audit) -> str:
    """What was found, for the console."""
    kinds = Counter(pair.kind for pair in audited.duplicates.pairs)
    removed = len(audited.division.removed)
    lines = [
        f"audit  {kinds['exact']:,} exact and {kinds['near']:,} near-duplicate pairs, {removed:,} images taken out"
    ]
    lines += [f"       warning: {warning}" for warning in warnings(audited)]
    lines += [f"       left out {key}: {reason}" for key, reason in list(audited.unreadable.items())[:NAMES_SHOWN]]
    return "\n".join(lines)


def warnings(audited: Audit) -> Iterator[str]:
    """What a person must know before trusting a score, in plain sentences."""
    unreadable, removed = len(audited.unreadable), len(audited.division.removed)
    if unreadable:
        yield f"{_images(unreadable)} cannot be read and {_were(unreadable)} left out."
    left = "They stay where they are (--leaks warn), so the scores flatter the model."
    done = f"{_images(removed)} {_were(removed)} taken out, never from the test split." if removed else left
    if pairs := len(audited.leaks):
        yield f"{pairs:,} pair{_s(pairs)} of images show one picture in two splits. {done}"
    if groups := len(audited.parted_groups):
        yield f"{groups:,} group{_s(groups)} had images in two splits. {done}"
    if pairs := len(audited.contradictions):
        what = left if not removed else "Neither image of such a pair is used, in any split."
        yield f"{pairs:,} pair{_s(pairs)} of images show one picture under two labels. {what}"
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
            f"{fewest} images of {name}, a recall of {TYPICAL_RECALL:.0%} would mean {low:.0%} to {high:.0%}."
        )


def recall_interval(support: int) -> tuple[float, float]:
    """The 95 % interval (Wilson 1927) of a recall of 80 % that was measured on `support` images."""
    interval = binomtest(round(TYPICAL_RECALL * support), support).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def facts(audited: Audit) -> dict[str, Any]:
    """What audit.json holds."""
    read, keys, found_in = audited.files, audited.keys, audited.division.found_in
    sides = {name: np.array([getattr(file, name) for file in read]) for name in ("width", "height", "bytes")}
    return {
        "data": audited.name,
        "fault": audited.fault,
        "warnings": list(warnings(audited)),
        "images": len(keys) + len(audited.unreadable),
        "files": {
            "unreadable": audited.unreadable,
            "misnamed": audited.misnamed,
            "ignored": audited.ignored,
            "formats": Counter(file.format for file in read),
            "modes": Counter(file.mode for file in read),
            "not_upright": sum(file.orientation != UPRIGHT for file in read),
            **{name: _spread(values) for name, values in sides.items()},
        },
        "classes": [
            {"name": name, **found, "recall_interval": recall_interval(found["test"]) if found["test"] else None}
            for name, found in audited.counts.items()
        ],
        "duplicates": {
            "least_similarity": audited.duplicates.least_similarity,
            "pairs": [
                {
                    "images": [keys[i] for i in (pair.first, pair.second)],
                    "splits": [found_in[i] for i in (pair.first, pair.second)],
                    "labels": [audited.classes[audited.labels[i]] for i in (pair.first, pair.second)],
                    "kind": pair.kind,
                    "change": pair.change,
                    "similarity": round(pair.similarity, 4),
                }
                for pair in audited.duplicates.pairs
            ],
            "exact": sum(pair.kind == "exact" for pair in audited.duplicates.pairs),
            "near": sum(pair.kind == "near" for pair in audited.duplicates.pairs),
            "in_two_splits": len(audited.leaks),
            "under_two_labels": len(audited.contradictions),
        },
        "groups_in_two_splits": audited.parted_groups,
        "removed": [
            {"image": keys[i], "split": found_in[i], "why": why} for i, why in audited.division.removed.items()
        ],
        "shortcut": audited.shortcut and asdict(audited.shortcut),
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
