"""`python -m training parity`: that everything which answers for a model gives the answers that were evaluated."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter

import tyro

from serving.contract import gpu
from serving.contract.files.names import MODEL
from serving.contract.model import Classifier, open_model
from serving.contract.session import Placement
from training.data.selection import Selection, Wanted, select
from training.device import unusable_gpu
from training.engine import runs
from training.errors import CheckFailed, ConfigError, DeviceMissing
from training.export.ways import check_way
from training.metrics.classification import Probabilities
from training.models.prediction import predict_images
from training.options.choices import Data
from training.parity.answers import Service, TorchModel
from training.report.parity import Answers, ParityReport, parity_summary, write_parity
from training.report.predictions import read_predictions

Way = tuple[str, Callable[[], Probabilities]]
"""What answers, in words, and how it is asked."""


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Ask everything that answers for a model about the same labelled images, and compare all answers with torch's.

    That is the run's own record, torch, the model file on the CPU and on a GPU, and with --url a running service.
    """

    model: tyro.conf.Positional[Path]
    """A run's folder, or an .onnx file; torch is asked where the run's checkpoint is beside it."""
    data: Data | None = None
    """Images with labels, in one of the formats of training. None: the digits."""
    corrections: Path | None = None
    """As for evaluate."""
    split: Wanted | None = None
    """Images to ask about. None: as for evaluate, the test split where there is one."""
    provider: str | None = None
    """What the file computes on: cpu, cuda (each GPU), or cpu,cuda. None: the CPU and the GPUs that are there."""
    url: str | None = None
    """A running service that serves this model, such as http://localhost:3000."""
    token_file: Path | None = None
    """File whose first line is the service's bearer token."""
    cache: Path | None = None
    """As for evaluate."""
    out: Path | None = None
    """Folder for parity.html and parity.json, which must not exist yet. None: parity/<date, time> beside the model."""


def parity(config: ParityConfig) -> Path:
    """Ask, compare, write the page and return its folder.

    Raises CheckFailed when an answer differs, DeviceMissing, ModelRefused, ConfigError, DataError, CheckpointRefused,
    OSError.
    """
    placements = _placements(config.provider)
    path = runs.model_file(config.model).resolve()
    classifier = open_model(path, placement=Placement(on="cpu"), threads=0)
    service = None
    if config.url is not None:
        service = Service(url=config.url, token=_token(config.token_file))
        service.check(classifier.card)  # before the images are read
    if service is None and len(placements) < 2 and not _of_run(path):
        raise ConfigError(
            f"{path}: there is nothing to compare with; expected a run's folder with its checkpoint, or --url"
        )
    with runs.results_folder(config.out, path.parent / "parity" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}") as folder:
        selection = select(config, [classifier.card], path, folder)
        print(selection.line)
        answers = _compared(_ways(classifier, selection, placements, service))
        report = ParityReport(
            model=path,
            card=classifier.card,
            data=selection.images.name,
            split=selection.split,
            images=len(selection.indices),
            answers=answers,
        )
        write_parity(report, folder)
    if report.faults:
        print(parity_summary(folder))
        raise CheckFailed("\n".join(report.faults))
    return folder


def _compared(ways: Iterable[Way]) -> list[Answers]:
    """Ask each way, and compare its answers with the first one's."""
    answers: list[Answers] = []
    reference = None
    for name, ask in ways:
        start = perf_counter()
        probabilities = ask()
        seconds = perf_counter() - start
        reference = probabilities if reference is None else reference
        answers.append(Answers(check=check_way(name, None, reference, probabilities), seconds=seconds))
    return answers


def _placements(provider: str | None) -> dict[str, Placement]:
    """What the file computes on, by its name in the table. Raises ConfigError, DeviceMissing."""
    wanted = ["cpu", "cuda"] if provider is None else [name.strip() for name in provider.split(",")]
    if not set(wanted) <= {"cpu", "cuda"}:
        raise ConfigError(f"--provider {provider}: expected cpu, cuda or cpu,cuda")
    cards = gpu.gpus() if "cuda" in wanted else []
    if provider is not None and "cuda" in wanted and not cards:
        raise DeviceMissing(f"--provider {provider}: {unusable_gpu() or 'there is no GPU'}; --provider cpu needs none")
    on_cpu = {"the CPU": Placement(on="cpu")} if "cpu" in wanted else {}
    return on_cpu | {str(card): Placement(on="cuda", device_id=number) for number, card in enumerate(cards)}


def _ways(
    classifier: Classifier, selection: Selection, placements: dict[str, Placement], service: Service | None
) -> Iterator[Way]:
    """All that can be asked here; what the others are compared with comes first."""
    path, card = classifier.path, classifier.card
    if _of_run(path):
        network = TorchModel(runs.load_config(path.parent), _checkpoint(path), card)
        yield (
            "torch, the run's checkpoint, on the CPU",
            partial(predict_images, network, selection.images, selection.indices),
        )
    kept = read_predictions(path.parent / runs.PREDICTIONS, selection.images.classes) if _of_run(path) else None
    recorded = kept.of([selection.images.keys[index] for index in selection.indices]) if kept else None
    if recorded is not None:
        yield "predictions.csv, what the run evaluated", lambda: recorded
    for name, placement in placements.items():
        placed = open_model(path, placement=placement, threads=0)
        yield f"{path.name} on {name}", partial(predict_images, placed, selection.images, selection.indices)
    if service is not None:
        yield f"the service at {service.url}", partial(service.answers, selection, card)


def _checkpoint(path: Path) -> Path:
    return path.parent / runs.BEST


def _of_run(path: Path) -> bool:
    """Whether the file is what its run evaluated; an eight-bit file answers differently, by design."""
    return path.name == MODEL and _checkpoint(path).is_file()


def _token(path: Path | None) -> str | None:
    """Raises ConfigError."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise ConfigError(f"--token-file {path}: cannot be read ({error.strerror})") from error
    if not lines:
        raise ConfigError(f"--token-file {path}: expected a token")
    return lines[0]
