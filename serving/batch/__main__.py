"""The command: `python -m serving.batch FOLDER|MANIFEST --out predictions.csv`."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

from serving.batch.parts import Busy
from serving.batch.predict import predict_images
from serving.batch.processes import Processes
from serving.batch.shards import Shard
from serving.batch.workers import Workers
from serving.contract.console import show_every_name
from serving.contract.extras import install_command
from serving.contract.model import ModelRefused
from serving.contract.objects import location
from serving.inference.mirror import fetched_once
from serving.inference.prediction import InvalidOutput
from serving.settings import Settings

DONE, SOME_FAILED, STOPPED = 0, 3, 130
EXIT_CODES: dict[type[Exception], int] = {
    ModelRefused: 7,  # before ValueError, its base class
    InvalidOutput: 4,
    Busy: 5,  # not usage: in a Job it ends by itself, when the other pod ends or the lock of a lost node is given up
    ValueError: 2,
    BrokenProcessPool: 6,
    OSError: 6,
    MemoryError: 6,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.batch",
        description="Predict every image of a folder or of a manifest as the service does, and write one table.",
        epilog="After a stop or a kill, the same command resumes. The limits and the default model are the settings of "
        "the service (TWINLENS_...). Exit codes: 0 done; 2 usage; 3 done, but some images could not be predicted, and "
        "column `error` gives the reason; 4 the model gave a value that is not a finite number; 5 another process "
        "writes the same table; 6 storage, memory, a Ray cluster, or a process was killed; 7 the model was refused; "
        "130 stopped.",
    )
    parser.add_argument("source", type=Path, help="a folder, a CSV with a column path, or a text with a path a line")
    parser.add_argument("--out", type=Path, required=True, help="the table to write, .csv or .parquet")
    parser.add_argument(
        "--model", type=location, help="the model, a file or a URL (default: TWINLENS_MODEL, runs/latest/model.onnx)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes (default: one for each GPU, or for each core that may be used); with --ray, chunks under "
        "way at most",
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        help="i/n: predict the i-th of n shares of the images, as a pod of an Indexed Job does; of n calls with one "
        "--out, on a disk that all of them see, the last one writes the table",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="predict on a Ray cluster: HOST:PORT; auto, for the one of RAY_ADDRESS or of this machine; local, to "
        "start one here. Its nodes see the images by the same path",
    )
    return parser


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.shard = Shard.parse(options.shard)
    except ValueError as error:
        parser.error(f"--shard: {error}")
    if options.out.suffix not in (".csv", ".parquet"):
        parser.error(f"--out {options.out}: expected a name that ends in .csv or .parquet")
    if options.out.suffix == ".parquet" and find_spec("pyarrow") is None:
        parser.error(f"--out {options.out}: Parquet needs pyarrow; {install_command('parquet')}")
    if options.ray is not None and find_spec("ray") is None:
        parser.error(f"--ray {options.ray}: needs Ray; {install_command('ray')}")
    if options.out.exists():
        parser.error(f"--out {options.out}: exists already; remove it or use another name")
    if not options.source.exists():
        parser.error(f"{options.source}: there is no such file or folder")
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers: expected 1 or more, got {options.workers}")
    return options


def _workers(options: argparse.Namespace) -> Workers:
    if options.ray is None:
        return Processes(options.workers)
    from serving.batch.ray_cluster import RayCluster  # noqa: PLC0415 (an extra, which only this needs)

    return RayCluster(options.ray, options.workers)


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns its exit code."""
    options = _arguments(arguments)
    try:
        settings = Settings.from_env()
        settings = settings.model_copy(update={"model": options.model or settings.model})
        with fetched_once(settings) as fetched:
            done = predict_images(options.source, options.out, fetched, _workers(options), options.shard)
    except tuple(EXIT_CODES) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, InvalidOutput):
            print(f"{settings.model} cannot be used; nothing was written to {options.out}", file=sys.stderr)
        if isinstance(error, BrokenProcessPool):
            print("a process was killed, perhaps for its memory; the same command resumes", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return STOPPED
    if done.missing:
        print(f"shard {options.shard} is complete; {options.out} also needs {', '.join(map(str, done.missing))}")
    else:
        print(options.out)
    if done.failed:
        reasons = ", ".join(f"{count:,} {code}" for code, count in done.failed.most_common())
        print(f"{done.failed.total():,} images could not be predicted, see column error: {reasons}", file=sys.stderr)
    return SOME_FAILED if done.failed else DONE


if __name__ == "__main__":
    show_every_name()
    sys.exit(main(sys.argv[1:]))
