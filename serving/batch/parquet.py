"""The table as Parquet: probabilities are numbers, decisions truth values, a prediction set a list, empty is null."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

ROW_GROUP = 10_000
"""Rows that are in memory at once."""


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows of text cells. Needs the extra `parquet`."""
    import pyarrow  # noqa: PLC0415 (an extra, which only this needs)
    from pyarrow import parquet  # noqa: PLC0415

    types = {"prediction_set": pyarrow.list_(pyarrow.string()), "unfamiliar": pyarrow.bool_()}
    types |= dict.fromkeys(("confidence", "novelty"), pyarrow.float32())
    types |= {name: pyarrow.float32() for name in columns if name.startswith("p_")}
    types |= {name: pyarrow.bool_() for name in columns if name.startswith("decision_")}
    schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in columns])
    values: Iterator[dict[str, object]] = (
        {name: _value(name, cell) for name, cell in zip(columns, row, strict=True)} for row in rows
    )
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(values, ROW_GROUP)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(group, schema))


def _value(name: str, cell: str) -> object:
    if cell == "":
        return None
    if name == "prediction_set":
        return json.loads(cell)
    if name == "unfamiliar" or name.startswith("decision_"):
        return cell == "true"
    if name in ("confidence", "novelty") or name.startswith("p_"):
        return float(cell)
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
