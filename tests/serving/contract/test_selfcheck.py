import json
from pathlib import Path
from typing import Literal

import pytest

from serving.contract import selfcheck
from serving.contract.selfcheck import Result, SelfCheck, Skipped
from tests.support import cuda


def skips() -> Result:
    raise Skipped("there is nothing to try")


def fails() -> Result:
    raise KeyError("what")


def record(side: Literal["training", "serving"]) -> SelfCheck:
    tried = SelfCheck(side)
    tried.try_line("good", lambda: Result(detail="shown", numbers={"ms": 1.5}))
    tried.try_line("absent", skips)
    tried.try_line("bad", fails)
    tried.try_line("after it", lambda: Result(detail="tried all the same"))
    return tried


def test_a_line_is_passed_skipped_or_failed_and_the_next_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    tried = record("serving")
    assert [(line.name, line.status, line.detail) for line in tried.lines] == [
        ("good", "passed", "shown"),
        ("absent", "skipped", "there is nothing to try"),
        ("bad", "failed", "KeyError: 'what'"),
        ("after it", "passed", "tried all the same"),
    ]
    assert tried.failed == ["bad"]
    assert capsys.readouterr().out.splitlines() == [str(line) for line in tried.lines]


def test_both_sides_share_a_file(tmp_path: Path) -> None:
    path = record("training").write(tmp_path / "check")
    assert record("serving").write(tmp_path / "check") == path == tmp_path / "check" / "check.json"
    both = json.loads(path.read_text())
    assert both.keys() == {"training", "serving"}
    for side in both.values():
        assert [line["status"] for line in side["lines"]] == ["passed", "skipped", "failed", "passed"]
        assert side["lines"][0]["numbers"] == {"ms": 1.5}
    assert "serving: 2 passed, 1 failed, 1 skipped; " in record("serving").summary(path)


def test_the_card_is_that_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.install(monkeypatch, cuda.Provider())
    card = selfcheck.card()
    assert card.detail == "NVIDIA B200 (compute capability 10.0), 192 GiB"
    assert card.numbers == {"gpus": 1}
    assert "CUDA 13.0" in selfcheck.driver().detail


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.install(monkeypatch, cuda.Provider(), cuda_version=12040)
    with pytest.raises(RuntimeError, match=r"runs CUDA 12\.4; CUDA 13 needs R580 or newer"):
        selfcheck.driver()
