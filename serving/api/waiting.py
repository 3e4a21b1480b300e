"""Waiting for what is mostly there soon: whatever may end the wait is only watched for when it is not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from serving.api.errors import RequestError

T = TypeVar("T")

PATIENCE_S = 0.05


async def unless(awaited: Awaitable[T], ended: Callable[[], Awaitable[Exception]], within: float) -> T:
    """Await, unless `ended` returns first: then `awaited` is cancelled and what `ended` returned is raised.

    `ended` is called after PATIENCE_S, or `within` seconds where that is sooner; nearly always there is nothing left to
    wait for by then. A timer that has not gone off costs 0.7 us, asyncio.timeout 3, a task and its end 6.
    """
    loop, waiting = asyncio.get_running_loop(), asyncio.current_task()
    assert waiting is not None
    reason: Exception | None = None

    async def watch() -> None:
        nonlocal reason
        reason = await ended()
        waiting.cancel()

    watching: list[asyncio.Task[None]] = []
    timer = loop.call_later(min(PATIENCE_S, within), lambda: watching.append(loop.create_task(watch())))
    try:
        return await awaited
    except asyncio.CancelledError:
        if reason is None:
            raise
        waiting.uncancel()
        raise reason from None
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


async def while_awaited(request: Request, answer: Awaitable[T], seconds: float) -> T:
    """Await `answer` as long as its client does, at most so many seconds; after that the work is cancelled.

    Raises ClientDisconnect, and RequestError (504) when it took too long.
    """
    end = asyncio.get_running_loop().time() + seconds

    async def nobody_waits() -> Exception:
        try:
            async with asyncio.timeout_at(end):
                while (await request.receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return RequestError(504, "deadline_exceeded", f"no answer within {seconds:g} s")
        return ClientDisconnect()

    return await unless(answer, nobody_waits, within=seconds)
