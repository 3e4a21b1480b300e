"""The results as the Markdown of tests/bench/README.md: figures, then the ratios with what they should be."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.limit import LIMIT
from tests.bench.servers import AGAIN, BENTOML, FASTAPI, INT8, LITSERVE, MLSERVER, OURS, RAW, SERVERS

ORDER = [*(server.name for server in SERVERS), LIMIT]
QUIET_PERCENT = 5
PACKAGE_OF = {BENTOML: "bentoml", FASTAPI: "fastapi", LITSERVE: "litserve", MLSERVER: "mlserver"}
RUNTIME = ("numpy", "opencv-python-headless", "onnxruntime-gpu")
TRUSTED = (0.97, 1.03)
"""The ratio of two processes of our own lies within these, or the run says nothing."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure of ours, over that of `peer` in the same round if there is one, and the bound it should keep."""

    what: str
    load: str
    figure: str
    ours: str = OURS
    peer: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def values(self, results: dict[str, Any], figure: str | None = None) -> list[float]:
        """One value a round; empty when one of the two was not measured."""
        ours = by_round(results, self.ours, "small", self.load, figure or self.figure)
        if self.peer is None:
            return list(ours.values())
        theirs = by_round(results, self.peer, "small", self.load, figure or self.figure)
        return [ours[number] / theirs[number] for number in ours if number in theirs]

    def holds(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def bound(self) -> str:
        least = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        most = [] if self.at_most is None else [f"at most {self.at_most:g}"]
        return ", ".join(least + most)


C1, C32 = "c = 1", "c = 32"
PROCESS = "process"
GOALS = [
    Goal(what="ours / BentoML, requests/s", load=C32, figure="rps", peer=BENTOML, at_least=4.0),
    Goal(what="ours / FastAPI + ONNX Runtime, requests/s", load=C32, figure="rps", peer=FASTAPI, at_least=2.0),
    Goal(what="ours / LitServe, requests/s", load=C32, figure="rps", peer=LITSERVE, at_least=2.5),
    Goal(what="ours / MLServer, requests/s", load=C32, figure="rps", peer=MLSERVER),
    Goal(what="ours, raw body / in process, images/s", load=C32, figure="rps", ours=RAW, peer=LIMIT, at_least=0.6),
    Goal(what="ours / FastAPI + ONNX Runtime, p50", load=C1, figure="p50_ms", peer=FASTAPI, at_most=1.05),
    Goal(what="idle CPU of ours, %", load=PROCESS, figure="idle_percent", at_most=0.5),
    Goal(what="start to ready of ours, s", load=PROCESS, figure="ready_s", at_most=4.0),
    Goal(what="largest process of ours, MB", load=PROCESS, figure="largest_mb", at_most=350.0),
]
HEAVY = "lite0"
"""The model takes nearly all the time, whatever is around it."""
HEAVY_GOALS = [
    Goal(what="ours / FastAPI + ONNX Runtime, requests/s", load=C32, figure="rps", peer=FASTAPI, at_least=1.2),
    Goal(what="ours / FastAPI + ONNX Runtime, p50", load=C1, figure="p50_ms", peer=FASTAPI, at_most=1.05),
    Goal(what="ours, int8 / float32, requests/s", load=C1, figure="rps", ours=INT8, peer=OURS, at_least=1.8),
    Goal(what="ours, int8 / float32, requests/s", load=C32, figure="rps", ours=INT8, peer=OURS, at_least=1.8),
    Goal(what="ours, int8 / FastAPI, float32, requests/s", load=C32, figure="rps", ours=INT8, peer=FASTAPI),
]
CONTROLS = [
    Goal(what="ours / ours, requests/s", load=C32, figure="rps", peer=AGAIN, at_least=TRUSTED[0], at_most=TRUSTED[1]),
    Goal(what="ours / ours, p50", load=C1, figure="p50_ms", peer=AGAIN, at_least=TRUSTED[0], at_most=TRUSTED[1]),
]


def by_round(results: dict[str, Any], server: str, image: str, load: str, figure: str) -> dict[int, float]:
    """One figure of one server in one kind of block, by the number of the round."""
    rows = results["processes"] if load == PROCESS else results["blocks"]
    load = LIMIT if server == LIMIT else load
    return {
        row["round"]: row[figure]
        for row in rows
        if row["server"] == server
        and figure in row
        and (load == PROCESS or (row["image"], row["load"]) == (image, load))
    }


def markdown(results: dict[str, Any]) -> str:
    """Everything that a reader needs to judge, as tables."""
    parts = [
        _conditions(results),
        _figures(results, "3.9 KB JPEG, 120 x 100", "small", CLOSED + OPEN + STATE),
        _figures(results, "60 KB JPEG, 600 x 450", "large", CLOSED),
        _goals(results),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _conditions(results: dict[str, Any]) -> Iterator[str]:
    place = results["environment"]
    of = place["packages"]
    peers = [f"{name} {of[name][package]}" for name, package in PACKAGE_OF.items() if name in of]
    alike = [f"{package} {next(iter(of.values()))[package]}" for package in RUNTIME]
    yield f"{place['date']}, {place['processor']}, {place['cores']} cores, Python {place['python']}, {place['wrk']}."
    yield f"{OURS} {place['revision']} beside {', '.join(peers)}; in all of them {', '.join(alike)}, one thread."
    yield f"Model {results['model']}; medians over {results['rounds']} rounds of blocks of {results['seconds']} s."
    yield "The server has one core, the load generator the other. Images go as multipart where not said otherwise,"
    yield f"to {MLSERVER} as base64 in its protocol's JSON."
    yield from (f"Not measured: {reason}." for reason in results["unavailable"])
    if place["busy_before_percent"] > QUIET_PERCENT:
        yield f"The machine was not quiet: {place['busy_before_percent']} % of it was in use before the run."
    errors = sum(row.get("errors", 0) for row in results["blocks"])
    total = sum(row.get("requests", 0) for row in results["blocks"])
    yield f"{total:,} requests, {errors:,} errors."


Column = tuple[str, str, str, str]
"""Heading, load, figure, format."""
CLOSED: list[Column] = [
    ("requests/s, c = 1", C1, "rps", ",.0f"),
    ("c = 8", "c = 8", "rps", ",.0f"),
    ("c = 32", C32, "rps", ",.0f"),
    ("CPU us a request, c = 32", C32, "cpu_us", ",.0f"),
    ("p50 ms, c = 1", C1, "p50_ms", ".2f"),
]
OPEN: list[Column] = [
    ("p99 ms at 70 % of its capacity", "70 %", "p99_ms", ".1f"),
    ("p99 ms at a rate common to all", "common", "p99_ms", ".1f"),
]
STATE: list[Column] = [
    ("ready, s", PROCESS, "ready_s", ".1f"),
    ("memory, MB", PROCESS, "memory_mb", ".0f"),
    ("idle CPU, %", PROCESS, "idle_percent", ".2f"),
]


def _figures(results: dict[str, Any], title: str, image: str, columns: list[Column]) -> Iterator[str]:
    yield f"| {title} | {' | '.join(heading for heading, *_ in columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for name in ORDER:
        cells = []
        for _, load, figure, form in columns:
            values = by_round(results, name, image, load, figure).values()
            cells.append(format(median(values), form) if values else "")
        if any(cells):
            yield f"| {name} | {' | '.join(cells)} |"


def _goals(results: dict[str, Any]) -> Iterator[str]:
    yield "| | load | should be | median | lowest to highest | holds | by CPU time of the server |"
    yield "|---|---|---:|---:|---:|---|---:|"
    for goal in (HEAVY_GOALS if results["model"] == HEAVY else GOALS) + CONTROLS:
        if values := goal.values(results):
            middle, load = median(values), "" if goal.load == PROCESS else goal.load
            verdict = ("yes" if goal.holds(middle) else "**no**") if goal.bound() else ""
            span = f"{min(values):.2f} to {max(values):.2f}"
            # What a busy machine changes least: how often the CPU time of one of our answers fits into one of theirs.
            cpu = f"{1 / median(goal.values(results, 'cpu_us')):.2f}" if goal.figure == "rps" else ""
            yield f"| {goal.what} | {load} | {goal.bound()} | {middle:.2f} | {span} | {verdict} | {cpu} |"
    if not CONTROLS[0].values(results):
        yield f"\nWithout a control: only with {AGAIN!r} among the servers is the noise of these figures known."
    void = [goal.what for goal in CONTROLS if (values := goal.values(results)) and not goal.holds(median(values))]
    if void:
        yield f"\n**This run is void**: two processes of our own differ ({', '.join(void)}). Run it on a quiet machine."
