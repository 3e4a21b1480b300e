"""The command: `python -m serving.batch FOLDER|MANIFEST --out predictions.csv`."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

from serving.batch.parts import Busy
from serving.batch.scoring import score
from serving.contract.model import ModelRefused
from serving.cores import available_cores
from serving.settings import Settings

DONE, USAGE, SOME_FAILED, STORAGE, REFUSED = 0, 2, 3, 6, 7


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.batch",
        description="Answer every image of a folder or of a manifest as the service would, into one table.",
        epilog="Stopped or killed, the same command goes on where it was. Limits and the default model are the "
        "service's settings (TWINLENS_...). Exit codes: 0 done; 2 usage; 3 done, but some files could not be answered, "
        "and column `error` says why; 6 storage; 7 the model was refused; 130 stopped.",
    )
    parser.add_argument("source", type=Path, help="a folder, a CSV with a column path, or a text of a path a line")
    parser.add_argument("--out", type=Path, required=True, help="the table to write, .csv or .parquet")
    parser.add_argument("--model", type=Path, help="the model file (default: TWINLENS_MODEL, runs/latest/model.onnx)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    given = parser.parse_args(arguments)
    if given.out.suffix not in (".csv", ".parquet"):
        parser.error(f"--out {given.out}: expected a name that ends in .csv or .parquet")
    if given.out.suffix == ".parquet" and find_spec("pyarrow") is None:
        parser.error(f"--out {given.out}: Parquet takes pyarrow; pip install 'twinlens[parquet]'")
    if given.out.exists():
        parser.error(f"--out {given.out}: exists already; remove it or name another")
    if not given.source.exists():
        parser.error(f"{given.source}: there is no such file or folder")
    if given.workers is not None and given.workers < 1:
        parser.error(f"--workers: expected 1 or more, got {given.workers}")
    return given


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    given = _arguments(arguments)
    try:
        settings = Settings.from_env()
        settings = settings.model_copy(update={"model": given.model or settings.model})
        failed = score(given.source, given.out, settings, given.workers or available_cores())
    except (ModelRefused, OSError, Busy, BrokenProcessPool, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, BrokenProcessPool):
            print("a process has been killed, perhaps for memory; the same command goes on", file=sys.stderr)
        return (
            REFUSED if isinstance(error, ModelRefused) else USAGE if isinstance(error, (ValueError, Busy)) else STORAGE
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print(given.out)
    if failed:
        reasons = ", ".join(f"{count:,} {code}" for code, count in failed.most_common())
        print(f"{failed.total():,} files could not be answered, see column error: {reasons}", file=sys.stderr)
    return SOME_FAILED if failed else DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
