"""`python -m training dossier`: all that speaks for a model in one archive, with the commands that check it."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from serving.contract.files.names import MODEL
from training.dossier.archive import write_archive
from training.dossier.contents import FOLDERS, HEADINGS, Dossier, collect_dossier
from training.report import html
from training.storage import digest, write_atomically

VERIFY = "VERIFY.md"


@dataclass(frozen=True, kw_only=True)
class DossierConfig:
    """Pack all that speaks for a finished run's model into one archive, with VERIFY.md, which says how to check it.

    The order is that of the technical documentation in Annex IV of the EU AI Act, as a structure: it makes no legal
    claim. The report in it shows pictures of test images.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    sbom: Path = Path("build/sbom.json")
    """The list of installed packages that `make sbom` writes; VERIFY.md says where there is none."""
    out: Path | None = None
    """File to write. None: dossier.zip in the run's folder."""


def dossier(config: DossierConfig) -> Path:
    """Write the archive and return it; the same files make the same bytes.

    Raises ConfigError, ModelRefused, OSError.
    """
    run = config.run.resolve()  # `latest` is a link
    contents = collect_dossier(run, config.sbom)
    files = {file.path: file.content for file in contents.files} | {VERIFY: _verify(contents).encode()}
    out = config.out or config.run / "dossier.zip"
    write_atomically(out, lambda target: write_archive(files, target))
    for sentence in (*contents.missing, *contents.remarks):
        print(sentence)
    return out


def dossier_summary(path: Path) -> str:
    """What the command prints at its end."""
    return f"dossier {path}\nSHA-256 {digest(path)}"


def _verify(contents: Dossier) -> str:
    test = contents.report["scores"]["test"]
    return html.render(
        "verify.md.jinja",
        run=contents.run,
        card=contents.classifier.card,
        digest=contents.classifier.digest,
        accuracy=test["accuracy"],
        model=f"{FOLDERS[1]}/{MODEL}",
        folders=FOLDERS,
        headings=HEADINGS,
        files=contents.files,
        names=[file.name for file in contents.files],
        missing=contents.missing,
        remarks=contents.remarks,
    )
