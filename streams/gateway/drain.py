"""A bounded queue that one task empties in batches, in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Drain"]

T = TypeVar("T")


class Drain(Generic[T]):
    """``offer`` never blocks. ``deliver`` gets up to ``batch_max`` items, in order; should it raise all the same,
    ``on_error(exception, items)`` is told, those items are lost, and the next ones follow.

    Bounded by number and by bytes: ten thousand items of a megabyte each are no bound.
    """

    def __init__(
        self,
        deliver: Callable[[list[T]], Awaitable[None]],
        *,
        items_max: int,
        bytes_max: int,
        on_error: Callable[[Exception, int], None],
        batch_max: int = 256,
    ) -> None:
        self._deliver = deliver
        self._on_error = on_error
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._batch_max = batch_max
        self._queue: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._under_way = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Items that wait or are under way."""
        return len(self._queue) + self._under_way

    def offer(self, item: T, size_bytes: int) -> bool:
        """Take the item, or say that there is no room."""
        if len(self._queue) >= self._items_max or self._bytes + size_bytes > self._bytes_max:
            return False
        self._queue.append((item, size_bytes))
        self._bytes += size_bytes
        self._idle.clear()
        self._wake.set()
        return True

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="drain")

    async def stop(self, timeout_s: float) -> int:
        """Empty the queue within ``timeout_s``, then end. Returns how many items were left."""
        if self._task is None:
            return len(self)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return len(self)

    async def _run(self) -> None:
        while True:
            while not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            batch: list[T] = []
            while self._queue and len(batch) < self._batch_max:
                item, size_bytes = self._queue.popleft()
                self._bytes -= size_bytes
                batch.append(item)
            self._under_way = len(batch)
            try:
                await self._deliver(batch)
            except Exception as error:
                self._on_error(error, len(batch))
            self._under_way = 0
