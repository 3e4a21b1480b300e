"""`python -m training dossier`: what is in it, and that the commands of its VERIFY.md check it."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from serving.contract.model import open_model
from tests.support.promotions import copied
from tests.support.signed import keys, sign
from tests.support.trainer import command
from training.__main__ import main

BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(two: Path, tmp_path: Path) -> Path:
    """A folder with runs, one of which is signed, compared and has a list of packages."""
    runs = copied(two, tmp_path / "runs")
    private, _ = keys(tmp_path)
    sign(runs / "good", private)
    (runs / "good" / "parity" / "20260101-000000").mkdir(parents=True)
    version = open_model(runs / "good" / "model.onnx").card.version
    (runs / "good" / "parity" / "20260101-000000" / "parity.json").write_text(json.dumps({"version": version}))
    (runs / "good" / "parity" / "20260101-000000" / "parity.html").write_text("<p>")
    (runs / "good" / "parity" / "20260102-000000").mkdir()
    (runs / "good" / "parity" / "20260102-000000" / "parity.json").write_text(
        json.dumps({"version": f"{version}-int8"})
    )
    packages = open_model(runs / "good" / "model.onnx").card.provenance.packages
    (tmp_path / "build").mkdir()
    components = [{"name": name, "version": version} for name, version in packages.items()]
    (tmp_path / "build" / "sbom.json").write_text(json.dumps({"components": components}))
    return tmp_path


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        file.extractall(folder)
    return folder


def verified(folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Each command of VERIFY.md that needs nothing but what was unpacked."""
    blocks = BASH.findall((folder / "VERIFY.md").read_text())
    assert len(blocks) >= 5
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return [
        subprocess.run(
            ["bash", "-c", f"set -e\n{block}"],
            cwd=folder,
            env={"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        for block in blocks
    ]


@pytest.mark.slow
def test_all_that_speaks_for_a_model_and_every_check_of_it_holds(home: Path, tmp_path: Path) -> None:
    done = command("dossier", "runs/latest", cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dossier runs/latest/dossier.zip\nSHA-256 "), "nothing is missing"
    folder = unpacked(home / "runs" / "good" / "dossier.zip", tmp_path / "unpacked")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "SHA256SUMS",
        "VERIFY.md",
        *(f"1-general/{name}" for name in ("card.json", "model.onnx", "model.onnx.sig", "report.md")),
        *(
            f"2-development/{name}"
            for name in ("audit.json", "config.yaml", "data-sheet.md", "history.json", "sbom.json")
        ),
        *(f"4-performance/{name}" for name in ("looks.jsonl", "parity.html", "parity.json", "predictions.csv")),
        *(f"4-performance/report.{ending}" for ending in ("html", "json")),
        "6-changes/promotions.jsonl",
    }
    page = (folder / "VERIFY.md").read_text()
    assert all(f"`{name}`" in page for name in files - {"SHA256SUMS", "VERIFY.md"})
    assert str(tmp_path) not in page, "no place of this machine"
    assert [int(number) for number in re.findall(r"^## (\d)\. ", page, re.MULTILINE)] == list(range(1, 10))
    for check in verified(folder):
        assert check.returncode == 0, f"{check.args}\n{check.stdout}{check.stderr}"
    report = json.loads((folder / "4-performance" / "report.json").read_text())
    counted = next(check.stdout for check in verified(folder) if "predictions.csv" in check.args[-1])
    assert counted.strip() == f"{report['scores']['test']['accuracy']:.4f}"
    lines = [json.loads(line) for line in (folder / "6-changes" / "promotions.jsonl").read_text().splitlines()]
    assert [(line["event"], line["run"]) for line in lines] == [("promoted", "good"), ("refused", "poor")]
    looks = [json.loads(line) for line in (folder / "4-performance" / "looks.jsonl").read_text().splitlines()]
    assert {look["test_split"] for look in looks} == {report["data"]["test_digest"]}
    assert "| blue |" in (folder / "2-development" / "data-sheet.md").read_text()


@pytest.mark.slow
def test_the_same_files_make_the_same_bytes(home: Path) -> None:
    sbom = ["--sbom", str(home / "build" / "sbom.json")]
    first, second = home / "first.zip", home / "second.zip"
    assert main(["dossier", str(home / "runs" / "good"), "--out", str(first), *sbom]) == 0
    shutil.copytree(home / "runs", home / "elsewhere", symlinks=True)
    (home / "elsewhere" / "good" / "model.onnx").touch()
    assert main(["dossier", str(home / "elsewhere" / "good"), "--out", str(second), *sbom]) == 0
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["1-general/model.onnx", "1-general/card.json", "6-changes/promotions.jsonl"])
def test_a_change_of_one_byte_fails_a_check(home: Path, tmp_path: Path, name: str) -> None:
    assert main(["dossier", str(home / "runs" / "good"), "--out", str(tmp_path / "x.zip")]) == 0
    folder = unpacked(tmp_path / "x.zip", tmp_path / "unpacked")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert any(check.returncode for check in verified(folder))


def test_what_is_missing_or_does_not_fit_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "x.zip"
    assert main(["dossier", str(home / "runs" / "poor"), "--out", str(out), "--sbom", str(home / "absent")]) == 0
    printed = capsys.readouterr().out
    page = (unpacked(out, home / "unpacked") / "VERIFY.md").read_text()
    for sentence in (
        "It is not signed: ",
        "There is no list of all installed packages",
        "was compared at the export only",
    ):
        assert sentence in printed
        assert f"**Note.** {sentence}" in page or sentence in page
    assert "openssl" not in page
    sbom = home / "build" / "sbom.json"
    sbom.write_text('{"components": [{"name": "torch", "version": "0.1"}]}')
    assert main(["dossier", str(home / "runs" / "good"), "--out", str(out), "--sbom", str(sbom)]) == 0
    assert "sbom.json lists torch 0.1; the training had 2." in capsys.readouterr().out
    sbom.write_text("{}")
    assert main(["dossier", str(home / "runs" / "good"), "--out", str(out), "--sbom", str(sbom)]) == 2
    assert "expected CycloneDX in JSON" in capsys.readouterr().err


def test_a_run_without_its_own_report_has_no_dossier(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, poor = home / "runs" / "good", home / "runs" / "poor"
    shutil.copy(good / "model.onnx", poor / "model.onnx")
    assert main(["dossier", str(poor)]) == 2
    assert "its report is of version " in capsys.readouterr().err
    shutil.rmtree(good / "report")
    assert main(["dossier", str(good)]) == 2
    assert "expected the folder of a finished run" in capsys.readouterr().err
    assert not list(home.rglob("*.zip"))
