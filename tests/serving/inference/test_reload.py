import asyncio
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.contract import drift
from serving.contract.files.signature import PublicKey
from serving.contract.model import Classifier, open_model
from serving.inference import reload
from serving.inference.reload import FIRST_PAUSE_S, LONGEST_PAUSE_S, Reloader
from serving.metrics import ReloadOutcome
from tests.support.forged_models import REFUSED, rewritten
from tests.support.pictures import COLOURS, picture
from tests.support.replies import error, metric
from tests.support.server import serving
from tests.support.signed import keys, sign

OTHER = {"Red rash": "redness", "blue": "blueness", "green leaf": "greenness"}
WAIT_S = 30


@pytest.fixture(scope="module")
def models(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that name the same classes differently, and one that is refused."""
    folder = tmp_path_factory.mktemp("models")

    def renamed(graph: object, card: dict[str, Any]) -> dict[str, Any]:
        return card | {"version": "other", "classes": [OTHER[name] for name in card["classes"]]}

    return {
        "first": run / "model.onnx",
        "other": rewritten(run / "model.onnx", folder / "other.onnx", renamed),
        "refused": rewritten(run / "model.onnx", folder / "refused.onnx", REFUSED["other pixels"][0]),
    }


def publish(model: Path, link: Path) -> None:
    """As training does: a symlink to a folder that holds the model, moved in one step."""
    folder = link.parent / f"run-{time.monotonic_ns()}"
    folder.mkdir()
    shutil.copy(model, folder / "model.onnx")
    new = link.with_name(".new")
    new.symlink_to(folder.name)
    new.replace(link)


class Watched:
    """A reloader on a real file; records the outcomes and the served model."""

    def __init__(self, path: Path) -> None:
        self.serving: Classifier | None = None
        self.outcomes: list[ReloadOutcome] = []
        self.opened = 0
        self.reloader = Reloader(path, self.open, self.serve, self.outcomes.append)

    def open(self, path: Path) -> Classifier:
        self.opened += 1
        return open_model(path)

    def serve(self, classifier: Classifier) -> None:
        self.serving = classifier

    @property
    def version(self) -> str | None:
        return self.serving.card.version if self.serving else None


def test_a_moved_symlink_swaps_the_model(models: dict[str, Path], tmp_path: Path) -> None:
    publish(models["first"], tmp_path / "latest")
    watched = Watched(tmp_path / "latest" / "model.onnx")
    watched.reloader.start()
    first = watched.version
    publish(models["other"], tmp_path / "latest")
    watched.reloader.check()
    assert watched.version == first, "a file is left alone until it was the same at two checks"
    for _ in range(3):
        watched.reloader.check()
    assert (watched.version, watched.outcomes, watched.opened) == ("other", ["swapped"], 2)
    publish(models["other"], tmp_path / "latest")
    for _ in range(3):
        watched.reloader.check()
    assert (watched.version, watched.outcomes, watched.opened) == ("other", ["swapped", "unchanged"], 3)


def test_a_refused_file_is_tried_once_and_the_log_says_why(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(models["first"], path)
    watched = Watched(path)
    watched.reloader.start()
    first = watched.version
    shutil.copy(models["refused"], path)
    with caplog.at_level(logging.INFO, "bentoml.twinlens"):
        for _ in range(5):
            watched.reloader.check()
    assert (watched.version, watched.outcomes, watched.opened) == (first, ["refused"], 2)
    assert f"{path}: golden 0: resizing does not give the pixels of the training side" in caplog.text
    assert "the previous model still answers" in caplog.text
    shutil.copy(models["other"], path)
    for _ in range(2):
        watched.reloader.check()
    assert (watched.version, watched.outcomes) == ("other", ["refused", "swapped"])


def test_a_half_written_file_does_no_harm(models: dict[str, Path], tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", models["other"].read_bytes()
    shutil.copy(models["first"], path)
    watched = Watched(path)
    watched.reloader.start()
    with path.open("wb") as file:
        for start in range(0, len(data), len(data) // 4):
            file.write(data[start : start + len(data) // 4])
            file.flush()
            watched.reloader.check()
    assert watched.opened == 1, "while it grows it is not even opened"
    for _ in range(2):
        watched.reloader.check()
    assert (watched.version, watched.outcomes) == ("other", ["swapped"])


def test_a_file_that_goes_and_one_that_comes_late(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    watched = Watched(path)
    watched.reloader.start()
    assert watched.version is None
    shutil.copy(models["first"], path)
    for _ in range(2):
        watched.reloader.check()
    first = watched.version
    assert first is not None
    path.rename(tmp_path / "aside")
    for _ in range(2):
        watched.reloader.check()
    assert (watched.version, watched.outcomes) == (first, ["swapped", "missing"])
    (tmp_path / "aside").rename(path)
    for _ in range(3):
        watched.reloader.check()
    assert (watched.version, watched.outcomes) == (first, ["swapped", "missing", "unchanged"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the pauses are measured by."""
    now = [0.0]
    monkeypatch.setattr(reload, "monotonic", lambda: now[0])
    return now


def test_a_lack_of_memory_is_tried_again_after_growing_pauses_and_logged_once(
    models: dict[str, Path], tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.onnx"
    outcomes: list[ReloadOutcome] = []
    attempts: list[float] = []

    def out_of_memory(path: Path) -> Classifier:
        attempts.append(clock[0])
        raise MemoryError

    reloader = Reloader(path, out_of_memory, lambda classifier: None, outcomes.append)
    reloader.start()
    shutil.copy(models["first"], path)
    for clock[0] in range(0, 1000, 2):
        reloader.check()
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert pauses == [FIRST_PAUSE_S, 20, 40, 80, 160, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert outcomes == ["failed"] * len(attempts)
    assert caplog.text.count("no model answers yet, and it is tried again") == 1
    shutil.copy(models["other"], path)
    for _ in range(2):
        reloader.check()
    assert attempts[-1] == clock[0], "another file does not wait for the pause"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.sig"])
def test_a_file_that_could_not_be_read_is_tried_again(
    models: dict[str, Path], tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As on a share whose server was started again: the file is the same, and reading it failed."""
    private, public = keys(tmp_path)
    key = PublicKey.read(str(public))
    path = tmp_path / "model.onnx"
    outcomes: list[ReloadOutcome] = []
    opened: list[Classifier] = []
    reloader = Reloader(path, lambda path: open_model(path, key=key), opened.append, outcomes.append)
    reloader.start()
    shutil.copy(models["first"], path)
    sign(path, private)
    open_file = Path.open

    def stale(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return open_file(self, *arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", stale)
        for _ in range(5):
            reloader.check()
    reloader.check()
    assert (outcomes, opened) == (["failed"], [])
    clock[0] += FIRST_PAUSE_S
    reloader.check()
    assert (outcomes, len(opened)) == (["failed", "swapped"], 1)


def test_a_roll_back_from_a_file_that_could_not_be_loaded_is_the_published_one(
    models: dict[str, Path], tmp_path: Path, clock: list[float]
) -> None:
    """The model that answers is the published one again, without another attempt to load it."""
    link = tmp_path / "latest"
    outcomes: list[ReloadOutcome] = []

    def open_one(path: Path) -> Classifier:
        if link.readlink() == Path("new"):
            raise MemoryError
        return open_model(path)

    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        shutil.copy(models["first"], tmp_path / name / "model.onnx")
    link.symlink_to("old")
    reloader = Reloader(link / "model.onnx", open_one, lambda classifier: None, outcomes.append)
    reloader.start()
    for target in ("new", "old"):
        link.unlink()
        link.symlink_to(target)
        for _ in range(3):
            reloader.check()
    assert outcomes == ["failed", "unchanged"]


def test_a_missing_signature_is_a_verdict(models: dict[str, Path], tmp_path: Path, clock: list[float]) -> None:
    _, public = keys(tmp_path)
    key = PublicKey.read(str(public))
    outcomes: list[ReloadOutcome] = []
    path = tmp_path / "model.onnx"
    reloader = Reloader(path, lambda path: open_model(path, key=key), lambda classifier: None, outcomes.append)
    reloader.start()
    shutil.copy(models["first"], path)
    for _ in range(5):
        clock[0] += LONGEST_PAUSE_S
        reloader.check()
    assert outcomes == ["refused"]


def test_a_model_that_fails_as_it_begins_to_answer_does_not_end_the_watch(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Its largest batch may need more memory than there is."""
    path = tmp_path / "model.onnx"
    outcomes: list[ReloadOutcome] = []
    answering: list[str] = []

    def serve(classifier: Classifier) -> None:
        if classifier.card.version == "other":
            raise RuntimeError("Failed to allocate memory")
        answering.append(classifier.card.version)

    async def watch() -> None:
        watching = asyncio.create_task(reloader.watch(0.02))
        for model in ("other", "first"):
            before = len(outcomes)
            shutil.copy(models[model], path)
            async with asyncio.timeout(WAIT_S):
                while len(outcomes) == before:
                    await asyncio.sleep(0.02)
        watching.cancel()

    reloader = Reloader(path, open_model, serve, outcomes.append)
    reloader.start()
    asyncio.run(watch())
    assert outcomes == ["failed", "swapped"]
    assert answering == [open_model(models["first"]).card.version]


def label_drifts_above(address: str) -> float:
    return metric(httpx.get(f"{address}/metrics").text, "twinlens_drift_limit", feature="label")


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + WAIT_S
    while not (held := holds()) and time.monotonic() < until:
        time.sleep(0.1)
    return held


@pytest.fixture
def home(tmp_path: Path) -> dict[str, Any]:
    return {"BENTOML_HOME": str(tmp_path / "home"), "TWINLENS_RELOAD_S": "0.2"}


def threads(address: str) -> int:
    """Of the worker behind this address."""
    port = str(httpx.URL(address).port).encode()
    [server] = [folder for folder in Path("/proc").glob("[0-9]*") if port in command(folder)]
    [worker] = (server / "task" / server.name / "children").read_text().split()
    return len(list(Path("/proc", worker, "task").iterdir()))


def command(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
        return []


@pytest.mark.slow
def test_swaps_under_load_lose_no_request_and_every_answer_is_its_models(
    models: dict[str, Path], tmp_path: Path, home: dict[str, Any], png: Callable[..., bytes]
) -> None:
    link = tmp_path / "latest"
    publish(models["first"], link)
    first = open_model(models["first"]).card.version
    names = {first: dict(zip(COLOURS, COLOURS, strict=True)), "other": OTHER}
    images = {label: png(picture(label)) for label in COLOURS}
    answers: list[tuple[str, httpx.Response]] = []
    done = threading.Event()

    def post(address: str, turn: int) -> None:
        with httpx.Client(timeout=WAIT_S) as client:
            while not done.is_set():
                label = list(COLOURS)[turn % 3]
                answers.append((label, client.post(f"{address}/predict", files={"image": images[label]})))
                turn += 1

    with serving(link / "model.onnx", TWINLENS_DRIFT_LIMITS=f"{first}:label=0.4", **home) as address:
        assert label_drifts_above(address) == 0.4
        clients = [threading.Thread(target=post, args=(address, turn)) for turn in range(8)]
        for client in clients:
            client.start()

        def version() -> str:
            return httpx.get(f"{address}/model", timeout=WAIT_S).json()["version"]

        def serves(model: str) -> bool:
            return version() == {"first": first}.get(model, model)

        def refused() -> float:
            text = httpx.get(f"{address}/metrics", timeout=WAIT_S).text
            return metric(text, "twinlens_reloads_total", outcome="refused")

        try:
            assert eventually(lambda: len(answers) > 50)
            running = threads(address)
            for wanted in ("other", "first", "other", "first", "other"):
                publish(models[wanted], link)
                assert eventually(partial(serves, wanted))
            publish(models["refused"], link)
            assert eventually(lambda: refused() == 1)
            answered = len(answers)
            assert eventually(lambda: len(answers) > answered + 50)
            assert version() == "other"
            assert eventually(lambda: threads(address) <= running + 2), "the threads of replaced models have ended"
            assert label_drifts_above(address) == drift.LIMIT, "the limits set are those of the first model"
        finally:
            done.set()
            for client in clients:
                client.join()
        text = httpx.get(f"{address}/metrics").text
    assert {reply.status_code for _, reply in answers} == {200}
    versions = [reply.json()["model_version"] for _, reply in answers]
    assert set(versions) == {first, "other"}
    for (label, reply), version_ in zip(answers, versions, strict=True):
        assert reply.json()["label"] == names[version_][label]
    assert metric(text, "twinlens_reloads_total", outcome="swapped") == 5
    assert metric(text, "twinlens_model_info", version="other") == 1
    assert metric(text, "twinlens_model_info", version=first) == 0
    assert time.time() - 120 < metric(text, "twinlens_model_loaded_timestamp_seconds") < time.time()


def test_started_before_training_it_waits_and_becomes_ready(
    models: dict[str, Path], tmp_path: Path, home: dict[str, Any], png: Callable[..., bytes]
) -> None:
    link = tmp_path / "latest"
    image = {"image": png(picture("blue"))}
    with serving(link / "model.onnx", until="livez", **home) as address:
        assert httpx.get(f"{address}/readyz").status_code == 503
        for reply in (httpx.post(f"{address}/predict", files=image), httpx.get(f"{address}/model")):
            assert (reply.status_code, error(reply)) == (503, "no_model")
            assert int(reply.headers["retry-after"]) > 0
        assert "twinlens_reloads_total" in httpx.get(f"{address}/metrics").text
        publish(models["refused"], link)
        assert eventually(lambda: 'outcome="refused"} 1.0' in httpx.get(f"{address}/metrics").text)
        assert httpx.get(f"{address}/readyz").status_code == 503
        publish(models["first"], link)
        assert eventually(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        assert httpx.post(f"{address}/predict", files=image).json()["label"] == "blue"


@pytest.mark.slow
def test_every_worker_swaps(models: dict[str, Path], tmp_path: Path, home: dict[str, Any]) -> None:
    link = tmp_path / "latest"
    publish(models["first"], link)
    with serving(link / "model.onnx", TWINLENS_WORKERS="2", **home) as address:

        def counted(name: str, **labels: str) -> float:
            return metric(httpx.get(f"{address}/metrics").text, name, **labels)

        def both_have_loaded() -> bool:
            # A worker makes its file before it loads, and says 0 until it has: the least of both is 0 until then.
            started = len(list(tmp_path.rglob("gauge_livemin_*.db"))) == 2
            return started and counted("twinlens_model_loaded_timestamp_seconds") > 0

        assert eventually(both_have_loaded)
        publish(models["other"], link)
        assert eventually(lambda: counted("twinlens_reloads_total", outcome="swapped") == 2)
        assert {httpx.get(f"{address}/model").json()["version"] for _ in range(20)} == {"other"}
