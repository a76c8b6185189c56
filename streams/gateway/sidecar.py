"""The parts of a sidecar, put together: how they start, what is in force, how they end."""

from __future__ import annotations

import asyncio
import gc
from time import monotonic
from typing import Any, Final

from guards.engine import Engine
from guards.errors import GuardsError
from guards.policy import Policy
from streams import metrics
from streams.closing import close_within
from streams.gateway import service
from streams.gateway.checker import Checker
from streams.gateway.contracts import CONTRACTS
from streams.gateway.exchanges import Exchanges
from streams.gateway.health import Health
from streams.gateway.openapi import Operation
from streams.gateway.outbox import Outbox
from streams.gateway.problems import Problem
from streams.gateway.replies import Replies
from streams.kafka import Publisher, SupportsPublish, wait_for_broker
from streams.life import life_of_topics
from streams.monitor.view import View
from streams.policies import PolicyFeed
from streams.records import Hasher
from streams.settings import Settings
from streams.store import Store, parse_store_key
from streams.windows_reader import WindowsReader

__all__ = ["Sidecar"]

START_TIMEOUT_S: Final = 30.0
"""A broker or store that is not there by then ends the start, with a message that names the setting."""

FLUSH_S: Final = 5.0
"""At the end, what waits to be published has so long; what is left is counted and logged."""

CLOSE_S: Final = 2.0
"""At the end, each client of broker and store has so long to close."""

THREADS_S: Final = 3.0
"""At the end, a guard that still runs has so long; between guards it stops by itself."""


class Sidecar:
    """One per process. It serves from the first moment (``/live``); ``/ready`` and the contracts follow `start`.

    Tests give a store, a publisher and (through `use`) an engine of their own.
    """

    def __init__(
        self, settings: Settings, log: Any, *, store: Store | None = None, publisher: SupportsPublish | None = None
    ) -> None:
        self.settings = settings
        self.log = log
        self.address = f"{settings.sidecar.host}:{settings.sidecar.port}"
        key = settings.store_key
        self.store = store or Store(
            settings.redis, store_key=None if key is None else parse_store_key(key.get_secret_value())
        )
        self.publisher = publisher or Publisher(settings.kafka)
        self.hasher = Hasher(settings.master_key())
        self.exchanges = Exchanges(self.store, settings.checks, log)
        self.outbox = Outbox(
            self.publisher, self.exchanges, self.hasher, queue_max=settings.sidecar.publish_queue_max, log=log
        )
        self.feed = PolicyFeed(settings, self._accept, log)
        self.replies = Replies(self.store, log) if settings.sidecar.mode == "stream" else None
        self.windows = WindowsReader(settings)
        self.health = Health(
            self.store,
            settings.kafka,
            log,
            ready={
                "policy": self._policy_state,
                "guards": self._guards_state,
                "process": self._process_state,
                **({} if self.replies is None else {"replies": self._replies_state}),
            },
            live={"threads": self._threads_state},
        )
        self.checker: Checker | None = None
        self.stopping = False

    # ------------------------------------------------------------ what is in force

    @property
    def policy(self) -> Policy | None:
        """The policy in force here."""
        return self.checker.policy if self.checker is not None else None

    @property
    def refused(self) -> str | None:
        """The version of a newer policy that cannot be used here."""
        return self.feed.refused

    def ready_checker(self) -> Checker:
        """The checker. Raises `Problem` (503) while models load."""
        if self.checker is None:
            raise Problem("not-ready", "policy and models are being loaded", headers={"Retry-After": "1"})
        return self.checker

    def windows_view(self) -> View:
        """The monitor's windows, complete. Raises `Problem` (503) until they have been read."""
        if self.windows.failed is not None:
            raise Problem("not-ready", self.windows.failed)
        if not self.windows.caught_up:
            raise Problem("not-ready", "the windows are being read", headers={"Retry-After": "1"})
        return self.windows.view

    def operations(self) -> list[Operation]:
        """Everything that is served."""
        served = [op for contract in CONTRACTS for op in contract(self)]
        return served + service.operations(self, address=self.address)

    def _accept(self, policy: Policy) -> None:
        """Called by the feed in a thread: the first policy loads the models, the next ones are switched to."""
        if self.checker is not None:
            self.checker.accept(policy)
        else:
            self.use(None if self.replies is not None else self._load(policy), policy)

    def use(self, engine: Engine | None, policy: Policy) -> None:
        """Begin to answer: with an engine, or without one over the stream."""
        self.checker = Checker(
            self.settings.sidecar,
            exchanges=self.exchanges,
            outbox=self.outbox,
            engine=engine,
            replies=self.replies,
            policy=policy,
            log=self.log,
        )

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Connect, read the policy, load and warm the models.

        Raises `GuardsError` (broker or store unreachable, a model missing, a policy that cannot be used), each naming
        the fix.
        """
        self.health.start()
        async with asyncio.TaskGroup() as group:
            broker = group.create_task(wait_for_broker(self.settings.kafka, START_TIMEOUT_S))
            group.create_task(self._wait_for_store())
        await broker
        await self.store.agree_on_key(self.hasher.key_id)
        await self.publisher.start()
        self.store.bind(await life_of_topics(self.settings.kafka, self.publisher))
        self.exchanges.start()
        self.outbox.start()
        if self.replies is not None:
            await self.replies.start()
        await self.feed.start()
        await self.windows.start()
        # What is loaded now stays: the collector need not go through half a gigabyte of models again and again, each
        # time for some 200 ms.
        gc.collect()
        gc.freeze()

    def _load(self, policy: Policy) -> Engine:
        def on_error(guard: str, error: BaseException) -> None:
            metrics.GUARD_ERRORS.labels(guard).inc()
            self.log.error("a guard raised", guard=guard, error=type(error).__name__)

        engine = Engine(
            policy,
            models=self.settings.model_store(),
            options=self.settings.guards,
            on_error=on_error,
            hasher=self.hasher.mask,
        )
        engine.warm()
        metrics.SCREENS.add(engine)
        return engine

    async def _wait_for_store(self) -> None:
        end_s = monotonic() + START_TIMEOUT_S
        while True:
            try:
                await self.store.connect()
            except GuardsError:
                if monotonic() >= end_s:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    async def stop(self) -> int:
        """Flush what waits to be published, within `FLUSH_S`, and close everything. Safe after a failed start.

        Returns how many threads hang in a guard and could not be ended.
        """
        self.stopping = True
        left = await self.outbox.stop(FLUSH_S)
        if left:
            self.log.warning("not published before the end", events=left)
        await self.exchanges.stop(1.0)
        closes = [self.feed.stop, self.windows.stop, self.health.stop, self.publisher.stop]
        if self.replies is not None:
            closes.append(self.replies.stop)
        await asyncio.gather(*(close_within(close, CLOSE_S, self.log) for close in closes))
        await close_within(self.store.close, CLOSE_S, self.log)
        return 0 if self.checker is None else await self.checker.threads.stop(THREADS_S)

    # ------------------------------------------------------------ probes

    def _policy_state(self) -> str | None:
        if self.policy is None:
            return f"no policy is in force yet (topic llm.policy, name {self.settings.policy})"
        return self.feed.failed

    def _guards_state(self) -> str | None:
        return None if self.checker is not None else "models are being loaded"

    def _replies_state(self) -> str | None:
        listening = self.replies is not None and self.replies.listening
        return None if listening else "the store's channel for replies is not subscribed to"

    def _process_state(self) -> str | None:
        return "stopping" if self.stopping else None

    def _threads_state(self) -> str | None:
        if self.checker is None or not self.checker.threads.exhausted:
            return None
        return f"{self.checker.threads.lost} threads hang in a guard"
