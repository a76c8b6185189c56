"""What every worker process has around its work: log, store, publisher, status page, a beat, and an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final

from aiokafka.errors import KafkaError

from guards.errors import GuardsError
from streams import log as logs
from streams import metrics
from streams.closing import Close, close_within
from streams.kafka import Publisher
from streams.life import life_of_topics
from streams.settings import Settings
from streams.store import Store, parse_store_key
from streams.worker.app import Lifecycle, guarded
from streams.worker.persistence import Persistence
from streams.worker.status import Check, StatusServer

__all__ = ["Host", "hosted"]

TICK_S: Final = 0.5
TICK_LATE_S: Final = 10.0
"""An event loop that has not ticked for so long hangs."""

CLOSE_S: Final = 1.0
"""At the end, each part has so long to close; a client whose peer is gone may never."""


class Host:
    """One worker process; made by `hosted`. ``oldest_s``: monotonic time of the oldest event not acknowledged yet."""

    def __init__(self, name: str, settings: Settings) -> None:
        logs.configure(settings.log_format, settings.log_level)
        key = settings.store_key
        self.settings = settings
        self.log: Any = logs.get_logger(name)
        self.lifecycle = Lifecycle(self.log)
        self.store = Store(settings.redis, store_key=None if key is None else parse_store_key(key.get_secret_value()))
        self.publisher = Publisher(settings.kafka)
        self.oldest_s: Callable[[], float | None] = lambda: None
        self._tick_s = monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._closes: list[Close] = []

    def persistence(self) -> Persistence:
        """A new one: each part that repeats its actions has its own trouble to tell."""
        return Persistence(self.lifecycle, self.log)

    def spawn(self, work: Awaitable[None], name: str) -> None:
        """Run in the background until the end; an exception ends the process with code 1."""
        self._tasks.append(asyncio.create_task(guarded(work, self.lifecycle), name=name))

    def at_end(self, close: Close) -> None:
        """Close this part at the end, together with the others."""
        self._closes.append(close)

    async def stop_background(self) -> None:
        """Cancel what `spawn` began, and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(close_within(close, CLOSE_S, self.log) for close in self._closes))

    async def _tick(self) -> None:
        while True:
            self._tick_s = monotonic()
            oldest_s = self.oldest_s()
            metrics.COMMIT_AGE_SECONDS.set(0.0 if oldest_s is None else monotonic() - oldest_s)
            await asyncio.sleep(TICK_S)

    def _loop_state(self) -> str | None:
        return None if monotonic() - self._tick_s < TICK_LATE_S else "the event loop does not tick"

    def _worker_state(self) -> str | None:
        return self.lifecycle.failure or ("stopping" if self.lifecycle.stopping else None)


@asynccontextmanager
async def hosted(
    name: str, settings: Settings, *, ready: Mapping[str, Check], live: Mapping[str, Check] | None = None
) -> AsyncIterator[Host]:
    """The process around a worker: status page up at once, then store and broker connected; everything closed after.

    ``ready``, ``live``: the worker's own checks, beside the loop's and the lifecycle's. Raises `GuardsError` (with the
    fix) when broker or store cannot be reached, also for a `KafkaError` of the body.
    """
    host = Host(name, settings)
    status = StatusServer(
        settings.status_host,
        settings.status_port,
        live={"loop": host._loop_state, "worker": lambda: host.lifecycle.failure, **(live or {})},
        ready={"worker": host._worker_state, **ready},
    )
    port = await status.start()
    host.at_end(status.stop)
    host.log.info("status", url=f"http://{settings.status_host}:{port}/ready")
    try:
        host.at_end(host.store.close)
        await host.store.connect()
        host.at_end(host.publisher.stop)
        await host.publisher.start()
        host.store.bind(await life_of_topics(settings.kafka, host.publisher))
        host.spawn(host._tick(), "tick")
        yield host
    except KafkaError as error:
        raise GuardsError(f"the broker {settings.kafka.bootstrap} failed at start: {error!r}") from error
    finally:
        await host._close()
