"""The command `python -m serving check`: that this machine serves a model as it was evaluated, and how fast."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import cv2

from serving.check import model, speed
from serving.contract import gpu, selfcheck
from serving.contract.console import show_every_name
from serving.contract.objects import Location, location
from serving.contract.selfcheck import NO_GPU, Result, SelfCheck, Skipped
from serving.inference.mirror import fetched_once
from serving.settings import Settings

PASSED, FAILED, USAGE = 0, 1, 2


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving check",
        description="Check that this machine serves a model as it was evaluated, on GPU and CPU, and how fast.",
        epilog=f"Exit codes: {PASSED} no line failed; {FAILED} a line failed; "
        f"{USAGE} usage, a named model that does not exist, or --out cannot be made.",
    )
    parser.add_argument(
        "--model", type=location, help="the model, a file or a URL (default: TWINLENS_MODEL, runs/latest/model.onnx)"
    )
    parser.add_argument("--out", type=Path, default=Path("check"), help="folder of check.json (default: check)")
    return parser.parse_args(arguments)


def check(settings: Settings) -> SelfCheck:
    """Try each line on the model of the settings."""
    record = SelfCheck("serving")
    record.try_line("driver", selfcheck.driver)
    record.try_line("card", selfcheck.card)
    record.try_line("providers", selfcheck.providers)
    for number, device in enumerate(gpu.gpus() or [None]):
        name = "GPU" if device is None else f"GPU {number}"
        record.try_line(f"model on {name}", partial(_on_gpu, settings, number))
    record.try_line("model on CPU", partial(_with_model, model.opens_on_cpu, settings))
    record.try_line("GPU beside CPU", partial(_with_gpu, model.gpu_is_as_cpu, settings))
    record.try_line("eight bits", partial(_with_model, model.eight_bits, settings))
    record.try_line("latency by batch", partial(_with_model, speed.latency_by_batch, settings))
    record.try_line("changing batches", partial(_with_gpu, speed.changing_batches, settings))
    record.try_line(f"{speed.CLIENTS} at once", partial(_with_model, speed.load, settings))
    return record


def _with_model(attempt: "model.Attempt", settings: Settings) -> Result:
    if not settings.file.exists():
        raise Skipped(f"{settings.model} does not exist; `python -m training check` leaves models in check/")
    return attempt(settings)


def _with_gpu(attempt: "model.Attempt", settings: Settings) -> Result:
    if not gpu.gpus():
        raise Skipped(NO_GPU)
    return _with_model(attempt, settings)


def _on_gpu(settings: Settings, number: int) -> Result:
    return _with_gpu(partial(model.opens_on_gpu, number=number), settings)


def _settings(model: Location | None) -> Settings:
    """The settings, with `model` if it is given. Raises ValueError, and FileNotFoundError for a named file."""
    settings = Settings.from_env()
    named = model is not None or "model" in settings.model_fields_set
    settings = settings.model_copy(update={} if model is None else {"model": model})
    if named and isinstance(settings.model, Path) and not settings.model.is_file():
        raise FileNotFoundError(f"{settings.model}: there is no such file")
    return settings


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns its exit code."""
    options = _arguments(arguments)
    with ExitStack() as running:
        try:
            settings = running.enter_context(fetched_once(_settings(options.model)))
            options.out.mkdir(parents=True, exist_ok=True)
        except (ValueError, OSError) as error:  # before anything is measured
            print(f"error: {error}", file=sys.stderr)
            return USAGE
        cv2.setNumThreads(1)
        record = check(settings)
    print(record.summary(record.write(options.out)))
    return FAILED if record.failed else PASSED


if __name__ == "__main__":
    show_every_name()
    sys.exit(main(sys.argv[1:]))
