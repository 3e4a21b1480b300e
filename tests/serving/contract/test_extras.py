import re
import tomllib

from serving.contract.extras import install_command
from tests.support.markdown import PAGES
from tests.support.paths import ROOT


def test_an_extra_is_installed_from_the_folder_and_never_by_the_name_of_the_project() -> None:
    """The name is not registered on PyPI, so a stranger could take it."""
    assert install_command("s3").startswith("pip install --constraint constraints.txt --editable '.[s3]'")
    sources = [path for side in ("serving", "training") for path in (ROOT / side).rglob("*.py")]
    assert not [path for path in (*sources, *PAGES) if re.search(r"twinlens\[|pip install twinlens", path.read_text())]


def test_every_extra_that_a_page_installs_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = [command for page in PAGES for command in re.findall(r"'\.\[([\w,]+)\]'", page.read_text())]
    assert commands
    assert {name for command in commands for name in command.split(",")} <= extras.keys()
