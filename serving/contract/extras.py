"""How an extra is installed: from this project's folder, for a package index may have another `twinlens`."""


def install_command(extra: str) -> str:
    """The command that installs an extra of pyproject.toml, in the versions of constraints.txt."""
    return f"pip install --constraint constraints.txt --editable '.[{extra}]' (in the project's folder)"
