"""What a dossier holds: files of a run and of its neighbours, under the headings of technical documentation.

The headings are those of Annex IV of Regulation (EU) 2024/1689, as a structure. Nothing here claims conformity.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.contract.files.names import MODEL, signature_of
from serving.contract.model import Classifier, open_model
from training.engine import history, runs
from training.errors import ConfigError
from training.promotion import log
from training.report import html, looks

HEADINGS = (
    "General description of the system",
    "Elements of the system and the process of its development",
    "Monitoring, functioning and control",
    "Appropriateness of the performance metrics",
    "Risk management system",
    "Changes through the lifecycle",
    "Harmonised standards applied",
    "EU declaration of conformity",
    "Evaluation after the system is placed on the market",
)
FOLDERS = {1: "1-general", 2: "2-development", 4: "4-performance", 6: "6-changes"}
"""By number of the heading; the others have nothing that a run holds."""


@dataclass(frozen=True, kw_only=True)
class DossierFile:
    """A file of a dossier."""

    heading: int
    name: str
    what: str
    content: bytes

    @property
    def path(self) -> str:
        """Its place in the archive."""
        return f"{FOLDERS[self.heading]}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Dossier:
    """The files of a dossier, and what it lacks."""

    run: str
    classifier: Classifier
    report: dict[str, Any]
    files: tuple[DossierFile, ...]
    missing: tuple[str, ...]
    """A sentence for each thing that could be there, with the command that makes it."""
    remarks: tuple[str, ...]
    """Sentences on what does not fit together."""


def collect_dossier(run: Path, sbom: Path) -> Dossier:
    """Read all that belongs to a finished run. Raises ConfigError, ModelRefused, OSError."""
    if not (run / runs.REPORT_FACTS).is_file() or not runs.is_finished(run):
        raise ConfigError(f"{run}: expected the folder of a finished run, with its report")
    classifier = open_model(run / MODEL, threads=0)
    report = json.loads((run / runs.REPORT_FACTS).read_bytes())
    if report["card"]["version"] != classifier.card.version:
        raise ConfigError(f"{run}: its report is of version {report['card']['version']}, not of its {MODEL}")
    optional = {
        "signature": signature_of(run / MODEL),
        "sbom": sbom,
        "parity": _parity(run, classifier.card.version),
    }
    missing = [MISSING[name] for name, path in optional.items() if not path.is_file()]
    files = [
        *_general(run, classifier),
        *_development(run, report, sbom),
        *_performance(run, report, optional["parity"]),
    ]
    promotions = _lines(run.parent / log.LOG, lambda entry: _is_of(entry, run.name, classifier.digest))
    if promotions:
        files.append(
            DossierFile(
                heading=6,
                name="promotions.jsonl",
                what="each move of `latest` to it or away, and each refusal",
                content=promotions,
            )
        )
    else:
        missing.append(f"{log.LOG} has no line on it.")
    return Dossier(
        run=run.name,
        classifier=classifier,
        report=report,
        files=tuple(sorted(files, key=lambda file: file.path)),
        missing=tuple(missing),
        remarks=tuple(_remarks(classifier, sbom)),
    )


MISSING = {
    "signature": "It is not signed: `python -m training sign RUN --key FILE`.",
    "sbom": "There is no list of all installed packages: `make sbom`, and `--sbom build/sbom.json`.",
    "parity": (
        "Everything that answers was compared at the export only, in report.json under parity: "
        "`python -m training parity RUN --data DATA` does it again."
    ),
}


def _general(run: Path, classifier: Classifier) -> Iterator[DossierFile]:
    card = replace(classifier.card, goldens=())
    yield _file(1, run / MODEL, "the model that is served")
    if (signature := signature_of(run / MODEL)).is_file():
        yield _file(1, signature, "its signature, Ed25519")
    text = json.dumps(json.loads(card.to_json()), indent=1, ensure_ascii=False)
    yield DossierFile(
        heading=1, name="card.json", what="what the model file says of itself, without goldens", content=text.encode()
    )
    yield _file(1, run / runs.REPORT / "report.md", "model card: intended use, limits, scores")


def _development(run: Path, report: dict[str, Any], sbom: Path) -> Iterator[DossierFile]:
    audit = json.loads((run / runs.AUDIT).read_bytes())
    sheet = html.render("data_sheet.md.jinja", data=report["data"], audit=audit)
    yield _file(2, run / runs.CONFIG, "all options of the training")
    yield _file(2, run / history.HISTORY, "figures of each epoch")
    yield _file(2, run / runs.AUDIT, "the data's audit: duplicates, leaks, damaged files, shortcuts")
    yield DossierFile(heading=2, name="data-sheet.md", what="the data on a page", content=sheet.encode())
    if sbom.is_file():
        yield replace(_file(2, sbom, "all installed packages, CycloneDX"), name="sbom.json")


def _parity(run: Path, version: str) -> Path:
    """The newest comparison of what answers for this version; of model.int8.onnx there may be others beside it."""
    reports = (
        path for path in (run / "parity").glob("*/parity.json") if json.loads(path.read_bytes())["version"] == version
    )
    return max(reports, default=run / "parity" / "parity.json")


def _performance(run: Path, report: dict[str, Any], parity: Path) -> Iterator[DossierFile]:
    yield _file(4, run / runs.REPORT / "report.html", "the report, with pictures of validation and test images")
    yield _file(4, run / runs.REPORT_FACTS, "the report for programs, with the proof of the export")
    yield _file(4, run / runs.PREDICTIONS, "every test image with its label and every probability")
    if parity.is_file():
        yield _file(4, parity, "answers of everything that answers, compared")
        yield _file(4, parity.with_suffix(".html"), "the same as a page")
    split = report["data"]["test_digest"]
    folder = looks.runs_folder(run.absolute().parent)
    looked = _lines(folder / looks.LOG, lambda entry: bool(entry.get("test_split") == split))
    if looked:
        yield DossierFile(heading=4, name="looks.jsonl", what="every recorded look at this test split", content=looked)


def _file(heading: int, path: Path, what: str) -> DossierFile:
    return DossierFile(heading=heading, name=path.name, what=what, content=path.read_bytes())


def _lines(path: Path, chosen: Callable[[dict[str, Any]], bool]) -> bytes:
    """The lines of a log that are chosen, as they are; a torn line is none. Empty without a log."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and chosen(entry):
            kept.append(line)
    return b"".join(kept)


def _is_of(entry: dict[str, Any], run: str, digest: str) -> bool:
    return entry.get("run") == run or digest in (entry.get("digest"), entry.get("replaced_digest"))


def _remarks(classifier: Classifier, sbom: Path) -> Iterator[str]:
    """Packages whose version is another in the list of the installed ones than in the card."""
    if not sbom.is_file():
        return
    try:
        components = json.loads(sbom.read_bytes())["components"]
        listed = {component["name"].lower(): component["version"] for component in components}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--sbom {sbom}: expected CycloneDX in JSON, as `make sbom` writes ({error})") from error
    for name, version in classifier.card.provenance.packages.items():
        if listed.get(name.lower(), version) != version:
            yield f"sbom.json lists {name} {listed[name.lower()]}; the training had {version}, by its card."
