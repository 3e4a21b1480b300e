"""Work in a thread whose data goes with the request that waits for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Data = TypeVar("Data")
Result = TypeVar("Result")


async def run_in_thread(threads: ThreadPoolExecutor, function: Callable[[Data], Result], data: Data) -> Result:
    """What `function` returns or raises, called in one of the threads.

    Cancelling the call before it has a thread leaves nothing of `data`: the executor keeps a cancelled item until its
    turn, while admission counts the request as gone. A call that has its thread runs to its end.
    """
    waiting = [data]
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, lambda: function(waiting.pop()))
    except asyncio.CancelledError:
        waiting.clear()
        raise
