"""What a text file is without some names: rows of tables, records of JSON, names in sentences and logs."""

import csv
import json
import re
from collections import Counter
from typing import Any

from training.forgetting.names import Names

Counts = Counter[str]
"""How much was taken away, by what it is in the plural."""
GROUPS = "groups_in_two_splits"
"""Entry of audit.json whose keys are groups."""
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_STYLES: tuple[dict[str, Any], ...] = (
    {"indent": 1, "ensure_ascii": False},
    {"ensure_ascii": False},
    {"ensure_ascii": False, "separators": (",", ":")},
    {},
)
"""How this program writes JSON: a file is written again as it was."""


def without_names(suffix: str, text: str, names: Names) -> tuple[str, Counts]:
    """The text of a file with this suffix without these names, and what was taken away."""
    if suffix == ".json":
        return _json(text, names)
    if suffix == ".jsonl":
        return _json_lines(text, names)
    if suffix == ".csv" and text in names:
        return _table(text, names)
    return sentences(text, names)


def sentences(text: str, names: Names) -> tuple[str, Counts]:
    """The text with `REMOVED` in the place of each name: a log keeps its lines."""
    replaced, count = names.replaced(text)
    return replaced, Counter({"names": count}) if count else Counter()


def _table(text: str, names: Names) -> tuple[str, Counts]:
    """Without the rows that have a name in a column; the others keep their bytes."""
    lines = _LINE.findall(text)
    reader = csv.reader(iter(lines))
    kept, begin, counts = list[str](), 0, Counts()
    try:
        for row in reader:
            if any(cell in names.exact for cell in row):
                counts["rows"] += 1
            else:
                kept += lines[begin : reader.line_num]
            begin = reader.line_num
    except csv.Error:
        return sentences(text, names)
    rest, others = sentences("".join(kept), names)
    return rest, counts + others


def _json(text: str, names: Names) -> tuple[str, Counts]:
    try:
        value = json.loads(text)
    except ValueError:
        return sentences(text, names)
    counts = Counts()
    kept = _kept(value, names, counts)
    counts = +counts
    if not counts:
        return text, counts
    body = text.rstrip("\n")
    style = next((style for style in _STYLES if json.dumps(value, **style) == body), _STYLES[0])
    return json.dumps(kept, **style) + text[len(body) :], counts


def _json_lines(text: str, names: Names) -> tuple[str, Counts]:
    """Each line as a record of its own, which stays: what follows from a log may depend on the number of its lines."""
    lines, counts = [], Counts()
    for line in _LINE.findall(text):
        kept, removed = _json(line, names)
        lines.append(kept)
        counts += removed
    return "".join(lines), counts


def _kept(value: Any, names: Names, counts: Counts) -> Any:
    """The value without the items of lists that are about a name; a name elsewhere is replaced."""
    if isinstance(value, list):
        about = [_is_about(item, names) for item in value]
        counts["records"] += sum(about)
        return [_kept(item, names, counts) for item, gone in zip(value, about, strict=True) if not gone]
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            if key in names:
                counts["records"] += 1
            elif key == GROUPS and isinstance(item, dict):
                remaining = {name: sizes for name, sizes in item.items() if f"group {name}" not in names}
                counts["records"] += len(item) - len(remaining)
                kept[key] = remaining
            else:
                kept[key] = _kept(item, names, counts)
        return kept
    if isinstance(value, str):
        replaced, count = names.replaced(value)
        counts["names"] += count
        return replaced
    return value


def _is_about(item: Any, names: Names) -> bool:
    """Whether an item of a list has a name, other than in a list of records of its own."""
    if isinstance(item, dict):
        return any(key in names or _is_about(value, names) for key, value in item.items() if not _is_records(value))
    if isinstance(item, list):
        return not _is_records(item) and any(_is_about(part, names) for part in item)
    return item in names


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) for part in value)
