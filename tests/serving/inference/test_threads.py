import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.inference.threads import run_in_thread


class Data:
    """What a weak reference may point to."""


def test_a_call_returns_and_raises_as_its_function() -> None:
    def halve(number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number // 2

    with ThreadPoolExecutor(1) as threads:
        assert asyncio.run(run_in_thread(threads, halve, 4)) == 2
        with pytest.raises(ValueError, match="odd"):
            asyncio.run(run_in_thread(threads, halve, 3))


def test_a_call_that_is_cancelled_leaves_no_data_in_the_queue() -> None:
    free = threading.Event()

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            busy = asyncio.create_task(run_in_thread(threads, lambda event: event.wait(10), free))
            data = Data()
            held = weakref.ref(data)
            waiting = asyncio.create_task(run_in_thread(threads, id, data))
            await asyncio.sleep(0)
            del data
            assert held() is not None
            waiting.cancel()
            await asyncio.wait([waiting])
            del waiting  # its error has the frames
            assert held() is None, "while the thread still works for another call"
            free.set()
            assert await busy

    asyncio.run(scenario())
