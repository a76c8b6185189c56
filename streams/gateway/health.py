"""Is the sidecar alive, and can it answer: looked at in the background, told at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, Final

from guards.errors import GuardsError
from streams.kafka import wait_for_broker
from streams.settings import KafkaSettings
from streams.store import Store

__all__ = ["Health", "Probe"]

Probe = Callable[[], str | None]
"""``None`` when well, else what is wrong, in words that an operator can use."""

NOT_ASKED: Final = "not asked yet"

PROBE_EVERY_S: Final = 2.0
PROBE_TIMEOUT_S: Final = 1.5
"""A broker or store that does not answer a ping within this counts as unreachable."""

TICK_S: Final = 0.25
STALLED_S: Final = 5.0
"""The event loop ticks four times a second; without a tick for so long the process does not do its work."""


class Health:
    """``ready`` and ``live`` → what is wrong by name, empty when well.

    ``probes`` are asked at each call and must be cheap; broker and store are pinged every 2 s in the background.
    """

    def __init__(
        self, store: Store, kafka: KafkaSettings, log: Any, *, ready: Mapping[str, Probe], live: Mapping[str, Probe]
    ) -> None:
        self._store = store
        self._kafka = kafka
        self._log = log
        self._ready = ready
        self._live = live
        self._remote: dict[str, str | None] = {"broker": NOT_ASKED, "store": NOT_ASKED}
        self._ticked_s = monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._watch("store", self._ask_store), name="probe-store"),
            asyncio.create_task(self._watch("broker", self._ask_broker), name="probe-broker"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ready(self) -> dict[str, str | None]:
        return {**{name: probe() for name, probe in self._ready.items()}, **self._remote}

    def live(self) -> dict[str, str | None]:
        age_s = monotonic() - self._ticked_s
        loop = None if age_s < STALLED_S else f"the event loop has not ticked for {age_s:.1f} s"
        return {"loop": loop, **{name: probe() for name, probe in self._live.items()}}

    async def _tick(self) -> None:
        while True:
            self._ticked_s = monotonic()
            await asyncio.sleep(TICK_S)

    async def _watch(self, name: str, ask: Callable[[], Awaitable[str | None]]) -> None:
        while True:
            before, now = self._remote[name], await ask()
            self._remote[name] = now
            if now is not None and before != now:
                self._log.warning(f"{name} unreachable", why=now)
            elif now is None and before not in {None, NOT_ASKED}:
                self._log.info(f"{name} reachable again")
            await asyncio.sleep(PROBE_EVERY_S)

    async def _ask_store(self) -> str | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._store.connect()
        except (GuardsError, TimeoutError) as error:
            return str(error) or f"no answer within {PROBE_TIMEOUT_S} s"
        return None

    async def _ask_broker(self) -> str | None:
        try:
            await wait_for_broker(self._kafka, PROBE_TIMEOUT_S)
        except GuardsError as error:
            return str(error)
        return None
