"""Faust, tamed: one place for every setting that bites, in-order acknowledgement, and the life of a worker process.

An agent takes batches with ``noack_take`` and hands them on; nothing is acknowledged before its effects are.
`OrderedAcks` then acknowledges strictly in offset order per partition: Faust commits past a hole.
"""

from __future__ import annotations

import mode.loop

mode.loop.use("uvloop")  # before Faust is imported

import asyncio  # noqa: E402
import signal  # noqa: E402
import ssl  # noqa: E402
from collections import deque  # noqa: E402
from collections.abc import Awaitable, Callable, Iterable  # noqa: E402
from typing import Any  # noqa: E402

import aiokafka  # noqa: E402
import faust  # noqa: E402
import uvloop  # noqa: E402
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport  # noqa: E402
from faust.types import TP  # noqa: E402

from streams.settings import KafkaSettings, Settings, state_folder  # noqa: E402

__all__ = ["Entry", "Lifecycle", "OrderedAcks", "guarded", "make_app", "run_worker"]

COMMIT_INTERVAL_S = 1.0
"""Offsets are committed this often: a crash replays what was acknowledged since, and effects are idempotent."""

STOP_TIMEOUT_S = 3.0
"""A graceful stop waits this long (`tidegate up` gives it 4.5 s); what is not acknowledged by then is redelivered to
the next owner."""

POLL_RECORDS_MAX = 500
"""More makes rebalances slow (robinhood/faust 402)."""


class _ConsumerThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust hard-codes ``fetch_max_wait_ms=1500``; a broker that answers idle fetches late needs less."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = transport.fetch_max_wait_ms
        return consumer


class _Consumer(Consumer):  # type: ignore[misc]
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Transport(Transport):  # type: ignore[misc]
    Consumer = _Consumer
    fetch_max_wait_ms: int = 1500


def make_app(name: str, settings: Settings, *, max_poll_interval_s: float = 300.0) -> faust.App:
    """A Faust application for raw bytes. ``name`` is the consumer group. Call it inside the running loop.

    ``max_poll_interval_s``: a worker that asks for nothing for so long leaves the group, though its heart beats.
    No tables, no web server, no producer of Faust's is used; offsets start at the earliest.
    """
    kafka = settings.kafka
    app = faust.App(
        name,
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap.split(",")],
        broker_credentials=_credentials(kafka),
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_max_poll_records=POLL_RECORDS_MAX,
        broker_max_poll_interval=max_poll_interval_s,
        broker_request_timeout=max(kafka.request_timeout_ms, kafka.session_timeout_ms + 5_000) / 1000,
        broker_session_timeout=kafka.session_timeout_ms / 1000,
        broker_heartbeat_interval=kafka.heartbeat_interval_ms / 1000,
        broker_rebalance_timeout=30.0,
        consumer_auto_offset_reset="earliest",
        # Twice the largest message, so that one at the cap never blocks a partition.
        consumer_max_fetch_size=4_194_304,
        stream_wait_empty=False,
        stream_publish_on_commit=False,
        stream_recovery_delay=0.0,
        topic_disable_leader=True,
        topic_allow_declare=False,
        store="memory://",
        datadir=state_folder() / "faust",  # made at start, though without tables nothing is put there
        web_enabled=False,
        key_serializer="raw",
        value_serializer="raw",
        producer_acks=-1,
        producer_request_timeout=kafka.request_timeout_ms / 1000,
        loop=asyncio.get_running_loop(),
    )
    transport = _Transport(app.conf.broker, app, app.loop)
    transport.fetch_max_wait_ms = kafka.fetch_max_wait_ms
    app.transport = transport
    return app


def _credentials(kafka: KafkaSettings) -> Any:
    context = None
    if kafka.security_protocol in {"SSL", "SASL_SSL"}:
        context = ssl.create_default_context(cafile=None if kafka.ssl_cafile is None else str(kafka.ssl_cafile))
    if kafka.security_protocol == "SSL":
        return faust.SSLCredentials(context)
    if kafka.sasl_mechanism is not None:
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=None if kafka.sasl_password is None else kafka.sasl_password.get_secret_value(),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None


class Entry:
    """An event in flight. ``since_s``: monotonic time at which it was taken."""

    __slots__ = ("done", "event", "offset", "since_s", "tp")

    def __init__(self, tp: TP, offset: int, event: Any, since_s: float) -> None:
        self.tp = tp
        self.offset = offset
        self.event = event
        self.since_s = since_s
        self.done = False


class OrderedAcks:
    """Which events may be acknowledged: per partition, those of the unbroken run of finished ones from the front."""

    def __init__(self) -> None:
        self._queues: dict[TP, deque[Entry]] = {}

    def take(self, tp: TP, offset: int, event: Any, now_s: float) -> Entry:
        """Note an event that was taken in; events of a partition come in offset order."""
        entry = Entry(tp, offset, event, now_s)
        self._queues.setdefault(tp, deque()).append(entry)
        return entry

    def finish(self, entries: Iterable[Entry]) -> list[Entry]:
        """The effects of these are safe. Returns those that may be acknowledged now, in offset order by partition.

        Entries of partitions that were revoked meanwhile are forgotten: their new owner gets them again.
        """
        touched: dict[TP, None] = {}
        for entry in entries:
            entry.done = True
            touched[entry.tp] = None
        ready: list[Entry] = []
        for tp in touched:
            queue = self._queues.get(tp)
            while queue and queue[0].done:
                ready.append(queue.popleft())
        return ready

    def revoke(self, tps: Iterable[TP]) -> None:
        """Forget all that is in flight for these partitions."""
        for tp in tps:
            self._queues.pop(tp, None)

    def holds(self, entry: Entry) -> bool:
        """Whether the entry is still this process's to acknowledge."""
        queue = self._queues.get(entry.tp)
        return queue is not None and any(held is entry for held in queue)

    def oldest_s(self) -> float | None:
        """Monotonic time at which the oldest unfinished or unacknowledged event was taken; ``None`` if none is."""
        return min((queue[0].since_s for queue in self._queues.values() if queue), default=None)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())


class Lifecycle:
    """How a worker process ends: by a signal (code 0), or because it cannot do its work (code 1)."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._event = asyncio.Event()
        self.exit_code = 0
        self.failure: str | None = None

    def install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    def stop(self) -> None:
        self._event.set()

    def fail(self, why: str) -> None:
        """End the process with code 1. ``why`` goes to the log and makes `/live` say so."""
        if self.failure is None:
            self.failure = why
            self.exit_code = 1
            self._log.error("giving up", why=why)
        self._event.set()

    def ended(self, *, cleanly: bool) -> None:
        """Said once at the end: whether all that was in flight could be finished and handed over in time."""
        self._log.info("stopped", cleanly=cleanly)

    @property
    def stopping(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()


async def guarded(work: Awaitable[None], lifecycle: Lifecycle) -> None:
    """Work that must not die quietly: an exception ends the process with code 1, and nothing is acknowledged.

    Then it waits for that end: an agent that raised would be restarted by Faust with a hole in its acknowledgements.
    """
    try:
        await work
    except Exception as error:
        lifecycle.fail(f"{type(error).__name__} in {asyncio.current_task().get_name()}: {error}")  # type: ignore[union-attr]
        await asyncio.Event().wait()


async def run_worker(app: faust.App, lifecycle: Lifecycle, *, stop: Callable[[], Awaitable[None]]) -> int:
    """Start the app, run until the lifecycle ends, stop within `STOP_TIMEOUT_S`. Returns the exit code."""
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop), "start workers with uvloop.run"
    lifecycle.install_signals()
    app.finalize()
    watch = asyncio.create_task(_watch(app, lifecycle))
    try:
        await app.start()
        await lifecycle.wait()
    finally:
        watch.cancel()
        ending = asyncio.create_task(_end(app, stop))
        # Not `asyncio.timeout`: Faust may swallow the cancellation and go on.
        _, late = await asyncio.wait({ending}, timeout=STOP_TIMEOUT_S)
        ending.cancel()
        lifecycle.ended(cleanly=not late)
    return lifecycle.exit_code


async def _end(app: faust.App, stop: Callable[[], Awaitable[None]]) -> None:
    await stop()
    await app.stop()


async def _watch(app: faust.App, lifecycle: Lifecycle) -> None:
    """Faust can die quietly; a worker whose app crashed must not look alive."""
    while not lifecycle.stopping:
        await asyncio.sleep(0.5)
        if app.crashed or app.should_stop:
            lifecycle.fail(f"Faust stopped by itself: {app.crash_reason!r}")
