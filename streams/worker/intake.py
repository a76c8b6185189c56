"""Requests and responses on their way to a worker that judges them: decoded, joined, acknowledged in offset order.

What the checks worker and the slow worker have in common. For a batch: decode; keep requests for the join; find each
response's request, or park the response; hand on what is complete. Whoever takes it over says when it is finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic, time
from typing import Any, Final

import msgspec
from aiokafka.errors import KafkaError

from guards.types import Decision
from streams import metrics
from streams.events import Bad, BadCode, Event, RequestEvent, ResponseEvent, decode, iso, labels_of, to_ms
from streams.kafka import RUN_HEADER, Record, header, make_consumer
from streams.readback import ends_of, partitions_of
from streams.records import DeadLetter, DecisionRecord, Hasher, decision_record, encode
from streams.settings import Settings
from streams.topics import DLQ, REQUESTS, RESPONSES
from streams.worker.app import Entry, Lifecycle, OrderedAcks, guarded
from streams.worker.host import Host
from streams.worker.parking import Parking

__all__ = ["Intake", "Job", "Taken", "listen", "record_of"]

UNPARK_INTERVAL_S: Final = 0.05
"""Parked responses look for their requests this often: the most that a join adds to a decision's delay."""


class Taken(msgspec.Struct, frozen=True):
    """A record as it came, with its place in the order of acknowledgement."""

    entry: Entry
    raw: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    time_ms: int
    topic: str

    @property
    def run(self) -> str:
        """The replay that it belongs to, or nothing."""
        return header(self.headers, RUN_HEADER)

    @property
    def run_header(self) -> tuple[tuple[str, bytes], ...]:
        """What a record that follows from this one carries of its headers."""
        return ((RUN_HEADER, self.run.encode()),) if self.run else ()


class Job(msgspec.Struct):
    """An event on its way to a decision."""

    taken: Taken
    event: Event
    request: RequestEvent | None = None


def _always(_: Taken) -> bool:
    return True


class Intake:
    """What happens to a batch before it is judged. Knows Kafka only through `Publisher` and `OrderedAcks`.

    ``group``: the consumer group; its workers tell each other how far they have taken requests in. ``judge`` gets jobs
    that are complete (a response with its request, or once that is known to be missing) and calls `finish` for each
    when all that follows from it is safe; while it blocks, nothing more is taken in. ``wants``: records for which it is
    false are acknowledged and passed over.
    """

    def __init__(
        self,
        host: Host,
        hasher: Hasher,
        group: str,
        judge: Callable[[Sequence[Job]], Awaitable[None]],
        *,
        wants: Callable[[Taken], bool] = _always,
    ) -> None:
        self.group = group
        self._settings = host.settings.checks
        self._store = host.store
        self._publisher = host.publisher
        self._hasher = hasher
        self._judge = judge
        self._wants = wants
        self._lifecycle = host.lifecycle
        self._log = host.log
        self.persistence = host.persistence()
        self.acks = OrderedAcks()
        self.parking: Parking[Job] = Parking(self._settings.join_wait_ms / 1000, self._settings.parked_max)
        self._room = asyncio.Event()
        self._room.set()
        self._progress: dict[int, int] = {}
        self._dead_letters: list[float] = []

    @property
    def trouble(self) -> str | None:
        """What does not answer just now, or ``None``."""
        return self.persistence.trouble

    # ------------------------------------------------------------ the two agents' batches

    async def requests(self, batch: Sequence[Taken]) -> None:
        """Requests: keep for the join, hand on. Never raises."""
        jobs = await self._decode(batch, RequestEvent)
        await self.persistence.until_done(
            "requests",
            lambda: self._store.put_requests(
                [(job.event, job.taken.raw or b"") for job in jobs if isinstance(job.event, RequestEvent)],
                self._settings.request_ttl_s,
            ),
        )
        for taken in batch:
            self._progress[taken.entry.tp.partition] = taken.entry.offset + 1
        await self.persistence.until_done(
            "progress", lambda: self._store.put_progress(self.group, dict(self._progress))
        )
        await self._judge(jobs)

    async def responses(self, batch: Sequence[Taken]) -> None:
        """Responses: join, hand on those whose request is there, park the others. Never raises."""
        await self._room.wait()
        jobs = await self._decode(batch, ResponseEvent)
        found = await self._find(jobs)
        ready: list[Job] = []
        for job, request in zip(jobs, found, strict=True):
            if request is None:
                self.parking.park(job, monotonic())
            else:
                job.request = request
                ready.append(job)
        self._show_parking()
        await self._judge(ready)

    async def unpark_forever(self, ends: Callable[[], Awaitable[dict[int, int]]]) -> None:
        """Release parked responses. ``ends()`` reads the end offsets of the requests topic: partition → offset.

        It leaves out partitions of which the group has taken in all that there is: nobody may ever say so again.
        """
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
            progress = await self.persistence.until_done("progress", lambda: self._store.get_progress(self.group))
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
                await self._judge(released[start : start + self._settings.batch_max])
            self._show_parking()

    def revoke(self, partitions: Any) -> None:
        """These partitions are another's now: forget what is in flight, it will be redelivered there."""
        self.acks.revoke(partitions)
        self.parking.remove([place for place in self.parking.places if not self.acks.holds(place.item.taken.entry)])
        for tp in partitions:
            if tp.topic == REQUESTS:
                self._progress.pop(tp.partition, None)
        self._show_parking()

    # ------------------------------------------------------------ for whoever judges

    async def publish(self, records: Sequence[Record]) -> None:
        """Returns when the broker has acknowledged them."""
        if records:
            await self.persistence.until_done("publish", lambda: self._publisher.publish(records))

    def finish(self, takens: Sequence[Taken]) -> None:
        """All that follows from these is safe: acknowledge what may be by now."""
        for entry in self.acks.finish([taken.entry for taken in takens]):
            entry.event.ack()

    async def bury(self, bad: Sequence[tuple[Taken, Bad]]) -> None:
        """Publish dead letters; the records still have to be finished."""
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
                run=taken.run,
            )
            records.append(Record(DLQ, taken.key, encode(letter), taken.run_header))
        await self.publish(records)

    # ------------------------------------------------------------ steps

    async def _decode(self, batch: Sequence[Taken], kind: type[Event]) -> list[Job]:
        """The events of a batch; what is none is buried, and finished like what nobody wants."""
        jobs: list[Job] = []
        over: list[Taken] = []
        bad: list[tuple[Taken, Bad]] = []
        for taken in batch:
            metrics.EVENTS.labels(topic=taken.topic).inc()
            if not self._wants(taken):
                over.append(taken)
                continue
            outcome = decode(taken.raw)
            if isinstance(outcome, Bad):
                bad.append((taken, outcome))
            elif not isinstance(outcome, kind):
                bad.append((taken, Bad(BadCode.WRONG_TOPIC, f"not for {taken.topic}")))
            else:
                jobs.append(Job(taken, outcome))
        await self.bury(bad)
        self.finish(over + [taken for taken, _ in bad])
        return jobs

    async def _find(self, jobs: Sequence[Job]) -> list[RequestEvent | None]:
        ids = [(job.event.tenant, job.event.exchange_id) for job in jobs]
        found: list[RequestEvent | None] = await self.persistence.until_done(
            "join", lambda: self._store.get_requests(ids)
        )
        return found

    def _show_parking(self) -> None:
        metrics.PARKED.set(len(self.parking))
        (self._room.clear if self.parking.full else self._room.set)()


def record_of(job: Job, decision: Decision, hasher: Hasher) -> DecisionRecord:
    """What is published of a decision over the stream."""
    event = job.event
    request_labels = None if job.request is None else labels_of(job.request)
    return decision_record(
        decision,
        event,
        path="stream",
        labels=labels_of(event, request_labels),
        content_hash=hasher.content(event),
        time_ms=job.taken.time_ms if event.time is None else to_ms(event.time),
        hasher=hasher,
        request=job.request,
        run=job.taken.run,
    )


# ---------------------------------------------------------------- Faust


async def listen(intake: Intake, app: Any, host: Host, assigned: Callable[[], None]) -> None:
    """Let the app's agents bring batches, and the background release what is parked. ``assigned``: called with each
    assignment. Raises `GuardsError` when the requests topic is missing."""
    consumer = make_consumer(host.settings.kafka, group=intake.group)  # for its commits; it joins nothing
    host.at_end(consumer.stop)
    await consumer.start()
    partitions = await partitions_of(consumer, REQUESTS)
    consumer.assign(partitions)

    async def ends() -> dict[int, int]:
        found = await ends_of(consumer, partitions)
        begins = await consumer.beginning_offsets(partitions)
        left: dict[int, int] = {}
        for tp, end in found.items():
            taken_in = max(begins[tp], await consumer.committed(tp) or 0)
            if taken_in < end:
                left[tp.partition] = end
        return left

    _agents(intake, app, host.settings, host.lifecycle, assigned)
    host.oldest_s = intake.acks.oldest_s
    host.spawn(intake.unpark_forever(ends), "unpark")


def _agents(
    intake: Intake, app: Any, settings: Settings, lifecycle: Lifecycle, on_assigned: Callable[[], None]
) -> None:
    def taken(events: Sequence[Any]) -> list[Taken]:
        batch = []
        for event in events:
            message = event.message
            # Faust's buffer may hold events from before a rebalance; they come again, from the committed offset on.
            if message.generation_id != app.consumer_generation_id:
                continue
            entry = intake.acks.take(message.tp, message.offset, event, monotonic())
            headers = tuple(message.headers or ())
            batch.append(
                Taken(entry, message.value, message.key, headers, round(message.timestamp * 1000), message.topic)
            )
        return batch

    async def take_requests(stream: Any) -> None:
        async for events in stream.noack_take(settings.checks.batch_max, within=settings.checks.batch_within_s):
            await guarded(intake.requests(taken(events)), lifecycle)

    async def take_responses(stream: Any) -> None:
        async for events in stream.noack_take(settings.checks.batch_max, within=settings.checks.batch_within_s):
            await guarded(intake.responses(taken(events)), lifecycle)

    app.agent(app.topic(REQUESTS), name="take_requests", concurrency=1)(take_requests)
    app.agent(app.topic(RESPONSES), name="take_responses", concurrency=1)(take_responses)

    async def revoked(_: Any, partitions: Any, **__: Any) -> None:
        intake.revoke(partitions)

    async def assigned(_: Any, partitions: Any, **__: Any) -> None:
        # All of them are read again from the committed offset: what was taken in between is stale.
        intake.revoke(partitions)
        on_assigned()

    app.on_partitions_revoked.connect(revoked, weak=False)
    app.on_partitions_assigned.connect(assigned, weak=False)
