"""Every row of the table of bad inputs, against the real server process; and with a guard removed the row fails."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from PIL import Image

from tests.support import bad_images, bad_requests  # noqa: F401 (each puts its rows into the table)
from tests.support.bad_inputs import GOOD, MIB, ROWS, Reply, Row, Sent
from tests.support.forged import chunk, encoded, flat, png_with
from tests.support.processes import wait_until
from tests.support.replies import metric
from tests.support.watched_server import SETTLE_S, Watched, watched
from tests.support.wire import FORM, connect, exchange, form, part, request, upload

SPARE = 1
"""The thread that watches the model file starts when it first looks."""
PATHS_OF_ONES_OWN = {8, 10}
"""Rows of paths that anybody may make up: none becomes a metric series."""


def failed_requests(metrics: str) -> list[str]:
    return [line for line in metrics.splitlines() if 'status="5' in line]


def series(metrics: str) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in metrics.splitlines() if not line.startswith("#")}


@pytest.fixture(scope="module")
def attacked(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(run / "model.onnx", tmp_path_factory.mktemp("attacked")) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server with limits of one second, so that the tests of slow senders are quick."""
    with watched(run / "model.onnx", tmp_path_factory.mktemp("hasty"), TWINLENS_TIMEOUT_S="1") as server:
        yield server


def check(server: Watched, row: Row) -> None:
    """Send each request of a row; afterwards everything must be as if it had never come."""
    sent = row.build(server.surroundings)
    files, metrics = server.files(), server.metrics()
    for name, each in sent.items():
        before, cpu_s = server.forget_peak(), server.cpu_s()
        reply = answer(server, each)
        what = f"{row} {name}: {reply.status} {reply.code} {reply.body[:200]!r}"
        assert reply.status in row.statuses, what
        assert reply.code in row.codes, what
        assert_plain(reply, what)
        took = server.cpu_s() - cpu_s
        assert took <= row.seconds + 0.02, f"{took:.2f} s: {what}"  # 0.02: the step of the clock
        grown = (server.peak() - before) / MIB
        assert grown <= row.mebibytes, f"{grown:.0f} MiB: {what}"
    assert exchange(server.address, request(method="GET", target="/readyz", length=None)).status == 200
    assert exchange(server.address, GOOD).body == server.golden
    assert not server.surroundings.canary.exists()
    assert server.callers == []
    after = server.metrics()
    assert failed_requests(after) == failed_requests(metrics)
    if row.number in PATHS_OF_ONES_OWN:
        assert series(after) == series(metrics)
    wait_until(
        lambda: server.files() <= files and server.worker.num_threads() <= server.threads + SPARE,
        SETTLE_S,
        lambda: (server.files() - files, server.worker.num_threads(), server.threads),
    )


def answer(server: Watched, sent: Sent) -> Reply:
    return exchange(server.address, sent) if isinstance(sent, bytes) else sent(server.address)


def assert_plain(reply: Reply, what: str) -> None:
    """Nothing of a file, of a path, of a name that was sent, or of a library's words is in a reply."""
    hostname = Path("/etc/hostname").read_text().strip() if Path("/etc/hostname").exists() else "?"
    for word in ("Traceback", "site-packages", "cv2", "onnx", "x-leaked", str(Path.cwd())):
        assert word not in reply.body.decode("latin-1"), what
    assert not (hostname and f'"{hostname}' in reply.body.decode("latin-1")), what
    assert "x-injected" not in reply.headers, what


@pytest.mark.parametrize("row", [row for row in ROWS if not row.slow_sender], ids=str)
def test_a_bad_input_gets_its_answer_and_leaves_nothing_behind(attacked: Watched, row: Row) -> None:
    check(attacked, row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.slow_sender], ids=str)
def test_a_sender_that_is_too_slow_gets_its_answer_and_leaves_nothing_behind(hasty: Watched, row: Row) -> None:
    check(hasty, row)


def test_every_row_of_the_list_is_here() -> None:
    tests_of_their_own = {76, 86}
    assert {row.number for row in ROWS} == set(range(1, 97)) - tests_of_their_own


def test_only_the_port_of_the_service_listens(attacked: Watched) -> None:
    """BentoML's supervisor would run commands of any user of the machine that come to two more."""
    supervisor = attacked.worker.parent()
    assert supervisor is not None
    processes = [supervisor, *supervisor.children(recursive=True)]
    connections = [one for process in processes for one in process.net_connections()]
    ports = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    assert ports == {urlsplit(attacked.address).port}


def test_fifty_at_once_are_all_answered(attacked: Watched) -> None:
    """Every request gets its own answer or a 429; none is dropped."""
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda _: exchange(attacked.address, GOOD), range(50)))
    assert {reply.status for reply in replies} <= {200, 429}
    assert {reply.body for reply in replies if reply.status == 200} == {attacked.golden}
    assert all(reply.headers.get("retry-after") for reply in replies if reply.status == 429)


def test_eight_bombs_at_once_are_refused_and_stay_within_a_gibibyte(attacked: Watched) -> None:
    """Row 86: what claims too much, and images just under the limit, all together."""
    bombs = [upload(flat(8000, 8000, "L")), *[upload(flat(6300, 6300, mode)) for mode in ("L", "RGBA")]]
    before = attacked.forget_peak()
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda index: exchange(attacked.address, bombs[index % 3]), range(8)))
    assert {reply.status for reply in replies[::3]} <= {422, 429}
    assert {reply.status for reply in replies} <= {200, 422, 429, 504}
    assert attacked.peak() < 1024 * MIB, f"{before / MIB:.0f} MiB before, {attacked.peak() / MIB:.0f} MiB now"
    assert exchange(attacked.address, GOOD).body == attacked.golden


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.parametrize(
    ("guard", "number"),
    [
        ("byte_limit", 49),
        ("content_type", 19),
        ("pixel_limit", 80),
        ("scans", 84),
        ("segments", 84),
        ("claims", 75),
        ("image_errors", 69),
    ],
)
def test_without_its_guard_a_row_fails(run: Path, tmp_path: Path, guard: str, number: int) -> None:
    with watched(run / "model.onnx", tmp_path, "tests.support.mutants:Twinlens", MUTANT=guard) as server:
        failures = []
        for row in (row for row in ROWS if row.number == number):
            try:
                check(server, row)
            except (AssertionError, OSError) as error:
                failures.append(str(error))
    assert failures, f"{guard} guards nothing that row {number} sees"


@pytest.mark.alone
@pytest.mark.long
def test_a_stock_endpoint_calls_the_listener(run: Path, tmp_path: Path) -> None:
    """Proof that the listener detects a fetch: BentoML fetches the URL in a text field in place of a file."""
    with (
        watched(run / "model.onnx", tmp_path, "tests.support.stock:Stock") as server,
        connect(server.address) as connection,
    ):
        connection.sendall(bad_requests.field(server.surroundings.listener))
        wait_until(lambda: bool(server.callers), SETTLE_S)
        for caller, _ in server.callers:
            caller.close()


@pytest.mark.alone
def test_twenty_timeouts_in_a_row_leave_nothing_running(run: Path, tmp_path: Path) -> None:
    """The model takes 1.5 s and the deadline is 0.5 s, so each request gets a 504."""
    image = encoded(Image.new("RGB", (64, 64)), "PNG")
    black, two = upload(image), form(*[part(image, 'form-data; name="images"; filename="a.png"')] * 2)
    environment = {"MUTANT": "slow", "TWINLENS_TIMEOUT_S": "0.5"}
    with watched(run / "model.onnx", tmp_path, "tests.support.mutants:Twinlens", **environment) as server:
        ran = metric(server.metrics(), "twinlens_batch_size_sum")
        assert [exchange(server.address, black).code for _ in range(20)] == ["deadline_exceeded"] * 20
        batch = request(two, FORM, target="/predict_batch")
        assert exchange(server.address, batch).code == "deadline_exceeded"
        wait_until(lambda: exchange(server.address, GOOD).body == server.golden, SETTLE_S)
        metrics = server.metrics()
        assert metric(metrics, "twinlens_batch_size_sum") - ran <= 10, "the model ran for clients that had gone"
        assert metric(metrics, "twinlens_images_in_flight") == 0
        assert server.worker.num_threads() <= server.threads + SPARE


@pytest.mark.alone
def test_a_decoder_that_crashes_takes_one_request_with_it(run: Path, tmp_path: Path) -> None:
    """Row 76: images are decoded in the worker, so it goes down; another answers within 30 s."""
    with watched(run / "model.onnx", tmp_path, "tests.support.mutants:Twinlens", MUTANT="crash") as server:
        reply = exchange(server.address, upload(png_with(chunk(b"tEXt", b"a\0crash here"))))
        assert reply.status == 0
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if exchange(server.address, GOOD).body == server.golden:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError("nobody answers after 30 s")
