"""Follows llm.windows into a `View`: from its beginning, then as it grows. For the sidecar and the evaluator."""

from __future__ import annotations

import asyncio
import contextlib

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from guards.errors import GuardsError
from streams.kafka import client_options, make_consumer
from streams.monitor.view import View
from streams.monitor.windows import WindowVersionError
from streams.readback import Remaining, partitions_of
from streams.settings import MonitorSettings, Settings
from streams.topics import WINDOWS

__all__ = ["WindowsReader", "new_view"]

_POLL_MS = 500
"""An idle poll returns after this; new records come as soon as the broker gives them."""


def new_view(settings: MonitorSettings) -> View:
    """An empty view with the monitor's widths."""
    return View(
        bucket_ms=settings.bucket_s * 1000,
        retention_ms=settings.retention_s * 1000,
        idle_ms=round(settings.idle_partition_s * 1000),
    )


class WindowsReader:
    """A consumer without a group. ``view`` is changed by its task only, between awaits; read it from the same loop.

    ``caught_up``: everything that was in the topic at the start has been read, and reading goes on. ``failed``: why it
    does not (a record of a newer version, a broker that refuses), else ``None``; brokers that are away are waited for.
    """

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self.view = new_view(settings.monitor)
        self.failed: str | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._remaining: Remaining | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def caught_up(self) -> bool:
        return self._remaining is not None and not self._remaining.partitions and self.failed is None

    async def start(self) -> None:
        """Connects and begins to read; returns before it has caught up. Raises `GuardsError` naming the fix."""
        consumer = make_consumer(self._kafka)
        try:
            await consumer.start()
            partitions = await partitions_of(consumer, WINDOWS)
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            self._remaining = await Remaining.of(consumer, partitions)
        except (KafkaError, OSError) as error:
            await consumer.stop()
            servers = client_options(self._kafka)["bootstrap_servers"]
            raise GuardsError(f"llm.windows cannot be read at {servers}: {error!r}") from error
        except BaseException:
            await consumer.stop()
            raise
        self._consumer = consumer
        self._task = asyncio.create_task(self._follow(consumer, self._remaining), name="windows-reader")

    async def wait_until_caught_up(self, timeout_s: float) -> None:
        """Raises `TimeoutError`, or `GuardsError` when reading has failed."""
        async with asyncio.timeout(timeout_s):
            while not self.caught_up:
                if self.failed is not None:
                    raise GuardsError(self.failed)
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._consumer is not None:
            with contextlib.suppress(KafkaError, OSError):
                await self._consumer.stop()
            self._consumer = None
        self._remaining = None

    async def _follow(self, consumer: AIOKafkaConsumer, remaining: Remaining) -> None:
        try:
            while True:
                got = await consumer.getmany(timeout_ms=_POLL_MS, max_records=2_000)
                for records in got.values():
                    for record in records:
                        self.view.apply(record.key, record.value)
                if remaining.partitions:
                    await remaining.update()
                await asyncio.sleep(0)
        except (WindowVersionError, KafkaError) as error:
            self.failed = f"llm.windows is not read any more: {error}"
