"""Signatures of model files: what holds, and what is refused with which sentence."""

import shutil
import subprocess
from pathlib import Path

import pytest

from serving.contract.files.signature import PublicKey, SignatureRefused
from serving.contract.model import ModelRefused, open_model
from tests.support.signed import keys, sign


@pytest.fixture
def signed(run: Path, tmp_path: Path) -> tuple[Path, PublicKey]:
    """A signed model file, and the key that signed it."""
    file = Path(shutil.copy(run / "model.onnx", tmp_path))
    private, public = keys(tmp_path)
    sign(file, private)
    return file, PublicKey.read(str(public))


def flipped(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_signed_file_opens_and_any_changed_byte_is_refused(signed: tuple[Path, PublicKey]) -> None:
    file, key = signed
    assert open_model(file, key=key).card.classes
    size = file.stat().st_size
    for place in (0, size // 3, size // 2, size - 1):
        flipped(file, place)
        with pytest.raises(ModelRefused, match=r"model\.onnx: model\.onnx\.sig does not fit"):
            open_model(file, key=key)
        flipped(file, place)
    flipped(file.with_name("model.onnx.sig"), 63)
    with pytest.raises(ModelRefused, match="does not fit"):
        open_model(file, key=key)


def test_another_key_an_empty_and_a_missing_signature_are_refused(
    signed: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    file, key = signed
    (tmp_path / "other").mkdir()
    _, other = keys(tmp_path / "other")
    with pytest.raises(ModelRefused, match="another key signed it"):
        open_model(file, key=PublicKey.read(str(other)))
    signature = file.with_name("model.onnx.sig")
    for content, said in ((b"", "found 0"), (b"x" * 63, "found 63"), (b"x" * 88, "found more")):
        signature.write_bytes(content)
        with pytest.raises(
            ModelRefused, match=rf"no signature: expected 64 bytes in model\.onnx\.sig beside it, {said}"
        ):
            open_model(file, key=key)
    signature.unlink()
    with pytest.raises(ModelRefused, match=r"no signature: .*cannot be read \(No such file or directory\)"):
        open_model(file, key=key)
    assert open_model(file).card.classes, "without a key none is asked for"


def test_what_is_verified_is_what_is_loaded(
    signed: tuple[Path, PublicKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced after its bytes were verified: the verified ones are loaded."""
    file, key = signed
    other = tmp_path / "other.onnx"
    other.write_bytes(b"not what was signed")
    check = PublicKey.check

    def check_and_replace(self: PublicKey, data: bytes, path: Path) -> None:
        check(self, data, path)
        other.replace(file)

    monkeypatch.setattr(PublicKey, "check", check_and_replace)
    assert open_model(file, key=key).card.classes
    assert file.read_bytes() == b"not what was signed"


def test_file_and_signature_are_of_one_folder_while_a_link_moves(
    signed: tuple[Path, PublicKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = signed
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(file, tmp_path / name)
    shutil.copy(f"{file}.sig", tmp_path / "one")
    (tmp_path / "latest").symlink_to("one")
    check = PublicKey.check

    def move_and_check(self: PublicKey, data: bytes, path: Path) -> None:
        (tmp_path / "latest").unlink()
        (tmp_path / "latest").symlink_to("two")
        check(self, data, path)

    monkeypatch.setattr(PublicKey, "check", move_and_check)
    assert open_model(tmp_path / "latest" / "model.onnx", key=key).card.classes


def test_a_key_is_a_file_or_pem_and_nothing_else(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    key = PublicKey.read(str(public))
    assert PublicKey.read(public.read_text()) == key
    assert len(key.raw) == 32
    (tmp_path / "empty").touch()
    rsa = tmp_path / "rsa.pub"
    rsa.write_text(
        "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf\n"
        "9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==\n-----END PUBLIC KEY-----\n"
    )
    for text, said in (
        (str(tmp_path / "empty"), "no public key; expected an Ed25519 public key in PEM"),
        (str(private), "no public key"),
        (private.read_text(), "the PEM given: no public key"),
        (str(tmp_path / "absent"), r"cannot be read \(No such file"),
        (str(tmp_path), r"cannot be read \(Is a directory"),
        (str(rsa), "a public key of another kind"),
    ):
        with pytest.raises(SignatureRefused, match=said) as refused:
            PublicKey.read(text)
        assert "PRIVATE" not in str(refused.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_verifies_what_this_signs_and_this_what_openssl_signs(
    signed: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    file, key = signed

    def openssl(*arguments: object) -> bool:
        command = ["openssl", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    verify = ("pkeyutl", "-verify", "-pubin", "-rawin", "-in", file, "-sigfile", f"{file}.sig", "-inkey")
    assert openssl(*verify, "key.pub")
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", "theirs")
    assert openssl("pkey", "-in", "theirs", "-pubout", "-out", "theirs.pub")
    assert not openssl(*verify, "theirs.pub")
    assert openssl("pkeyutl", "-sign", "-inkey", "theirs", "-rawin", "-in", file, "-out", f"{file}.sig")
    assert open_model(file, key=PublicKey.read(str(tmp_path / "theirs.pub"))).card.classes
    with pytest.raises(ModelRefused, match="another key signed it"):
        open_model(file, key=key)
    sign(file, tmp_path / "theirs")
    assert openssl(*verify, "theirs.pub")
