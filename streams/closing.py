"""Closing what may not want to close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Close", "close_within"]

Close = Callable[[], Coroutine[Any, Any, Any]]


async def close_within(close: Close, limit_s: float, log: Any) -> None:
    """Close a part; what goes wrong is logged, never raised.

    A client whose peer is gone may fail to close, hang, or leak the cancellation of its own tasks (aiokafka's consumer
    does): none of it may hold up the end of a process.
    """
    task = asyncio.create_task(close())
    await asyncio.wait({task}, timeout=limit_s)
    task.cancel()
    outcome: object = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(outcome, BaseException):
        log.warning("a part did not close", part=close.__qualname__, error=type(outcome).__name__)
