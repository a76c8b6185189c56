"""The monitor worker: requests, responses and decisions → windows in llm.windows; one of its kind evaluates them.

A batch is claimed in Redis and counted in memory. Every ``flush_s`` what changed is written to llm.windows; only when
the broker has acknowledged that are the source events acknowledged, in offset order. A crash at any point leads to
redelivery, which is exact (see `streams.monitor.windows.Book`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from time import monotonic, time
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer

from guards.policy import configs_folder
from streams import metrics
from streams.events import Bad
from streams.kafka import RUN_HEADER, Record, header, make_consumer
from streams.monitor.facts import SOURCES, addition_of, dead, duplicate, read
from streams.monitor.prices import Prices, load_prices
from streams.monitor.rules import load_rules
from streams.monitor.windows import Addition, Book, Series, Source
from streams.readback import partitions_of
from streams.settings import Settings
from streams.topics import WINDOWS
from streams.worker.app import Lifecycle, guarded, make_app, run_worker
from streams.worker.claims import Claimed, Claims, ClaimsLostError, Held, Item
from streams.worker.evaluator import Evaluator
from streams.worker.host import Host, hosted
from streams.worker.ownership import Ownership, windows_partitions
from streams.worker.status import Check

__all__ = ["GROUP", "Monitor", "run_monitor"]

GROUP: Final = "tidegate-monitor"

DIRTY_MAX: Final = 5_000
"""So many changed buckets are written at once, without waiting for the next flush: bounds what a crash repeats."""

PUBLISH_CHUNK: Final = 1_000
"""Records per publish: 1,000 buckets of some hundred bytes are well within the request time-out."""

JOIN_WAIT_S: Final = 5.0
"""A response that leaves out labels waits so long for its request to be counted, anywhere; then it counts without."""

LOOK_AGAIN_S: Final = 0.2
"""How often it is looked for meanwhile."""

PENDING_CHUNK: Final = 500
"""Records of one partition that are settled at once."""

PENDING_MAX: Final = 20_000
"""With more records pending, responses do not wait: bounds memory, to some 100 MB if all are large."""

REWRITE_S: Final = 3_600.0
"""Totals are written again this often, so that the topic's retention never drops the only copy."""

RECOUNT_SERIES_S: Final = 60.0
"""The set of known series is made anew this often: a series without buckets frees its place."""

WAIT_FOR_OTHERS_S: Final = 0.2
"""While another worker reads its claims back, this one looks again so often."""


class _Taken(msgspec.Struct, frozen=True):
    """A record that was taken in: what it adds, or what is still to be settled. ``since_s``: monotonic."""

    book: Book
    offset: int
    event: Any
    what: Addition | Item
    since_s: float


class Monitor:
    """Counts what the partitions that are assigned to this process bring. One batch or flush at a time."""

    def __init__(
        self, host: Host, ownership: Ownership, claims: Claims, prices: Prices, topology: AIOKafkaConsumer
    ) -> None:
        self._settings = host.settings.monitor
        self._ownership = ownership
        self._claims = claims
        self._publisher = host.publisher
        self._prices = prices
        self._persistence = host.persistence()
        self._topology = topology
        self._log = host.log
        self._lock = asyncio.Lock()
        self._books: dict[Source, Book] = {}
        self._pending: dict[Source, deque[_Taken]] = {}
        self._look_s: dict[Source, float] = {}
        self._unacked: dict[Source, list[_Taken]] = {}
        self._assigned: frozenset[Source] = frozenset()
        self._assignment = 0
        self._rebalancing = True
        self._sources: list[Source] = []
        self._series: set[Series] = set()
        self._series_at_s = monotonic()
        self._rewritten_s = monotonic()

    # ------------------------------------------------------------ what Faust says

    def assign(self, sources: Iterable[Source]) -> None:
        """The new assignment, all of it. State is taken over before the first event of it is counted."""
        self._assigned = frozenset(sources)
        self._assignment += 1
        self._rebalancing = False
        self._sources = []

    def revoke(self, sources: Iterable[Source]) -> None:
        """Forget these: what was not acknowledged comes again to the next owner, who restores what was written."""
        gone = frozenset(sources)
        self._assigned -= gone
        self._assignment += 1
        self._rebalancing = True
        for source in gone:
            self._books.pop(source, None)
            self._pending.pop(source, None)
            self._look_s.pop(source, None)
            self._unacked.pop(source, None)

    async def batch(self, events: Sequence[Any], generation: int) -> None:
        """Count Faust events. Those of an assignment that is over are passed over; they come again."""
        async with self._lock:
            await self._own()
            now_s = monotonic()
            for event in events:
                message = event.message
                source = Source(message.topic, message.partition)
                book = self._books.get(source)
                if book is None or message.generation_id != generation:
                    continue
                metrics.EVENTS.labels(topic=source.topic).inc()
                taken = _Taken(book, message.offset, event, self._read(source, message, book), now_s)
                self._pending.setdefault(source, deque()).append(taken)
            await self._count()
            if sum(book.dirty for book in self._books.values()) > DIRTY_MAX:
                await self._flush()

    def _read(self, source: Source, message: Any, book: Book) -> Addition | Item:
        if message.offset < book.next_offset:
            return Addition()  # counted before; it only has to be acknowledged
        timestamp_ms = round(message.timestamp * 1000)
        fact = read(source.topic, message.value, timestamp_ms, header(message.headers, RUN_HEADER))
        return dead() if isinstance(fact, Bad) else Item(source, message.offset, fact, monotonic())

    async def _count(self) -> None:
        """Count what is pending, per partition in order, up to a response that waits for its request's labels."""
        while await self._count_some():
            pass

    async def _count_some(self) -> bool:
        """At most `PENDING_CHUNK` of each partition. Returns whether there is more."""
        now_s = monotonic()
        chosen = {
            source: list(islice(queue, PENDING_CHUNK))
            for source, queue in self._pending.items()
            if queue and self._look_s.get(source, 0.0) <= now_s
        }
        if not chosen:
            return False
        additions = await self._additions([t.what for ts in chosen.values() for t in ts if isinstance(t.what, Item)])
        now_ms = round(time() * 1000)
        for source, takens in chosen.items():
            queue = self._pending.get(source)
            if queue is None or self._books.get(source) is not takens[0].book:
                continue  # revoked while Redis was asked
            self._look_s.pop(source, None)
            for taken in takens:
                addition = taken.what if isinstance(taken.what, Addition) else additions[id(taken.what)]
                if addition is None:
                    self._look_s[source] = now_s + LOOK_AGAIN_S
                    break
                queue.popleft()
                if taken.offset > taken.book.next_offset > 0:  # retention, or markers of a producer's transactions
                    self._log.warning(
                        "offsets are missing", source=f"{source.topic}/{source.partition}", at=taken.offset
                    )
                taken.book.apply(taken.offset, addition, now_ms)
                self._unacked.setdefault(source, []).append(taken)
        return True

    async def _additions(self, items: Sequence[Item]) -> dict[int, Addition | None]:
        """By identity of the item: what it adds, once it is known whether it counts; ``None``: it is held."""
        if not items:
            return {}
        while True:
            try:
                claimed = await self._persistence.until_done(
                    "claims", partial(self._claims.settle, items, self._sources, self._admit, self._waits)
                )
                break
            except ClaimsLostError:
                await self._restore_claims()
        return {id(item): self._addition(item, how) for item, how in zip(items, claimed, strict=True)}

    def _addition(self, item: Item, how: Claimed | Held | None) -> Addition | None:
        if isinstance(how, Held):
            return None
        if how is None:
            return duplicate(item.fact)
        return addition_of(item.fact, how.labels, how.series, self._prices, how.own)

    def _waits(self, item: Item) -> bool:
        if monotonic() - item.since_s > JOIN_WAIT_S:
            return False
        return sum(map(len, self._pending.values())) < PENDING_MAX

    def _admit(self, series: Series) -> bool:
        if series in self._series:
            return True
        if len(self._series) >= self._settings.max_series:
            return False
        self._series.add(series)
        return True

    # ------------------------------------------------------------ taking over

    async def _own(self) -> None:
        """Take over what is assigned and not yet owned. An assignment that changes meanwhile starts it again."""
        while wanted := sorted(self._assigned - self._books.keys()):
            assignment = self._assignment
            books = await self._persistence.until_done("take-over", partial(self._ownership.take, wanted))
            if assignment != self._assignment:
                continue
            for book in books:
                self._books[book.source] = book
                self._series |= book.series()
            await self._flush()  # the new epochs stand in the topic before anything is counted
            self._log.info("taken over", partitions=len(books), epoch=max(book.epoch for book in books))
        if not self._sources:
            self._sources = await self._persistence.until_done("topology", self._all_sources)
            await self._read_back_own()

    async def _all_sources(self) -> list[Source]:
        found = {
            Source(tp.topic, tp.partition) for topic in SOURCES for tp in await partitions_of(self._topology, topic)
        }
        return sorted(found | self._assigned)

    async def _restore_claims(self) -> None:
        """Wait until the claims of all source partitions are there; read back those that are this worker's."""
        while True:
            await self._own()
            await self._read_back_own()
            if not await self._persistence.until_done("claims", partial(self._claims.missing, self._sources)):
                return
            await asyncio.sleep(WAIT_FOR_OTHERS_S)

    async def _read_back_own(self) -> None:
        mine = sorted(self._books)
        missing = await self._persistence.until_done("claims", partial(self._claims.missing, mine))
        if not missing:
            return
        counted = {source: self._books[source].next_offset for source in missing if source in self._books}
        written = await self._persistence.until_done(
            "claims", partial(self._claims.read_back, counted, round(time() * 1000))
        )
        if written:
            self._log.warning("Redis had lost the claims; read back", partitions=len(counted), claims=written)

    # ------------------------------------------------------------ writing

    async def flush(self) -> None:
        """Take over what is new, look after the claims and what waits, write what changed and acknowledge."""
        async with self._lock:
            await self._own()
            await self._read_back_own()
            await self._count()
            if monotonic() - self._rewritten_s > REWRITE_S:
                self._rewritten_s = monotonic()
                for book in self._books.values():
                    book.totals_dirty = True
            await self._flush()

    async def _flush(self) -> None:
        books = [book for source, book in self._books.items() if book.dirty or self._unacked.get(source)]
        await self._write([(book, *record) for book in books for record in book.bucket_records()])
        # Only once all buckets are safe: the totals say up to where everything is counted.
        await self._write([(book, *book.totals_record()) for book in books if book.totals_dirty])
        for book in books:
            book.flushed()
            if self._books.get(book.source) is book:
                for taken in self._unacked.pop(book.source, ()):
                    taken.event.ack()
        if monotonic() - self._series_at_s > RECOUNT_SERIES_S:
            self._series_at_s = monotonic()
            self._series = set().union(*(book.series() for book in self._books.values()))

    async def _write(self, writes: Sequence[tuple[Book, bytes, bytes]]) -> None:
        for start in range(0, len(writes), PUBLISH_CHUNK):
            records = [
                Record(WINDOWS, key, value, partition=self._ownership.partition_of(book.source))
                for book, key, value in writes[start : start + PUBLISH_CHUNK]
            ]
            await self._persistence.until_done("windows", partial(self._publisher.publish, records))

    # ------------------------------------------------------------ how it is doing

    def oldest_s(self) -> float | None:
        """Monotonic time at which the oldest event that is not acknowledged was taken in; ``None`` if none is."""
        heads = [*(queue[0] for queue in self._pending.values() if queue), *(t[0] for t in self._unacked.values())]
        return min((head.since_s for head in heads), default=None)

    @property
    def trouble(self) -> str | None:
        """What does not answer just now, or ``None``."""
        return self._persistence.trouble

    def waiting(self) -> str | None:
        """Why it cannot count yet, or ``None``."""
        if self._rebalancing:
            return "no partitions assigned yet"
        left = len(self._assigned - self._books.keys())
        return f"{left} partitions are being taken over" if left else None


async def run_monitor(settings: Settings) -> int:
    """The process `tidegate worker monitor`: runs until it is told to stop. Returns the exit code.

    Raises `GuardsError` (with the fix) when it cannot start.
    """
    prices = load_prices(configs_folder() / "prices.yaml")
    rules = load_rules(configs_folder() / "alerts.yaml")
    state: dict[str, Monitor] = {}
    ready: dict[str, Check] = {
        "assigned": lambda: state["monitor"].waiting() if state else "starting",
        "broker_and_store": lambda: state["monitor"].trouble if state else None,
    }
    async with hosted("monitor", settings, ready=ready) as host:
        topology = make_consumer(settings.kafka)
        host.at_end(topology.stop)
        await topology.start()
        ownership = Ownership(host.store, settings, await windows_partitions(topology))
        monitor = Monitor(host, ownership, Claims(host.store, settings), prices, topology)
        state["monitor"] = monitor
        host.oldest_s = monitor.oldest_s
        evaluator = Evaluator(settings, host.store, host.publisher, rules, host.persistence(), host.log)
        host.at_end(evaluator.stop)
        app = make_app(GROUP, settings)
        _agent(app, monitor, settings, host.lifecycle)
        host.spawn(_flush_forever(monitor, settings.monitor.flush_s), "flush")
        host.spawn(evaluator.run(), "evaluator")

        async def stop() -> None:
            await host.stop_background()
            await evaluator.stop()
            await monitor.flush()

        return await run_worker(app, host.lifecycle, stop=stop)


def _agent(app: Any, monitor: Monitor, settings: Settings, lifecycle: Lifecycle) -> None:
    async def count(stream: Any) -> None:
        async for events in stream.noack_take(settings.monitor.batch_max, within=settings.monitor.batch_within_s):
            await guarded(monitor.batch(events, app.consumer_generation_id), lifecycle)

    app.agent(app.topic(*SOURCES), name="count", concurrency=1)(count)

    async def revoked(_: Any, partitions: Any, **__: Any) -> None:
        monitor.revoke(Source(tp.topic, tp.partition) for tp in partitions)

    async def assigned(_: Any, partitions: Any, **__: Any) -> None:
        monitor.assign(Source(tp.topic, tp.partition) for tp in partitions)

    app.on_partitions_revoked.connect(revoked, weak=False)
    app.on_partitions_assigned.connect(assigned, weak=False)


async def _flush_forever(monitor: Monitor, flush_s: float) -> None:
    while True:
        await asyncio.sleep(flush_s)
        await monitor.flush()
