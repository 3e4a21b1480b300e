"""Keys and signatures as `python -m training sign` makes them."""

from pathlib import Path

from training.__main__ import main


def keys(folder: Path) -> tuple[Path, Path]:
    """A new private key in `folder`, and its public one."""
    assert main(["sign", "--new-key", str(folder / "key")]) == 0
    return folder / "key", folder / "key.pub"


def sign(model: Path, key: Path) -> None:
    """Sign a model file, or those of a run."""
    assert main(["sign", str(model), "--key", str(key)]) == 0
