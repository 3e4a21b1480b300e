"""What is refused before the images are read, through the whole command."""

from pathlib import Path

import pytest

from tests.support.datasets import manifest, write
from training.__main__ import main


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two classes and two sites, beside a matrix of costs that lacks a class."""
    root = tmp_path_factory.mktemp("sites")
    rows = [
        {"path": write(root / f"{number}.png", number).name, "label": "ab"[number % 2], "site": "XY"[number // 2 % 2]}
        for number in range(24)
    ]
    (root / "costs.csv").write_text(",a,b\na,0,1\nb,1,0\nc,1,1\n")
    (root / "pipeline.yaml").write_text("transform: nothing\n")
    return manifest(root / "m.csv", rows)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--augment", "{root}/typo.yaml"], "typo.yaml: there is no such file"),
        (["--augment", "{root}/pipeline.yaml"], "pipeline.yaml: no pipeline of Albumentations"),
        (["--from-folds", "nowhere"], "--from-folds nowhere: expected the folder of finished folds"),
        (["--slices", "sit"], "--slices sit: {root}/m.csv has no such column; there are site"),
        (["--fold", "sit=X"], "column sit: {root}/m.csv has no such column; there are site"),
        (["--fold", "site=x"], "--fold site=x: no image has this value; there are Y, X"),
        (["--floor", "sensitivity:c=0.9"], "there is no class 'c'; there are a, b"),
        (["--operate", "c:sensitivity=0.9"], "there is no class 'c'; there are a, b"),
        (["--costs", "{root}/costs.csv"], "row c is no class; there are a, b"),
    ],
)
def test_what_needs_no_pixels_is_refused_before_the_images_are_read(
    options: list[str], expected: str, sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.format(root=sites.parent) for option in options]
    assert main(["--data", str(sites), "--out", str(tmp_path), "--model", "mlp", *given]) == 2
    assert expected.format(root=sites.parent) in capsys.readouterr().err
    assert not list(tmp_path.glob(".cache/contents-*"))
