"""`python -m training reproduce`, on real runs."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.support.forged_models import rewritten
from tests.support.promotions import make
from tests.support.trainer import command, start
from training.__main__ import main
from training.reproduction.command import RESULT


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that draws at random, a pipeline of its own and no file left but the model."""
    import albumentations as A

    home = tmp_path_factory.mktemp("made")
    A.save(A.Compose([A.HorizontalFlip(p=0.5)]), home / "own.yaml", data_format="yaml")
    run = make(
        photos,
        home / "runs",
        name="x",
        augment=home / "own.yaml",
        dropout=0.2,
        mixup=0.3,
        epochs=8,
        floor=("accuracy=0.1",),
    )
    return Path(shutil.copy(run / "model.onnx", home))


def result(out: Path) -> dict[str, Any]:
    [file] = out.glob(f"*/{RESULT}")
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


@pytest.mark.long
def test_the_digits_as_a_person_types_it(tmp_path: Path) -> None:
    trained = command("--model", "mlp", "--hidden", "16", "--epochs", "1", "--name", "x", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    done = command("reproduce", "runs/x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\nbit-identical: yes\n" in done.stdout
    facts = result(tmp_path / "runs" / "reproductions")
    assert facts["weights"] == facts["weights_again"]
    assert (tmp_path / "runs" / "latest").readlink() == Path("x"), "a reproduction is never promoted"


@pytest.mark.long
def test_from_the_file_alone_and_after_a_kill(made: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ["reproduce", str(made), "--data", str(photos), "--runs", str(tmp_path / "again")]
    killed = start(arguments, epochs=2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(tmp_path.glob(f"again/*/{RESULT}"))
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "resume " in done.stdout, "the killed one continues"
    assert "\nbit-identical: yes\n" in done.stdout
    assert result(tmp_path / "again")["identical"]


def test_changed_data_is_named_before_any_training(
    made: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(data / "blue" / "0.png", data / "blue" / "3.png")
    assert main(["reproduce", str(made), "--data", str(data), "--runs", str(tmp_path / "again")]) == 1
    assert "bit-identical: no; what differs first: the data." in capsys.readouterr().err
    assert not list((tmp_path / "again").glob("*/config.yaml"))


@pytest.mark.long
def test_another_result_is_named_with_what_differs_first(
    made: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def forged(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
        made = card["provenance"]
        changed = {"config": made["config"] | {"seed": 0, "lr": 0.002}, "packages": made["packages"] | {"timm": "0"}}
        return card | {"provenance": made | changed}

    other = rewritten(made, tmp_path / "other.onnx", forged)
    assert main(["reproduce", str(other), "--data", str(photos), "--runs", str(tmp_path / "again")]) == 1
    shown = capsys.readouterr()
    assert "bit-identical: no\n" in shown.out
    assert "bit-identical: no; weights, graph" in shown.err
    assert "what differs first: timm: 0 then, " in shown.err
    assert not result(tmp_path / "again")["identical"]


def test_what_cannot_be_reproduced_is_a_sentence(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def newer(graph: onnx.ModelProto, card: dict[str, Any]) -> dict[str, Any]:
        made = card["provenance"]
        return card | {"provenance": made | {"config": made["config"] | {"sharpen": 1}}}

    assert main(["reproduce", str(tmp_path / "absent.onnx")]) == 7
    int8 = shutil.copy(made, tmp_path / "model.int8.onnx")
    assert main(["reproduce", str(int8)]) == 2
    assert "expected a model.onnx" in capsys.readouterr().err
    unknown = rewritten(made, tmp_path / "newer.onnx", newer)
    assert main(["reproduce", str(unknown), "--runs", str(tmp_path / "again")]) == 2
    assert "the card has options that this version does not know: sharpen" in capsys.readouterr().err


@pytest.mark.long
def test_corrections_belong_to_the_data_of_a_training(photos: Path, tmp_path: Path) -> None:
    """With them a run is evaluated on its own test split and reproduced; without them it has seen other data."""
    fixed = tmp_path / "fixed.csv"
    picture = next(path for path in sorted(photos.rglob("*.png")) if "blue" in path.parts)
    fixed.write_text(f"path,label\n{picture.relative_to(photos)},green leaf\n")
    options = ["--data", str(photos), "--corrections", str(fixed)]
    run = make(photos, tmp_path / "runs", name="x", corrections=fixed)

    evaluated = command("evaluate", "--run", str(run), *options, "--out", str(tmp_path / "evaluated"))
    assert "the model was trained on this data, whose splits were made again" in evaluated.stdout
    refused = command("reproduce", str(run), "--data", str(photos), "--runs", str(tmp_path / "again"))
    assert refused.returncode == 2
    assert "it was trained with --corrections; expected that file here, too" in refused.stderr
    done = command("reproduce", str(run), *options, "--runs", str(tmp_path / "again"))
    assert "\nbit-identical: yes\n" in done.stdout, done.stderr
