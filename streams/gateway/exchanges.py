"""What is remembered of an exchange: its request for the join, its first decision. The store may be down throughout."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from time import monotonic
from typing import Any, Final

from guards.errors import GuardsError
from streams import metrics
from streams.events import Event, RequestEvent
from streams.gateway.drain import Drain
from streams.records import DecisionRecord, encode
from streams.settings import ChecksSettings
from streams.store import Store

__all__ = ["Exchanges"]

RECENT_MAX: Final = 5_000
RECENT_BYTES_MAX: Final = 33_554_432
"""Requests of this process kept in memory, so that the one just asked about is found without a round trip: 32 MiB."""

WAITING_MAX: Final = 5_000
PAUSE_S: Final = 1.0
"""After a failure the store is left alone for so long: a store that hangs must not cost each answer its time-out."""


class Exchanges:
    """Joins responses to requests and lets the first decision stand. Nothing here raises for a store that is down:
    it is counted (``tidegate_store_failed_total``), logged once per outage, and the answer goes on without it."""

    def __init__(self, store: Store, settings: ChecksSettings, log: Any) -> None:
        self._store = store
        self._settings = settings
        self._log = log
        self._recent: OrderedDict[tuple[str, str], tuple[RequestEvent, int]] = OrderedDict()
        self._recent_bytes = 0
        self._down_until_s = 0.0
        self._was_down = False
        self._drain: Drain[tuple[RequestEvent, bytes]] = Drain(
            self._put, items_max=WAITING_MAX, bytes_max=RECENT_BYTES_MAX, on_error=self._lost
        )

    def start(self) -> None:
        self._drain.start()

    async def stop(self, timeout_s: float) -> None:
        await self._drain.stop(timeout_s)

    def remember(self, event: RequestEvent, value: bytes) -> None:
        """Keep a request (``value``: the event as published) here, and in the store in the background."""
        key = (event.tenant, event.exchange_id)
        self._forget(key)
        self._recent[key] = (event, len(value))
        self._recent_bytes += len(value)
        while len(self._recent) > RECENT_MAX or self._recent_bytes > RECENT_BYTES_MAX:
            self._forget(next(iter(self._recent)))
        if not self._drain.offer((event, value), len(value)):
            metrics.STORE_FAILED.labels("remember").inc()

    def _forget(self, key: tuple[str, str]) -> None:
        entry = self._recent.pop(key, None)
        if entry is not None:
            self._recent_bytes -= entry[1]

    def recent(self, event: Event) -> RequestEvent | None:
        """The request of this exchange, if this process was asked about it lately. No round trip."""
        entry = self._recent.get((event.tenant, event.exchange_id))
        return None if entry is None else entry[0]

    async def request_of(self, event: Event, within_s: float) -> RequestEvent | None:
        """The request of this exchange, or ``None``: unknown, or the store did not say within ``within_s``."""
        known = self.recent(event)
        if known is not None or not self.usable:
            return known
        try:
            async with asyncio.timeout(within_s):
                (found,) = await self._store.get_requests([(event.tenant, event.exchange_id)])
        except (GuardsError, TimeoutError) as error:
            self._failed("join", error)
            return None
        self._worked()
        return found

    async def first_decisions(self, records: list[DecisionRecord]) -> list[bytes]:
        """For each record the one that stands (encoded): the first for its key; its own where the store is down."""
        if self.usable:
            try:
                standing = await self._store.put_decisions(records, self._settings.decision_ttl_s)
            except GuardsError as error:
                self._failed("decision", error)
            else:
                self._worked()
                return standing
        else:
            metrics.STORE_FAILED.labels("decision").inc(len(records))
        return [encode(record) for record in records]

    async def _put(self, batch: list[tuple[RequestEvent, bytes]]) -> None:
        if not self.usable:
            metrics.STORE_FAILED.labels("remember").inc(len(batch))
            return
        try:
            await self._store.put_requests(batch, self._settings.request_ttl_s)
        except GuardsError as error:
            self._failed("remember", error, len(batch))
        else:
            self._worked()

    def _lost(self, error: Exception, count: int) -> None:
        metrics.STORE_FAILED.labels("remember").inc(count)
        self._log.error("requests were not kept", error=type(error).__name__, events=count)

    @property
    def usable(self) -> bool:
        """Whether the store is asked at all now."""
        return monotonic() >= self._down_until_s

    def _failed(self, use: str, error: Exception, count: int = 1) -> None:
        metrics.STORE_FAILED.labels(use).inc(count)
        self._down_until_s = monotonic() + PAUSE_S
        if not self._was_down:
            self._was_down = True
            self._log.warning("the store fails; answers go on without it", use=use, error=type(error).__name__)

    def _worked(self) -> None:
        if self._was_down:
            self._was_down = False
            self._log.info("the store answers again")
