import threading

import joblib
import pytest

from training.data.inspection.threads import in_threads


def test_calls_in_threads_give_their_results_in_order() -> None:
    threads: set[int] = set()

    def square(number: int) -> int:
        threads.add(threading.get_ident())
        return number**2

    assert list(in_threads(square, range(5, 400), "count")) == [number**2 for number in range(5, 400)]
    assert threading.get_ident() not in threads


def test_an_interruption_starts_no_further_calls() -> None:
    started: list[int] = []

    def wait(number: int) -> int:
        started.append(number)
        threading.Event().wait(0.02)
        return number

    results = in_threads(wait, range(10_000), "wait")
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    count = len(started)
    threading.Event().wait(0.2)
    assert len(started) <= count + 2 * joblib.cpu_count()
    assert count < 1000


def test_the_error_of_a_call_is_raised() -> None:
    def fail(number: int) -> int:
        if number == 30:
            raise OSError("storage")
        return number

    with pytest.raises(OSError, match="storage"):
        list(in_threads(fail, range(100), "fail"))
