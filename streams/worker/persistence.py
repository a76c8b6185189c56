"""Doing what must be done, until it is done or the process has to end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, TypeVar

from aiokafka.errors import KafkaError

from guards.errors import ConfigError
from streams import metrics
from streams.kafka import PublishError
from streams.store import StoreError
from streams.worker.app import Lifecycle

__all__ = ["GIVE_UP_S", "Persistence"]

GIVE_UP_S: Final = 60.0
"""A worker that cannot publish or reach the store for so long ends with code 1: its partitions move on."""

T = TypeVar("T")


class Persistence:
    """Repeats an idempotent action; ``troubled_since_s`` (monotonic) tells `/ready` that something does not answer."""

    def __init__(self, lifecycle: Lifecycle, log: Any) -> None:
        self._lifecycle = lifecycle
        self._log = log
        self.trouble: str | None = None

    async def until_done(self, use: str, action: Callable[[], Awaitable[T]]) -> T:
        """Returns what ``action`` returns. After `GIVE_UP_S` of failures the process ends and this never returns."""
        began = monotonic()
        pause_s = 0.05
        while True:
            try:
                result = await action()
            except (StoreError, PublishError, KafkaError, TimeoutError) as error:
                self._count(use, error)
                self.trouble = f"{use}: {error}"
                if monotonic() - began > GIVE_UP_S:
                    self._lifecycle.fail(self.trouble)
                self._log.warning("trying again", use=use, why=str(error), pause_s=round(pause_s, 2))
            except ConfigError as error:
                self._lifecycle.fail(str(error))
            else:
                self.trouble = None
                return result
            if self._lifecycle.failure is not None:
                await asyncio.Event().wait()  # nothing is acknowledged any more; the process ends
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)

    def _count(self, use: str, error: Exception) -> None:
        if isinstance(error, StoreError):
            metrics.STORE_FAILED.labels(use).inc()
        else:
            metrics.PUBLISH_FAILED.inc()
