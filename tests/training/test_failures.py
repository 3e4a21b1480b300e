"""What happens to real runs when something around them fails; each fault is provoked, none is acted.

After every one of them the last checkpoint loads and the run continues.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from serving.contract.model import open_model
from tests.support import forged
from tests.support.checkpoints import last, same
from tests.support.paths import ROOT
from tests.support.pickles import Canary
from tests.support.processes import PATIENCE_S, children, is_gone, wait_until
from tests.support.trainer import SMALL, After, arguments_for, run_of, start
from training import failures, train
from training.__main__ import HINTS, main, options
from training.data.dataset import load_dataset
from training.engine import checkpoint, history
from training.errors import EXIT_CODES, DeviceFailed, Interrupted, OutOfMemory
from training.options.config import TrainConfig


def continues(arguments: list[str]) -> None:
    """Asserts that --resume auto takes the run up from its last checkpoint, which loads, and gets further."""
    run = Path(arguments[arguments.index("--out") + 1]) / "x"
    before = last(run)["progress"]
    with pytest.raises(Interrupted):
        train.train(options("train", [*arguments, "--resume", "auto"]), After(0))
    after = last(run)["progress"]
    assert (len(after["history"]), after["step"]) > (len(before["history"]), 0) or after["step"] > before["step"]
    assert after["history"][: len(before["history"])] == before["history"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (signal.SIGKILL, "a data worker was killed, as the system does when memory runs out; fewer --workers"),
        (signal.SIGSTOP, "a data worker hangs; is the disk of --cache alive? A longer --worker-timeout"),
    ],
)
def test_a_worker_that_dies_or_hangs_ends_the_run_with_all_workers(
    photos: Path, tmp_path: Path, sent: int, said: str
) -> None:
    arguments = arguments_for(photos, tmp_path, "--workers", "2", "--worker-timeout", "5")
    trainer = start(arguments)
    workers = children(trainer.pid)
    assert len(workers) == 2
    wait_until((tmp_path / "x" / "checkpoints" / "last.pt").exists)
    os.kill(workers[0], sent)
    _, errors = trainer.communicate(timeout=PATIENCE_S)
    assert trainer.returncode == 6
    assert f"error: {said}" in errors
    assert f"--resume {tmp_path}/x continues from its last checkpoint" in errors
    assert "Traceback" not in errors
    assert all(map(is_gone, workers))
    continues(arguments)


@pytest.mark.parametrize(
    "stopped", [pytest.param(False, marks=pytest.mark.long), pytest.param(True, marks=pytest.mark.slow)]
)
def test_nothing_of_the_workers_is_left_in_the_temporary_folder(
    stopped: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a socket there, and is killed at the end."""
    arguments = arguments_for(photos, tmp_path, "--workers", "2", "--augment-on", "workers", "--model", "mlp")
    with tempfile.TemporaryDirectory() as folder:  # a socket's path may have 107 bytes
        monkeypatch.setenv("TMPDIR", folder)
        if stopped:
            trainer = start(arguments)
            assert [*Path(folder).glob("pymp-*/listener-*")]
            trainer.terminate()
            trainer.communicate(timeout=PATIENCE_S)
            assert trainer.returncode == 143
        else:
            arguments[arguments.index("--epochs") + 1] = "1"
            assert run_of(arguments, env=dict(os.environ)).returncode == 0
        assert not [*Path(folder).glob("pymp-*")]


@pytest.mark.slow
def test_a_trainer_that_is_killed_takes_its_workers_along_and_continues(photos: Path, tmp_path: Path) -> None:
    arguments = arguments_for(photos, tmp_path, "--workers", "2")
    trainer = start(arguments, epochs=2)
    workers = children(trainer.pid)
    os.kill(workers[0], signal.SIGSTOP)  # it could not end by itself
    trainer.kill()
    wait_until(lambda: all(map(is_gone, workers)))
    trainer.communicate()
    assert len(last(tmp_path / "x")["progress"]["history"]) >= 1, "at most one epoch is lost"
    continues(arguments)


@pytest.mark.long
def test_a_run_that_is_killed_twice_and_resumed_ends_as_one_that_is_not(photos: Path, tmp_path: Path) -> None:
    levers = ["--epochs", "8", "--augment", "strong", "--ema", "0.9", "--dropout", "0.3", "--mixup", "0.4"]
    assert main(arguments_for(photos, tmp_path / "whole", "--workers", "0", *levers)) == 0
    resumed = arguments_for(photos, tmp_path, "--workers", "0", *levers, "--resume", "auto")
    for epochs in (1, 3):
        trainer = start(resumed, epochs)
        trainer.kill()
        trainer.communicate()
    assert main(resumed) == 0
    assert same(last(tmp_path / "x"), last(tmp_path / "whole" / "x"))
    assert (tmp_path / "latest").resolve() == tmp_path / "x"


@pytest.mark.slow
def test_within_a_long_epoch_checkpoints_are_made_by_time(photos: Path, tmp_path: Path) -> None:
    arguments = arguments_for(photos, tmp_path, "--workers", "0")
    arguments[arguments.index("--batch-size") + 1] = "2"
    script = "import sys; from training import __main__; from training.engine import checkpoint; "
    script += "checkpoint.SAVE_EVERY_S = 0; __main__.main(sys.argv[1:])"
    trainer = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "x" / "checkpoints" / "previous.pt").exists)
    trainer.kill()
    trainer.wait()
    progress = last(tmp_path / "x")["progress"]
    assert not progress["history"]
    assert 0 < progress["step"] < 20, "of 30 or more"
    continues(arguments)


@pytest.mark.slow
def test_a_run_that_never_came_to_a_checkpoint_leaves_its_name_free(photos: Path, tmp_path: Path) -> None:
    arguments = arguments_for(photos, tmp_path, "--workers", "0")
    first = subprocess.Popen([sys.executable, "-m", "training", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "x" / ".lock").exists)
    first.kill()
    first.wait()
    with pytest.raises(Interrupted):
        train.train(options("train", [*arguments, "--seed", "1"]), After(0))
    assert main(arguments) == 2, "now there is something to lose"


def test_want_of_memory_has_one_name_in_every_place() -> None:
    for demand in (lambda: torch.empty(10**14), lambda: np.empty(10**15), lambda: bytearray(10**16)):
        with pytest.raises((MemoryError, RuntimeError)) as error:
            demand()
        assert failures.is_short_of_memory(error.value)
    assert not failures.is_short_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("message", "kind", "said"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OutOfMemory, "out of memory on"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", OutOfMemory, "out of memory on"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", DeviceFailed, "CUDNN_STATUS_EXECUTION_FAILED; another --batch"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `x`", DeviceFailed, "CUBLAS_STATUS_EXECUTION_FAILED"),
        ("GET was unable to find an engine to execute this computation", DeviceFailed, "unable to find an engine"),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError, "^mat1 and mat2"),
    ],
)
def test_errors_of_the_gpu_s_libraries_have_a_name_and_an_exit_code(
    tmp_path: Path, message: str, kind: type[Exception], said: str
) -> None:
    """PyTorch raises them as RuntimeError; one of our own stays what it is."""
    with pytest.raises(kind, match=said) as error, failures.explain_errors(tmp_path, torch.device("cpu")):
        raise RuntimeError(message)
    assert type(error.value) is kind
    assert EXIT_CODES.get(kind) == (None if kind is RuntimeError else 5)
    assert kind is RuntimeError or kind in HINTS


def test_want_of_memory_in_a_resumed_run_of_an_older_version_keeps_its_name(tmp_path: Path) -> None:
    """Its config.yaml has an option that its network does not use, and that is refused elsewhere."""
    (tmp_path / "config.yaml").write_text("model: cnn\nhidden: [512, 128]\nbatch_size: 7\n")
    with pytest.raises(OutOfMemory, match="--batch-size 7 "), failures.explain_errors(tmp_path, torch.device("cpu")):
        raise MemoryError


@pytest.mark.long
def test_want_of_memory_on_the_host_says_what_took_it(photos: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", "--workers", "0", "--augment", "none"]
    arguments += ["--width", "256", "--image-size", "224", "--batch-size", "64", "--epochs", "1"]
    limit = 3 * 2**30
    done = run_of(arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert done.returncode == 5, done.stderr
    assert "error: out of memory on cpu, " in done.stderr
    assert " GiB used at most with --batch-size 64 --image-size 224 --workers 0: " in done.stderr
    assert "a smaller --batch-size or --image-size" in done.stderr
    with pytest.raises(Interrupted):  # as advised
        train.train(options("train", [*arguments, "--width", "8", "--image-size", "16"]), After(0))


@pytest.mark.slow
def test_values_that_are_not_finite_in_validation_alone_end_the_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Running variances that overflowed: batch normalisation goes by them in validation, not in training."""
    common: dict[str, Any] = {
        "data": photos,
        "out": tmp_path,
        "width": 8,
        "image_size": 16,
        "batch_size": 16,
        "epochs": 1,
    }
    origin = train.train(TrainConfig(**common, name="origin"))
    state = checkpoint.load(origin / "checkpoints" / "best.pt", torch.device("cpu"))
    for name, tensor in state["model"].items():
        if name.endswith("running_var"):
            tensor.fill_(float("nan"))
    checkpoint.save(state, tmp_path / "broken.pt")
    latest = (tmp_path / "latest").resolve()
    common_arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", "--workers", "0", *SMALL]
    assert main([*common_arguments, "--init-from", str(tmp_path / "broken.pt")]) == 4
    assert "not finite on the val split" in capsys.readouterr().err
    assert not (tmp_path / "x" / "checkpoints" / "best.pt").exists()
    assert not (tmp_path / "x" / "model.onnx").exists()
    seen = history.read(tmp_path / "x")
    assert seen is not None
    assert (list(seen.epochs), seen.diverged) == ([], "the model gives values that are not finite on the val split")
    assert (tmp_path / "latest").resolve() == latest


def test_a_loss_that_is_not_finite_names_images_of_its_step(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_for(photos, tmp_path, "--workers", "0", "--model", "mlp", "--hidden", "8", "--lr", "1e30")
    assert main(arguments) == 4
    said = capsys.readouterr().err
    assert "error: the loss is " in said
    named = said.partition("of that step's 8 images the first are ")[2].strip().split(", ")
    assert len(named) == 5
    assert all((photos / name).is_file() for name in named)


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "CMYK.jpg": lambda photo: forged.encoded(photo.convert("CMYK"), "JPEG"),
    "16 bits.png": lambda photo: forged.encoded(
        Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257), "PNG"
    ),
    "palette.png": lambda photo: forged.encoded(photo.quantize(64), "PNG"),
    "RGBA.png": lambda photo: forged.encoded(Image.merge("RGBA", (*photo.split(), photo.getchannel(0))), "PNG"),
    "turned.jpg": lambda photo: forged.encoded(photo, "JPEG", exif=forged.exif(6)),
}


@pytest.mark.slow
def test_images_of_every_kind_are_learned_from_as_the_service_sees_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(150):
        label, kind = "ab"[number % 2], list(KINDS)[number % 5]
        pixels = np.clip(rng.normal((70, 180)[number % 2], 30, (24, 36, 3)), 0, 255).astype(np.uint8)
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / label / f"{number} {kind}").write_bytes(KINDS[kind](Image.fromarray(pixels)))
    config = TrainConfig(data=tmp_path / "data", out=tmp_path, name="x", width=8, image_size=16, epochs=1)
    run = train.train(config)
    parity = json.loads((run / "report" / "report.json").read_text())["parity"]
    assert parity["held"]
    assert [way["pixels_equal"] for way in parity["comparisons"]] == [1, 1]
    seen, served = load_dataset(config), open_model(run / "model.onnx").card.preprocessing
    assert {file.mode for file in seen.audit.images.files} >= {"CMYK", "RGBA"}
    assert {file.orientation for file in seen.audit.images.files} == {1, 6}
    for key, image in zip(seen.keys, seen.images, strict=True):
        assert np.array_equal(image, served((tmp_path / "data" / key).read_bytes())), key


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may have two names
    path.write_bytes(content)


def _hostile(path: Path) -> None:
    path.unlink()
    checkpoint.save({"model": Canary(path.with_name("canary"))}, path)


def _of_another_network(path: Path) -> None:
    state = checkpoint.load(path, torch.device("cpu"))
    state["settings"]["model"]["width"] = 9
    path.unlink()
    checkpoint.save(state, path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_truncated, "its digest does not fit"),
        (_flipped, "its digest does not fit"),
        (_hostile, "not a checkpoint of tensors and plain values"),
        (_of_another_network, "holds another run: settings.model.width was 9, now it is 8"),
    ],
)
def test_checkpoints_that_cannot_be_trusted_are_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], said: str
) -> None:
    arguments = arguments_for(photos, tmp_path, "--workers", "0")
    with pytest.raises(Interrupted):
        train.train(options("train", arguments), After(3))
    kept = tmp_path / "x" / "checkpoints"
    shutil.copy(kept / "last.pt", kept / "previous.pt")
    shutil.copy(kept / "last.pt.sha256", kept / "previous.pt.sha256")
    for name in ("last.pt", "previous.pt"):
        harm(kept / name)
    assert main([*arguments, "--resume", "auto"]) == 7
    error = capsys.readouterr().err
    assert said in error
    assert str(kept) in error
    assert not (kept / "canary").exists()


@pytest.fixture
def strange() -> Iterator[tuple[Path, list[str]]]:
    """A folder that everybody may enter, and the words that make somebody without a name run a command."""
    words = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    probe = subprocess.run([*words, sys.executable, "-c", "import torch"], cwd=ROOT, capture_output=True, check=False)
    if shutil.which("setpriv") is None or probe.returncode:
        pytest.skip("nobody else can run this here")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder), words


@pytest.mark.slow
def test_a_folder_of_somebody_else_is_refused_before_any_data_is_read(strange: tuple[Path, list[str]]) -> None:
    folder, words = strange
    begun = time.monotonic()
    done = run_of(["--data", f"{folder}/absent", "--out", str(folder), "--name", "x"], *words)
    assert time.monotonic() - begun < PATIENCE_S
    assert done.returncode == 6, "absent data would have been 3"
    assert f"Permission denied: '{folder}/x'" in done.stderr
    assert "--out and --cache name folders that may be written to" in done.stderr


@pytest.mark.long
def test_a_run_needs_no_name_no_home_no_locale_and_no_clock(strange: tuple[Path, list[str]]) -> None:
    folder, words = strange
    rng = np.random.default_rng(0)
    for number in range(60):
        label = folder / "data" / ("Gr\u00f6\u00dfe", "na\u00efve")[number % 2]
        label.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(60 + number % 2 * 120, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
        (label / f"{number}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        os.utime(label / f"{number}.png", (4e9, 4e9))  # in the year 2096
    (folder / "out").mkdir(mode=0o777)
    (folder / "out").chmod(0o777)
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"}
    environment |= {"OMP_NUM_THREADS": "1"}
    arguments = ["--data", f"{folder}/data", "--out", f"{folder}/out", "--name", "x", "--epochs", "2", "--width", "8"]
    done = run_of(arguments, *words, env=environment, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stderr
    card = open_model(folder / "out" / "x" / "model.onnx").card
    assert card.classes == ("Gr\u00f6\u00dfe", "na\u00efve")
    age = datetime.now(UTC) - datetime.fromisoformat(card.provenance.created)
    assert 0 <= age.total_seconds() < 600
    for name in ("report.html", "report.md", "report.json"):
        assert "Gr\u00f6\u00dfe" in (folder / "out" / "x" / "report" / name).read_text(encoding="utf-8")
    os.utime(folder / "out" / "x" / "config.yaml", (4e9, 4e9))
    again = run_of([*arguments, "--resume", "auto"], *words, env=environment)
    assert again.returncode == 0, again.stderr
    assert "nothing to resume" in again.stdout


def mounted(script: str) -> "subprocess.CompletedProcess[str]":
    """A shell script in which file systems can be mounted that nobody else sees; `train` runs a trainer."""
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("mounts are not allowed here")
    text = f'train() {{ "{sys.executable}" -m training "$@"; }}\n{script}'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


def quoted(arguments: list[str]) -> str:
    return " ".join(f"'{argument}'" for argument in arguments)


@pytest.mark.slow
def test_a_read_only_folder_is_refused_before_any_data_is_read(tmp_path: Path) -> None:
    done = mounted(f"mount -t tmpfs -o ro none {tmp_path}; train --data absent --out {tmp_path} --name x; echo $?")
    assert done.stdout == "6\n", "absent data would have been 3"
    assert f"Read-only file system: '{tmp_path}/x'" in done.stderr


@pytest.mark.long
def test_shared_memory_too_small_for_the_workers_is_said_at_once(photos: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photos), "--out", str(tmp_path), "--name", "x", "--image-size", "224", "--width", "8"]
    arguments += ["--batch-size", "16", "--workers", "2", "--epochs", "1"]
    done = mounted(f"mount -t tmpfs -o size=4m none /dev/shm; train {quoted(arguments)}; echo exit $?")
    assert done.stdout.endswith("exit 6\n")
    assert "error: /dev/shm has no room for the batches of the data workers: `docker run --shm-size 2g`" in done.stderr
    with pytest.raises(Interrupted):
        train.train(options("train", [*arguments, "--workers", "0"]), After(0))


@pytest.mark.long
def test_a_disk_that_is_full_during_a_checkpoint_leaves_the_one_before(photos: Path, tmp_path: Path) -> None:
    """A checkpoint takes 1.9 MB; there is room for two, and the third is what replaces the oldest."""
    common: dict[str, Any] = {
        "model": "mlp",
        "hidden": "200",
        "image-size": "16",
        "workers": "0",
        "augment": "none",
        "epochs": "4",
    }
    arguments = ["--data", str(photos), "--cache", f"{tmp_path}/cache", "--out", f"{tmp_path}/out", "--name", "x"]
    arguments += [word for name, value in common.items() for word in (f"--{name}", value)]
    (tmp_path / "out").mkdir()
    done = mounted(
        f"mount -t tmpfs -o size=5000k none {tmp_path}/out; train {quoted(arguments)}; echo exit $?\n"
        f"cp -r {tmp_path}/out {tmp_path}/then; mount -o remount,size=100m {tmp_path}/out\n"
        f"train {quoted(arguments)} --resume auto; echo exit $?; cp -r {tmp_path}/out {tmp_path}/end"
    )
    assert "exit 6\n" in done.stdout, done.stdout + done.stderr
    assert f"No space left on device: '{tmp_path}/out/x/checkpoints/" in done.stderr
    assert "make room there; every file saved before is complete" in done.stderr
    kept = tmp_path / "then" / "x" / "checkpoints"
    assert not list(kept.glob(".*partial"))
    before = checkpoint.load(kept / "last.pt", torch.device("cpu"))["progress"]
    assert f"resume {tmp_path}/out/x: epoch {len(before['history']) + 1}," in done.stdout
    assert done.stdout.count("exit 0\n") == 1
    assert (tmp_path / "end" / "x" / "report" / "report.html").exists()


@pytest.mark.long
@pytest.mark.parametrize("place", ["tensorboard", ".report"])
def test_a_disk_that_is_full_for_curves_or_report_costs_neither_result_nor_run(
    photos: Path, tmp_path: Path, place: str
) -> None:
    arguments = arguments_for(photos, tmp_path, "--workers", "0", "--cache", f"{tmp_path}/cache")
    arguments[arguments.index("--epochs") + 1] = "3"
    with pytest.raises(Interrupted):
        train.train(options("train", arguments), After(9))
    run = tmp_path / "x"
    full = run / place
    full.mkdir(exist_ok=True)
    again = quoted([*arguments, "--resume", "auto"])
    done = mounted(f"mount -t tmpfs -o size=16k none {full}; train {again}; echo exit $?")
    assert done.stdout.endswith("exit 6\n"), done.stdout + done.stderr
    assert "error: [Errno 28] " in done.stderr
    assert f"'{run}" in done.stderr
    assert not (run / "report").exists()
    assert not (tmp_path / "latest").exists()
    assert "Traceback" not in done.stderr, "of a thread that writes, too"
    assert (run / "checkpoints" / "best.pt").exists()
    assert main([*arguments, "--resume", "auto"]) == 0
    assert (run / "report" / "report.html").exists()
    assert (tmp_path / "latest").resolve() == run


@pytest.fixture(scope="module")
def many(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images that reading and validating them takes seconds."""
    root = tmp_path_factory.mktemp("many")
    for number in range(15):
        shutil.copytree(photos, root, dirs_exist_ok=True, copy_function=_copy_as(number))
    return root


def _copy_as(number: int) -> Callable[[str, str], object]:
    def copy(source: str, target: str) -> None:
        pixels = cv2.imread(source)
        assert pixels is not None
        assert cv2.imwrite(
            str(Path(target).with_name(f"{number}.{Path(target).stem[-20:]}.png")), np.bitwise_xor(pixels, number)
        )

    return copy


@pytest.mark.alone
@pytest.mark.parametrize("moment", ["reading", "validation", "save"])
def test_sigterm_at_any_moment_ends_within_25_seconds_and_the_run_continues(
    many: Path, tmp_path: Path, moment: str
) -> None:
    larger = {"save": ["--model", "mlp", "--hidden", "3000"], "validation": ["--width", "64"]}.get(moment, [])
    arguments = arguments_for(many, tmp_path, "--workers", "0", "--val-fraction", "0.6", *larger)
    run = tmp_path / "x"
    sign = {"reading": ".lock", "validation": "validates", "save": "checkpoints/.best.pt.partial"}[moment]
    # There shall be no checkpoint within the epoch, and a file when validation begins.
    script = "import os, pathlib, sys; from training import __main__; from training.engine import checkpoint, loop; "
    script += "checkpoint.SAVE_FIRST_S = 600; validate = loop.validate; "
    script += (
        f"loop.validate = lambda *given: (pathlib.Path({str(run / 'validates')!r}).touch(), validate(*given))[1]; "
    )
    script += "os._exit(__main__.main(sys.argv[1:]))"
    trainer = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until((run / sign).exists, 120)
    time.sleep(0.3 if moment == "reading" else 0)
    asked = time.monotonic()
    trainer.terminate()
    printed, errors = trainer.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - asked < 25
    assert trainer.returncode == 143, errors
    assert "Traceback" not in errors
    assert ("epoch" in printed) == (moment == "save")
    assert (run / "checkpoints" / "last.pt").exists() == (moment != "reading")
    if moment == "reading":
        assert "device" not in printed, "nothing was trained yet"
        with pytest.raises(Interrupted):
            train.train(options("train", arguments), After(0))
    else:
        continues(arguments)
