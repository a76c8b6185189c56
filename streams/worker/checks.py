"""The checks worker: requests and responses → engine → decisions, at least once, in order, nothing doubled.

For a batch: decode; keep requests for the join; find each response's request; check; let the first decision for a key
stand in Redis; publish it and answer who asked; only then acknowledge, in offset order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, time
from typing import Any

import msgspec
from aiokafka.errors import KafkaError

from guards.engine import Engine, Item
from guards.policy import Policy
from guards.types import Decision
from streams import metrics
from streams.events import (
    Bad,
    BadCode,
    Event,
    RequestEvent,
    ResponseEvent,
    decode,
    exchange_of,
    iso,
    labels_of,
    stage_of,
    to_ms,
)
from streams.kafka import (
    REPLY_CHANNEL_HEADER,
    REPLY_KEY_HEADER,
    RUN_HEADER,
    Record,
    header,
    make_consumer,
)
from streams.policies import PolicyFeed
from streams.readback import ends_of, partitions_of
from streams.records import DeadLetter, DecisionRecord, Hasher, decision_record, encode
from streams.settings import Settings
from streams.store import key
from streams.topics import DECISIONS, DLQ, REQUESTS, RESPONSES
from streams.worker.app import Entry, Lifecycle, OrderedAcks, guarded, make_app, run_worker
from streams.worker.host import Host, hosted
from streams.worker.parking import Parking
from streams.worker.status import Check

__all__ = ["Checks", "run_checks"]

UNPARK_INTERVAL_S = 0.05
"""Parked responses look for their requests this often: the most that a join adds to a decision's delay."""

REPLY_PREFIX = key("reply") + ":"
"""Only such keys are written on an asker's behalf: a header must not overwrite anything else."""


class Taken(msgspec.Struct, frozen=True):
    """A record as it came, with its place in the order of acknowledgement."""

    entry: Entry
    raw: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    time_ms: int
    topic: str


class Job(msgspec.Struct):
    """An event on its way to a decision."""

    taken: Taken
    event: Event
    request: RequestEvent | None = None


class Checks:
    """What happens to a batch. Knows Kafka only through `Publisher` and `OrderedAcks`."""

    def __init__(self, host: Host, engine: Engine, hasher: Hasher) -> None:
        self._settings = host.settings.checks
        self._engine = engine
        self._store = host.store
        self._publisher = host.publisher
        self._hasher = hasher
        self._persistence = host.persistence()
        self._lifecycle = host.lifecycle
        self._log = host.log
        self.acks = OrderedAcks()
        self.parking: Parking[Job] = Parking(self._settings.join_wait_ms / 1000, self._settings.parked_max)
        self._room = asyncio.Event()
        self._room.set()
        # Two: while one batch waits for the encoder, another (the other topic's) can use the interpreter.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tidegate-engine")
        self._progress: dict[int, int] = {}
        self._dead_letters: list[float] = []

    @property
    def trouble(self) -> str | None:
        """What does not answer just now, or ``None``."""
        return self._persistence.trouble

    # ------------------------------------------------------------ the two agents' batches

    async def requests(self, batch: Sequence[Taken]) -> None:
        """Requests: keep for the join, check, decide, acknowledge. Never raises."""
        jobs, bad = self._decode(batch, RequestEvent)
        await self._persistence.until_done(
            "requests",
            lambda: self._store.put_requests(
                [(job.event, job.taken.raw or b"") for job in jobs if isinstance(job.event, RequestEvent)],
                self._settings.request_ttl_s,
            ),
        )
        for taken in batch:
            self._progress[taken.entry.tp.partition] = taken.entry.offset + 1
        await self._persistence.until_done("progress", lambda: self._store.put_progress(dict(self._progress)))
        await self._bury(bad)
        await self._decide(jobs)
        await self._finish([taken.entry for taken in batch])

    async def responses(self, batch: Sequence[Taken]) -> None:
        """Responses: join, check those whose request is there, park the others. Never raises."""
        await self._room.wait()
        jobs, bad = self._decode(batch, ResponseEvent)
        await self._bury(bad)
        found = await self._find(jobs)
        ready: list[Job] = []
        for job, request in zip(jobs, found, strict=True):
            if request is None:
                self.parking.park(job, monotonic())
            else:
                job.request = request
                ready.append(job)
        self._show_parking()
        await self._decide(ready)
        parked = {id(job.taken.entry) for job, request in zip(jobs, found, strict=True) if request is None}
        await self._finish([taken.entry for taken in batch if id(taken.entry) not in parked])

    async def unpark_forever(self, ends: Any) -> None:
        """Release parked responses. ``ends()`` reads the end offsets of the requests topic: partition → offset."""
        while True:
            await asyncio.sleep(UNPARK_INTERVAL_S)
            if not len(self.parking):
                continue
            now = monotonic()
            if self.parking.wants_ends(now):
                try:
                    self.parking.note_ends(await ends(), now)
                except (KafkaError, TimeoutError) as error:
                    self._log.warning("the ends of the requests topic cannot be read", why=repr(error))
            progress = await self._persistence.until_done("progress", self._store.get_progress)
            places = self.parking.places
            found = await self._find([place.item for place in places])
            for place, request in zip(places, found, strict=True):
                place.item.request = request
            without = [p for p in places if p.item.request is None and p.hopeless(progress)]
            released = self.parking.remove([p for p in places if p.item.request is not None] + without)
            if not released:
                continue
            metrics.REQUESTS_MISSING.inc(len(without))
            for start in range(0, len(released), self._settings.batch_max):
                chunk = released[start : start + self._settings.batch_max]
                await self._decide(chunk)
                await self._finish([job.taken.entry for job in chunk])
            self._show_parking()

    def revoke(self, partitions: Any) -> None:
        """These partitions are another's now: forget what is in flight, it will be redelivered there."""
        self.acks.revoke(partitions)
        self.parking.remove([place for place in self.parking.places if not self.acks.holds(place.item.taken.entry)])
        for tp in partitions:
            if tp.topic == REQUESTS:
                self._progress.pop(tp.partition, None)
        self._show_parking()

    # ------------------------------------------------------------ steps

    def _decode(self, batch: Sequence[Taken], kind: type[Event]) -> tuple[list[Job], list[tuple[Taken, Bad]]]:
        jobs: list[Job] = []
        bad: list[tuple[Taken, Bad]] = []
        for taken in batch:
            metrics.EVENTS.labels(topic=taken.topic).inc()
            outcome = decode(taken.raw)
            if isinstance(outcome, Bad):
                bad.append((taken, outcome))
            elif not isinstance(outcome, kind):
                bad.append((taken, Bad(BadCode.WRONG_TOPIC, f"not for {taken.topic}")))
            else:
                jobs.append(Job(taken, outcome))
        return jobs, bad

    async def _find(self, jobs: Sequence[Job]) -> list[RequestEvent | None]:
        ids = [(job.event.tenant, job.event.exchange_id) for job in jobs]
        found: list[RequestEvent | None] = await self._persistence.until_done(
            "join", lambda: self._store.get_requests(ids)
        )
        return found

    async def _decide(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        began = monotonic()
        policy = self._engine.policy  # one version for the whole batch
        loop = asyncio.get_running_loop()
        try:
            records = await loop.run_in_executor(self._threads, self._check, jobs, policy)
        except Exception as error:  # whatever it is, one event must not hold up its partition
            self._log.error("a batch failed", events=len(jobs), error=type(error).__name__)
            if len(jobs) == 1:
                why = Bad(BadCode.UNPROCESSABLE, type(error).__name__)
                await self._bury([(jobs[0].taken, why)])
                return
            for job in jobs:
                await self._decide([job])
            return
        seconds = (monotonic() - began) / len(jobs)
        for record in records:
            metrics.DECISIONS.labels(path="stream", stage=record.stage, decision=record.decision).inc()
            metrics.CHECK_SECONDS.labels(path="stream", stage=record.stage).observe(seconds)
            for failed in record.coverage.failed:
                metrics.GUARD_FAILURES.labels(guard=failed.guard, code=failed.code).inc()
        standing: list[bytes] = await self._persistence.until_done(
            "decisions", lambda: self._store.put_decisions(records, self._settings.decision_ttl_s)
        )
        await self._answer(jobs, standing)
        await self._publish(
            [
                Record(DECISIONS, record.conversation_id.encode(), value, _run_header(job.taken))
                for job, record, value in zip(jobs, records, standing, strict=True)
            ]
        )

    def _check(self, jobs: Sequence[Job], policy: Policy) -> list[DecisionRecord]:
        """Runs in a thread."""
        items = [Item(exchange_of(job.event, job.request), stage_of(job.event)) for job in jobs]
        decisions = self._engine.check_batch(items, policy=policy)
        return [self._record(job, decision) for job, decision in zip(jobs, decisions, strict=True)]

    def _record(self, job: Job, decision: Decision) -> DecisionRecord:
        event = job.event
        request_labels = None if job.request is None else labels_of(job.request)
        return decision_record(
            decision,
            event,
            path="stream",
            labels=labels_of(event, request_labels),
            content_hash=self._hasher.content(event),
            time_ms=job.taken.time_ms if event.time is None else to_ms(event.time),
            hasher=self._hasher,
            request=job.request,
            run=header(job.taken.headers, RUN_HEADER),
        )

    async def _answer(self, jobs: Sequence[Job], standing: Sequence[bytes]) -> None:
        replies = []
        for job, value in zip(jobs, standing, strict=True):
            reply_key = header(job.taken.headers, REPLY_KEY_HEADER)
            channel = header(job.taken.headers, REPLY_CHANNEL_HEADER)
            if reply_key.startswith(REPLY_PREFIX) and channel.startswith(REPLY_PREFIX):
                replies.append((reply_key, channel, value))
        if replies:
            await self._persistence.until_done(
                "reply", lambda: self._store.reply(replies, self._settings.decision_ttl_s)
            )

    async def _bury(self, bad: Sequence[tuple[Taken, Bad]]) -> None:
        if not bad:
            return
        now = monotonic()
        self._dead_letters = [at for at in self._dead_letters if now - at < 60] + [now] * len(bad)
        if len(self._dead_letters) > self._settings.dead_letter_limit_per_min:
            self._lifecycle.fail(
                f"more than {self._settings.dead_letter_limit_per_min} dead letters a minute; if they are meant to be, "
                "raise checks.dead_letter_limit_per_min"
            )
            await asyncio.Event().wait()  # the process ends; these records stay unacknowledged
        records = []
        for taken, why in bad:
            metrics.DEAD_LETTERS.labels(code=why.code).inc()
            raw = taken.raw or b""
            letter = DeadLetter(
                code=why.code,
                detail=why.detail,
                topic=taken.topic,
                partition=taken.entry.tp.partition,
                offset=taken.entry.offset,
                hash=self._hasher.hash("", raw),
                length_bytes=len(raw),
                time=iso(time() * 1000),
                run=header(taken.headers, RUN_HEADER),
            )
            records.append(Record(DLQ, taken.key, encode(letter), _run_header(taken)))
        await self._publish(records)

    async def _publish(self, records: Sequence[Record]) -> None:
        if records:
            await self._persistence.until_done("publish", lambda: self._publisher.publish(records))

    async def _finish(self, entries: Sequence[Entry]) -> None:
        for entry in self.acks.finish(entries):
            entry.event.ack()

    def _show_parking(self) -> None:
        metrics.PARKED.set(len(self.parking))
        (self._room.clear if self.parking.full else self._room.set)()


def _run_header(taken: Taken) -> tuple[tuple[str, bytes], ...]:
    run = header(taken.headers, RUN_HEADER)
    return ((RUN_HEADER, run.encode()),) if run else ()


async def run_checks(settings: Settings) -> int:
    """The process `tidegate worker checks`: runs until it is told to stop. Returns the exit code.

    Raises `GuardsError` (with the fix) when it cannot start.
    """
    hasher = Hasher(settings.master_key())
    state: dict[str, Any] = {"engine": None, "assigned": False, "checks": None}
    ready: dict[str, Check] = {
        "models": lambda: None if state["engine"] is not None else "models are loading",
        "assigned": lambda: None if state["assigned"] else "no partitions assigned yet",
        "broker_and_store": lambda: state["checks"].trouble if state["checks"] else None,
    }
    async with hosted("checks", settings, ready=ready) as host:

        def on_error(guard: str, error: BaseException) -> None:
            metrics.GUARD_ERRORS.labels(guard=guard).inc()
            host.log.error("a guard raised", guard=guard, error=type(error).__name__)

        def accept(policy: Policy) -> None:
            if state["engine"] is not None:
                state["engine"].adopt(policy)
                return
            engine = Engine(policy, options=settings.guards, on_error=on_error, hasher=hasher.mask)
            engine.warm()
            state["engine"] = engine

        await host.store.agree_on_key(hasher.key_id)
        feed = PolicyFeed(settings, accept, host.log)
        host.at_end(feed.stop)
        await feed.start()
        consumer = make_consumer(settings.kafka)
        host.at_end(consumer.stop)
        await consumer.start()
        partitions = await partitions_of(consumer, REQUESTS)
        consumer.assign(partitions)

        async def ends() -> dict[int, int]:
            return {tp.partition: end for tp, end in (await ends_of(consumer, partitions)).items()}

        checks = Checks(host, state["engine"], hasher)
        state["checks"] = checks
        host.oldest_s = checks.acks.oldest_s
        app = make_app("tidegate-checks", settings)
        _agents(app, checks, settings, state, host.lifecycle)
        host.spawn(checks.unpark_forever(ends), "unpark")
        host.spawn(feed.watch(), "policy-feed")
        return await run_worker(app, host.lifecycle, stop=feed.stop)


def _agents(app: Any, checks: Checks, settings: Settings, state: dict[str, Any], lifecycle: Lifecycle) -> None:
    def taken(events: Sequence[Any]) -> list[Taken]:
        batch = []
        for event in events:
            message = event.message
            # Faust's buffer may hold events from before a rebalance; they come again, from the committed offset on.
            if message.generation_id != app.consumer_generation_id:
                continue
            entry = checks.acks.take(message.tp, message.offset, event, monotonic())
            headers = tuple(message.headers or ())
            batch.append(
                Taken(entry, message.value, message.key, headers, round(message.timestamp * 1000), message.topic)
            )
        return batch

    async def check_requests(stream: Any) -> None:
        async for events in stream.noack_take(settings.checks.batch_max, within=settings.checks.batch_within_s):
            await guarded(checks.requests(taken(events)), lifecycle)

    async def check_responses(stream: Any) -> None:
        async for events in stream.noack_take(settings.checks.batch_max, within=settings.checks.batch_within_s):
            await guarded(checks.responses(taken(events)), lifecycle)

    app.agent(app.topic(REQUESTS), name="check_requests", concurrency=1)(check_requests)
    app.agent(app.topic(RESPONSES), name="check_responses", concurrency=1)(check_responses)

    async def revoked(_: Any, partitions: Any, **__: Any) -> None:
        checks.revoke(partitions)

    async def assigned(_: Any, partitions: Any, **__: Any) -> None:
        # All of them are read again from the committed offset: what was taken in between is stale.
        checks.revoke(partitions)
        state["assigned"] = True

    app.on_partitions_revoked.connect(revoked, weak=False)
    app.on_partitions_assigned.connect(assigned, weak=False)
