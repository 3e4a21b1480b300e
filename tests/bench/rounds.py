"""What is measured in a round, and in which order."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from serving.contract.model import open_model
from tests.bench.limit import LIMIT, UNSEEN
from tests.bench.load import Outcome, closed_loop
from tests.bench.open_loop import open_loop
from tests.bench.pictures import CLASSES, ROOT, SIZES, picture
from tests.bench.process import SERVER_CORE, Process, Unavailable
from tests.bench.servers import Request, Server

CONCURRENCIES = (1, 8, 32)
WARM_UP_S = 1
SHARE_OF_CAPACITY = 0.7
REQUESTS_BEFORE_MEMORY = 2500
"""For each second that a block lasts."""
SECONDS_BEFORE_MEMORY = 20
"""A slow model answers fewer than that: as many as it answers in this time."""
T = TypeVar("T")


class Rounds:
    """What is sent, what the right answers are, and what has been measured so far: `blocks` of load, `processes`."""

    def __init__(self, servers: dict[Server, Path], model: Path, folder: Path, seconds: int) -> None:
        self.blocks: list[dict[str, Any]] = []
        self.processes: list[dict[str, Any]] = []
        self._servers, self._model, self._folder, self._seconds = servers, model, folder, seconds
        self._images = {size: [picture(label, size, UNSEEN) for label in range(CLASSES)] for size in SIZES}
        files = {server.file(model) for server in servers}
        self._labels = {file: {size: _labels(file, images) for size, images in self._images.items()} for file in files}
        self._random = random.Random(0)

    def run(self, number: int) -> None:
        """Start every server, load one at a time, watch them idle, stop them. Raises Unavailable."""
        with ExitStack() as stack:
            running = [self._start(number, server, stack) for server in self._shuffled(self._servers)]
            for size in SIZES:
                for concurrency in CONCURRENCIES:
                    for process in self._shuffled(running):
                        self._closed(process, size, concurrency)
                self._limit(number, size)
            common = SHARE_OF_CAPACITY * min(process.facts["capacity"] for process in running)
            for process in self._shuffled(running):
                self._open(process, "70 %", SHARE_OF_CAPACITY * process.facts["capacity"])
                self._open(process, "common", common)
            for process in self._shuffled(running):
                self._memory(process)
            self._idle(running)

    def _start(self, number: int, server: Server, stack: ExitStack) -> Process:
        """A server that has answered every image rightly, and sleeps."""
        process = Process(server, self._servers[server], server.file(self._model), self._folder / "servers")
        stack.callback(process.stop)
        ready_s = process.wait_until_ready(self._requests(process, "small")[0])
        process.facts |= {"round": number, "server": server.name, "ready_s": ready_s, "requests": 0}
        self.processes.append(process.facts)
        self._check(process)
        process.sleep()
        return process

    def _check(self, process: Process) -> None:
        """Raise Unavailable unless every image gets the label that the file gives it."""
        for size, labels in self._labels[process.server.file(self._model)].items():
            for request, label in zip(self._requests(process, size), labels, strict=True):
                try:
                    answer = process.ask(request)
                except httpx.HTTPError as error:
                    raise Unavailable(f"{process.server.name} does not answer: {error!r}") from error
                if answer != label:
                    raise Unavailable(f"{process.server.name} answers {answer!r} where the model says {label!r}")

    def _closed(self, process: Process, size: str, concurrency: int) -> None:
        """One block of closed-loop load, after a second of the same to warm up."""
        requests = self._requests(process, size)

        def load(seconds: int) -> Outcome:
            return closed_loop(process.address, requests, concurrency, seconds, self._folder)

        process.wake()
        load(WARM_UP_S)
        rps = self._measure(process, size, f"c = {concurrency}", lambda: load(self._seconds))
        process.sleep()
        if (size, concurrency) == ("small", CONCURRENCIES[-1]):
            process.facts["capacity"] = rps

    def _open(self, process: Process, load: str, rate: float) -> None:
        """One block of open-loop load with small images, `rate` requests a second."""
        requests, seed = self._requests(process, "small"), process.facts["round"]
        process.wake()
        # One seed a round: every server meets the same arrivals.
        self._measure(
            process, "small", load, lambda: open_loop(process.port, requests, rate, 2 * self._seconds, seed=seed)
        )
        process.sleep()

    def _measure(self, process: Process, size: str, load: str, run: Callable[[], Outcome]) -> float:
        """Record what came of `run` and the CPU time that the server spent on it; give the requests a second."""
        cpu_s, start = process.cpu_seconds(), time.perf_counter()
        outcome = run()
        cpu_s, wall_s = process.cpu_seconds() - cpu_s, time.perf_counter() - start
        if outcome.requests == 0:
            raise Unavailable(f"{process.server.name} answered nothing in {wall_s:.0f} s; is the machine too busy?")
        rps = outcome.requests / outcome.seconds
        where = {"round": process.facts["round"], "server": process.server.name, "image": size, "load": load}
        used = {"rps": rps, "cpu_us": cpu_s / outcome.requests * 1e6, "core_used": cpu_s / wall_s}
        self.blocks.append(where | asdict(outcome) | used)
        process.facts["requests"] += outcome.requests
        print("round {round}: {server}, {image}, {load}:".format_map(where), f"{rps:,.0f}/s", flush=True)
        return rps

    def _limit(self, number: int, size: str) -> None:
        """What the same core does without a server around it."""
        command = ["taskset", "--cpu-list", str(SERVER_CORE), sys.executable, "-m", "tests.bench.limit"]
        command += [str(self._model), size, str(self._seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        self.blocks.append({"round": number, "server": LIMIT, "image": size, "load": LIMIT} | json.loads(done.stdout))

    def _memory(self, process: Process) -> None:
        """Memory once the server has answered enough, and whether it still answers rightly."""
        requests, facts = self._requests(process, "small"), process.facts
        process.wake()
        enough = min(REQUESTS_BEFORE_MEMORY * self._seconds, SECONDS_BEFORE_MEMORY * facts["capacity"])
        while facts["requests"] < enough:
            more = closed_loop(process.address, requests, CONCURRENCIES[-1], WARM_UP_S, self._folder)
            if more.requests == 0:
                self._check(process)
            facts["requests"] += more.requests
        self._check(process)
        sizes = process.resident_bytes()
        facts |= {"largest_mb": sizes[0] / 1e6, "memory_mb": sum(sizes) / 1e6}

    def _idle(self, running: list[Process]) -> None:
        """The share of a core that each uses while nobody asks anything; all are awake."""
        time.sleep(1)
        seconds = 5 * self._seconds
        before = [process.cpu_seconds() for process in running]
        time.sleep(seconds)
        for process, used in zip(running, before, strict=True):
            process.facts["idle_percent"] = (process.cpu_seconds() - used) / seconds * 100

    def _requests(self, process: Process, size: str) -> list[Request]:
        return [process.server.encode(image) for image in self._images[size]]

    def _shuffled(self, items: Iterable[T]) -> list[T]:
        """In an order that is drawn anew, so that no server always comes after the same one."""
        drawn = list(items)
        self._random.shuffle(drawn)
        return drawn


def _labels(model: Path, images: list[bytes]) -> list[str]:
    classifier = open_model(model)
    rows = classifier.predict(np.stack([classifier.card.preprocessing(image) for image in images]))
    return [classifier.card.classes[index] for index in rows.argmax(1)]
