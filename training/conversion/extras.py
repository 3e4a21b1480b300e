"""The extras that the import needs for some kinds of files."""

from importlib.util import find_spec

from serving.contract.extras import install_command
from training.data.inspection.kinds import Kind

PACKAGES: dict[Kind, str] = {"heic": "pillow_heif", "dicom": "pydicom"}
"""What the extra of this name installs."""


def missing(kinds: set[Kind]) -> list[str]:
    """A sentence for each extra that is not installed and that these kinds need."""
    return [
        f"files of {kind.upper()} need {package}; {install_command(kind)}"
        for kind, package in PACKAGES.items()
        if kind in kinds and find_spec(package) is None
    ]
