"""Keeps the processes of `tidegate up` running, and stops them in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from guards.errors import ConfigError, GuardsError
from streams.dev.process import Service

__all__ = ["Backoff", "GaveUpError", "Supervisor"]

POLL_S = 0.1
"""How often the processes are looked at: an ended one is noticed within this."""

EXIT_CONFIG = 2
"""A process that ends so was configured wrongly (`tidegate`'s exit codes): another try would end alike."""

Hook = Callable[[], Awaitable[None]]


class GaveUpError(GuardsError):
    """A process ended too often in a row; the text has the end of its log and where the rest lies."""


class Backoff:
    """How long to wait before a process that ended is started again. Pure: the caller tells the time.

    ``first_s``, doubling up to ``longest_s``. A run of ``healthy_s`` or more wipes out what was before it;
    ``failures_max`` shorter runs in a row are the end.
    """

    def __init__(
        self, *, first_s: float = 0.2, longest_s: float = 5.0, healthy_s: float = 30.0, failures_max: int = 8
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._healthy_s = healthy_s
        self._failures_max = failures_max
        self._started_s = 0.0
        self.failures = 0

    def started(self, now_s: float) -> None:
        self._started_s = now_s

    def ended(self, now_s: float) -> float | None:
        """Seconds to wait from now, or ``None``: give up."""
        if now_s - self._started_s >= self._healthy_s:
            self.failures = 0
        self.failures += 1
        if self.failures >= self._failures_max:
            return None
        return min(self._first_s * 2.0 ** (self.failures - 1), self._longest_s)


class _Kept:
    def __init__(self, service: Service, restarted: Hook | None, backoff: Backoff) -> None:
        self.service = service
        self.restarted = restarted
        self.backoff = backoff
        self.start_at_s: float | None = None  # set while it waits to be started again


class Supervisor:
    """Watches `Service`s that it was given with `keep`, in one event loop, and starts again what ends.

    ``say`` gets one line for each event. All methods must be called from the main thread (see `Service`).
    """

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._stopping = False
        self.restarts = 0

    def keep(self, service: Service, *, restarted: Hook | None = None, backoff: Backoff | None = None) -> None:
        """Watch a process, spawning it if it does not run. ``restarted`` is awaited after each later start."""
        kept = _Kept(service, restarted, backoff or Backoff())
        self._kept[service.name] = kept
        if not service.running:
            service.spawn()
        kept.backoff.started(self._clock())

    def restart(self, names: Sequence[str]) -> None:
        """Stop these processes and start them at once, without counting it as a failure."""
        for name in names:
            if (kept := self._kept.get(name)) is not None:
                kept.service.kill()
                kept.service.spawn()
                kept.start_at_s = None
                kept.backoff.started(self._clock())

    async def watch(self) -> None:
        """Until cancelled. Raises `GaveUpError`, or `ConfigError` when a process says that its configuration is bad."""
        while True:
            for kept in list(self._kept.values()):
                await self._look_at(kept)
            await asyncio.sleep(POLL_S)

    async def _look_at(self, kept: _Kept) -> None:
        service, now_s = kept.service, self._clock()
        if kept.start_at_s is None:
            if service.running:
                return
            if service.exit_code == EXIT_CONFIG:
                raise ConfigError(f"{service.name} {service.how_it_ended()}{service.tail()}")
            wait_s = kept.backoff.ended(now_s)
            if wait_s is None:
                raise GaveUpError(
                    f"{service.name} ended {kept.backoff.failures} times in a row; it {service.how_it_ended()} at "
                    f"last{service.tail()}"
                )
            kept.start_at_s = now_s + wait_s
            self._say(
                f"{service.name} {service.how_it_ended()}; starting it again in {wait_s:g} s (log: {service.log})"
            )
        elif now_s >= kept.start_at_s:
            kept.start_at_s = None
            service.spawn()
            kept.backoff.started(now_s)
            self.restarts += 1
            if kept.restarted is not None:
                await kept.restarted()

    async def stop(self, order: Sequence[Sequence[str]]) -> None:
        """Stop everything, group after group; those of one group at once. What does not stop in time is killed.

        Takes at most the longest ``grace_s`` of each group, summed up. `kill` from a signal handler cuts it short.
        """
        for group in order:
            services = [self._kept[name].service for name in group if name in self._kept]
            for service in services:
                service.ask_to_stop()
            asked_s = self._clock()
            while any(service.running for service in services):
                for service in services:
                    if service.running and self._clock() - asked_s > service.grace_s:
                        self._say(f"{service.name} did not stop within {service.grace_s:g} s and was killed")
                        service.kill()
                await asyncio.sleep(POLL_S / 5)
        self.kill()  # nothing is left, unless a name is missing in the order

    def kill(self) -> None:
        """End everything at once."""
        for kept in self._kept.values():
            kept.service.kill()
