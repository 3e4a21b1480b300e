"""`python -m training sign`."""

import json
import shutil
import stat
from pathlib import Path

import pytest

from serving.contract.files.signature import PublicKey
from serving.contract.model import open_model
from tests.support.promotions import copied, latest
from tests.support.signed import keys, sign
from tests.support.trainer import command
from training import sagemaker
from training.__main__ import main


@pytest.mark.long
def test_a_run_is_signed_as_a_person_types_it(run: Path, tmp_path: Path) -> None:
    copied(run.parent, tmp_path / "runs")
    made = command("sign", "--new-key", "key", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "public key  key.pub, for TWINLENS_PUBLIC_KEY"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert (tmp_path / "key.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----")
    shutil.copy(run / "model.onnx", tmp_path / "runs" / "tiny" / "model.int8.onnx")
    done = command("sign", "runs/latest", "--key", "key", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "signed runs/latest/model.onnx: model.onnx.sig is beside it",
        "signed runs/latest/model.int8.onnx: model.int8.onnx.sig is beside it",
    ]
    assert latest(tmp_path / "runs") == "tiny"
    for name in ("model.onnx", "model.int8.onnx"):
        assert open_model(tmp_path / "runs" / "latest" / name, key=PublicKey.read(str(tmp_path / "key.pub"))).digest
    assert main(["promote", str(tmp_path / "runs" / "tiny")]) == 0, "the file is what it was"
    alone = command("sign", "runs/tiny/model.onnx", "--key", "key", cwd=tmp_path)
    assert alone.stdout == "signed runs/tiny/model.onnx: model.onnx.sig is beside it\n"


def test_a_key_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys(tmp_path)
    before = private.read_bytes(), public.read_bytes()
    assert main(["sign", "--new-key", str(private)]) == 2
    assert "key is there and would be written over" in capsys.readouterr().err
    private.unlink()
    assert main(["sign", "--new-key", str(private)]) == 2
    assert "key.pub is there and would be written over" in capsys.readouterr().err
    assert (private.exists(), public.read_bytes()) == (False, before[1])
    assert main(["sign", "--new-key", str(tmp_path / "absent" / "key")]) == 6


def test_what_cannot_be_signed_is_a_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys(tmp_path)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"damaged")
    encrypted = tmp_path / "encrypted"
    encrypted.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGjMF8GCSqGSIb3DQEFDTBSMDEGCSqGSIb3DQEFDDAkBBA=\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    for arguments, code, said in (
        ([], 2, "expected a run's folder or a model file and --key FILE, or --new-key FILE"),
        ([run], 2, "expected a run's folder or a model file and --key FILE"),
        ([run, "--new-key", tmp_path / "k"], 2, "expected neither a model nor --key beside it"),
        ([run, "--key", public], 2, "no such key; expected an Ed25519 private key in PEM"),
        ([run, "--key", damaged], 2, "no such key"),
        ([run, "--key", encrypted], 2, "no such key; expected an Ed25519 private key in PEM, without a password"),
        ([run, "--key", tmp_path / "absent"], 2, "cannot be read (No such file or directory)"),
        ([run.parent / ".cache", "--key", private], 2, "expected a run's folder with its model.onnx"),
        ([damaged, "--key", private], 7, "not a graph that onnxruntime can run"),
        ([tmp_path / "absent.onnx", "--key", private], 7, "absent.onnx: cannot be read"),
    ):
        assert main(["sign", *map(str, arguments)]) == code
        assert said in capsys.readouterr().err
    assert not list(run.glob("*.sig"))
    assert not list(tmp_path.glob("*.sig"))


def test_sagemakers_copy_takes_the_signature_along(run: Path, tmp_path: Path) -> None:
    runs = copied(run.parent, tmp_path / "runs")
    private, public = keys(tmp_path)
    sign(runs / "tiny", private)
    sagemaker.finish(runs / "tiny", tmp_path / "ml")
    served = open_model(tmp_path / "ml" / "model" / "model.onnx", key=PublicKey.read(str(public)))
    assert json.loads((runs / "tiny" / "report" / "report.json").read_text())["card"]["version"] == served.card.version
    (runs / "latest").unlink()
    sagemaker.finish(runs / "tiny", tmp_path / "other")
    assert (tmp_path / "other" / "output" / "data" / "model.onnx.sig").is_file()
    assert not (tmp_path / "other" / "model" / "model.onnx.sig").exists()
