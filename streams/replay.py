"""Replay: send recorded events again, and verify that each got exactly one decision.

The pure parts (`Plan`, `Shift`, `shuffled`, `Ledger`) know no Kafka; `Replay` moves the bytes. What is remembered of
the file and of the decisions is a hash per event, so memory stays small whatever the events hold.
"""

from __future__ import annotations

import asyncio
import gzip
import heapq
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from time import monotonic, time
from typing import Any, Final

import msgspec
import orjson
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from guards.errors import ConfigError, GuardsError
from streams.events import (
    RESPONSE_SCHEMA,
    Bad,
    Event,
    conversation_of,
    decode,
    stage_of,
    to_ms,
)
from streams.kafka import RUN_HEADER, Publisher, Record, header, make_consumer
from streams.records import Hasher
from streams.settings import KafkaSettings
from streams.topics import DECISIONS, DLQ, REQUESTS, RESPONSES

__all__ = ["Ledger", "Options", "Plan", "Progress", "Replay", "Report", "Shift", "read_lines", "shuffled"]

BATCH_EVENTS: Final = 500
"""Sent and acknowledged together: about 350 KB of real events, some milliseconds."""

POLL_MS: Final = 200
WINDOWS_POLL_S: Final = 0.25


class Options(msgspec.Struct, frozen=True):
    """How to send. At most one of ``rate`` (events a second) and ``speed`` (times recorded time); neither: at once."""

    rate: float | None = None
    speed: float | None = None
    keep_time: bool = False
    shuffle_s: float = 0.0
    seed: int = 0
    repeat_every: int = 0
    timeout_s: float = 120.0
    run: str = ""


class Report(msgspec.Struct):
    """What `tidegate replay --json` prints.

    ``events``: events of the file; ``sent``: records, repeats and bad lines included; ``decisions``: distinct
    decisions that were wanted and came; ``missing``: wanted decisions and dead letters that did not come;
    ``doubled``: a different record for a key that had one; ``repeated``: the same record again.
    """

    run: str
    events: int
    sent: int
    decisions: int = 0
    missing: int = 0
    doubled: int = 0
    repeated: int = 0
    dead_letters: int = 0
    dead_letters_expected: int = 0
    by_decision: dict[str, int] = {}
    seconds: float = 0.0
    events_per_s: float = 0.0
    shift_ms: int = 0
    seed: int | None = None
    windows_counted: bool = False

    @property
    def ok(self) -> bool:
        return not self.missing and not self.doubled


# ---------------------------------------------------------------- the file


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a JSONL file, gzipped or not; empty lines are left out. Raises `ConfigError`."""
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            for line in file:
                line = line.strip()
                if line:
                    yield line
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


class Plan(msgspec.Struct):
    """What a first pass over the file says: how much there is, when, and what is wanted of each exchange."""

    events: int = 0
    bad: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    wanted: dict[bytes, int] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[bytes]) -> Plan:
        """``wanted``: hash of (tenant, exchange_id, stage) → how many different contents, so decisions, it has."""
        plan = cls()
        hasher = Hasher(secrets.token_bytes(32))
        contents: set[bytes] = set()
        for line in lines:
            event = decode(line)
            if isinstance(event, Bad):
                plan.bad += 1
                continue
            plan.events += 1
            if event.time is not None:
                at = to_ms(event.time)
                plan.first_ms = at if plan.first_ms is None else min(plan.first_ms, at)
                plan.last_ms = at if plan.last_ms is None else max(plan.last_ms, at)
            key = exchange_key(event.tenant, event.exchange_id, stage_of(event))
            content = _digest(key, hasher.content(event).encode())
            if content not in contents:
                contents.add(content)
                plan.wanted[key] = plan.wanted.get(key, 0) + 1
        return plan

    @property
    def span_ms(self) -> int:
        return 0 if self.first_ms is None or self.last_ms is None else self.last_ms - self.first_ms


def exchange_key(tenant: str, exchange_id: str, stage: str) -> bytes:
    """16 bytes that stand for (tenant, exchange_id, stage)."""
    return _digest(*(part.encode("utf-8", "surrogatepass") for part in (tenant, exchange_id, stage)))


def _digest(*parts: bytes) -> bytes:
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(4, "big") + part)
    return state.digest()


class Shift(msgspec.Struct, frozen=True):
    """One constant added to all times of a replay, so that spacing is kept."""

    ms: int

    @classmethod
    def of(cls, plan: Plan, options: Options, now_ms: int) -> Shift:
        """The last event is at about now when it is sent, and none lies in the future when it is sent."""
        if options.keep_time or plan.last_ms is None:
            return cls(0)
        sending_ms = 0 if options.speed is None else min(plan.span_ms, round(plan.span_ms / options.speed))
        return cls(now_ms + sending_ms - plan.last_ms)

    def apply(self, line: bytes, event: Event) -> bytes:
        """The event's bytes with its time moved; all other fields as they are, unknown ones too."""
        if not self.ms or event.time is None:
            return line
        value = orjson.loads(line)
        try:
            moved = (event.time + timedelta(milliseconds=self.ms)).astimezone(UTC)
        except OverflowError as error:
            raise ConfigError("the times of the file lie too far apart to be shifted; use --keep-time") from error
        precision = "microseconds" if moved.microsecond % 1000 else "milliseconds"
        value["time"] = moved.isoformat(timespec=precision).replace("+00:00", "Z")
        return orjson.dumps(value)


class Line(msgspec.Struct, frozen=True):
    """A line on its way. ``event`` is ``None`` for a bad one, which is sent as it is."""

    raw: bytes
    event: Event | None
    at_ms: int


def parsed(lines: Iterable[bytes]) -> Iterator[Line]:
    """Lines with their times; what has none has the time of the line before it."""
    at_ms = 0
    for raw in lines:
        event = decode(raw)
        if isinstance(event, Bad):
            yield Line(raw, None, at_ms)
            continue
        if event.time is not None:
            at_ms = to_ms(event.time)
        yield Line(raw, event, at_ms)


def shuffled(lines: Iterable[Line], within_s: float, seed: int) -> Iterator[Line]:
    """Shuffle within ``within_s`` seconds of event time, reproducibly; holds that many seconds of lines in memory."""
    if within_s <= 0:
        yield from lines
        return
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    heap: list[tuple[float, int, Line]] = []
    newest_ms: float | None = None
    for number, line in enumerate(lines):
        newest_ms = line.at_ms if newest_ms is None else max(newest_ms, line.at_ms)
        heapq.heappush(heap, (line.at_ms + rng.uniform(0, within_s * 1000), number, line))
        while heap and heap[0][0] < newest_ms:  # no line that is still to come, in order of time, can be before it
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def records_of(line: Line, shift: Shift, headers: tuple[tuple[str, bytes], ...]) -> Record:
    """The message to publish: events by their schema and conversation, a bad line wherever it seems to belong."""
    if line.event is None:
        return Record(RESPONSES if RESPONSE_SCHEMA.encode() in line.raw else REQUESTS, None, line.raw, headers)
    topic = REQUESTS if stage_of(line.event) == "request" else RESPONSES
    key = conversation_of(line.event).encode("utf-8", "surrogatepass")
    return Record(topic, key, shift.apply(line.raw, line.event), headers)


# ---------------------------------------------------------------- what comes back


class Ledger:
    """Decisions wanted against decisions that came. Pure; only exchanges of the file are looked at.

    A decision counts whichever run it names: the first record for a key stands, so an exchange that was decided
    shortly before, in another run or live, is answered with that record.
    """

    def __init__(self, plan: Plan, run: str) -> None:
        self._wanted = plan.wanted
        self._run = run
        self._seen: dict[bytes, bytes] = {}  # decision key → digest of its record, timing aside
        self._came: Counter[bytes] = Counter()  # exchange key → distinct decisions
        self._letters: set[tuple[str, int, int]] = set()
        self.wanted = sum(plan.wanted.values())
        self.letters_wanted = 0
        self.decisions = 0
        self.doubled = 0
        self.repeated = 0
        self.by_decision: Counter[str] = Counter()

    def decision(self, raw: bytes | None) -> bool:
        """Take in a record of ``llm.decisions``; true if it was wanted and new."""
        record = _loads(raw)
        if record is None or record.get("path") != "stream":
            return False
        exchange = exchange_key(str(record.get("tenant")), str(record.get("exchange_id")), str(record.get("stage")))
        if exchange not in self._wanted:
            return False
        key = _digest(exchange, str(record.get("content_hash")).encode("utf-8", "surrogatepass"))
        record.pop("timing", None)
        digest = _digest(orjson.dumps(record, option=orjson.OPT_SORT_KEYS))
        earlier = self._seen.get(key)
        if earlier is not None:
            if earlier == digest:
                self.repeated += 1
            else:
                self.doubled += 1
            return False
        self._seen[key] = digest
        self._came[exchange] += 1
        if self._came[exchange] > self._wanted[exchange]:
            return False  # another content under this id, from somebody else
        self.decisions += 1
        self.by_decision[str(record.get("decision"))] += 1
        return True

    def letter(self, raw: bytes | None, run: str) -> bool:
        """Take in a record of ``llm.dlq``; true if it is of this run and new."""
        record = _loads(raw)
        if record is None or run != self._run:
            return False
        place = (str(record.get("topic")), int(record.get("partition", -1)), int(record.get("offset", -1)))
        if place in self._letters:
            return False
        self._letters.add(place)
        return True

    @property
    def letters(self) -> int:
        return len(self._letters)

    @property
    def missing(self) -> int:
        return self.wanted - self.decisions + max(0, self.letters_wanted - self.letters)


def _loads(raw: bytes | None) -> dict[str, Any] | None:
    try:
        value = orjson.loads(raw or b"")
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


# ---------------------------------------------------------------- moving the bytes


class Progress(msgspec.Struct):
    """For a progress bar: ``show(sent, decided)`` is told now and then; both count up."""

    show: Callable[[int, int], None] = lambda sent, decided: None
    say: Callable[[str], None] = lambda message: None


Counted = Callable[[], Any]
"""Asks the monitor what it has counted: an awaitable of topic → partition → next offset, ``None`` if it cannot say."""


class Replay:
    """One replay of one file. `run` sends and verifies; workers may come and go meanwhile."""

    def __init__(
        self,
        kafka: KafkaSettings,
        path: Path,
        options: Options,
        *,
        counted: Counted | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._kafka = kafka
        self._path = path
        self._options = options
        self._counted = counted
        self._progress = progress or Progress()
        self.plan = Plan.of(read_lines(path))
        if not self.plan.events and not self.plan.bad:
            raise ConfigError(f"{path} holds no events")
        self.ledger = Ledger(self.plan, options.run)
        self._headers = ((RUN_HEADER, options.run.encode()),)
        self._next: dict[str, dict[int, int]] = defaultdict(dict)  # topic → partition → offset after the last one sent
        self._sent = 0

    async def run(self) -> Report:
        """Send everything, wait for the decisions, then for the windows. Raises `GuardsError` if the broker fails."""
        options, plan, ledger = self._options, self.plan, self.ledger
        shift = Shift.of(plan, options, round(time() * 1000))
        async with self._results() as consumer:
            began = monotonic()
            self._came_s = began
            sending = asyncio.create_task(self._send(shift), name="replay-send")
            try:
                await self._collect(consumer, sending)
            finally:
                sending.cancel()
            seconds = max(self._came_s - began, 1e-3)
            await asyncio.gather(sending, return_exceptions=True)
        report = Report(
            run=options.run,
            events=plan.events,
            sent=self._sent,
            decisions=ledger.decisions,
            missing=ledger.missing,
            doubled=ledger.doubled,
            repeated=ledger.repeated,
            dead_letters=ledger.letters,
            dead_letters_expected=ledger.letters_wanted,
            by_decision=dict(sorted(ledger.by_decision.items())),
            seconds=round(seconds, 3),
            events_per_s=round(plan.events / seconds, 1),
            shift_ms=shift.ms,
            seed=options.seed if options.shuffle_s > 0 else None,
        )
        if report.ok and self._counted is not None:
            report.windows_counted = await self._wait_for_windows(self._counted)
        return report

    # ------------------------------------------------------------ sending

    async def _send(self, shift: Shift) -> None:
        publisher = Publisher(self._kafka)
        await publisher.start()
        try:
            batch: list[Record] = []
            began = monotonic()
            for line, due_s in self._schedule():
                wait_s = began + due_s - monotonic()
                if batch and (len(batch) >= BATCH_EVENTS or wait_s > 0):
                    await self._publish(publisher, batch)
                    batch = []
                    wait_s = began + due_s - monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                record = records_of(line, shift, self._headers)
                batch += [record] * self._copies(line)
            await self._publish(publisher, batch)
        finally:
            await publisher.stop()

    def _schedule(self) -> Iterator[tuple[Line, float]]:
        """Lines in the order of sending, with the second after the start at which each is due."""
        options = self._options
        lines = shuffled(parsed(read_lines(self._path)), options.shuffle_s, options.seed)
        first_ms = self.plan.first_ms or 0
        self._number = 0
        for number, line in enumerate(lines):
            due_s = 0.0
            if options.rate is not None:
                due_s = number / options.rate
            elif options.speed is not None:
                due_s = max(0.0, (line.at_ms - first_ms) / 1000 / options.speed)
            yield line, due_s

    def _copies(self, line: Line) -> int:
        every = self._options.repeat_every
        if line.event is None or not every:
            return 1
        self._number += 1
        return 2 if self._number % every == 0 else 1

    async def _publish(self, publisher: Publisher, batch: list[Record]) -> None:
        for record, done in zip(batch, await publisher.publish(batch), strict=True):
            self._next[record.topic][done.partition] = max(
                done.offset + 1, self._next[record.topic].get(done.partition, 0)
            )
            self.ledger.letters_wanted += record.key is None
        self._sent += len(batch)
        self._progress.show(self._sent, self.ledger.decisions)

    # ------------------------------------------------------------ verifying

    @asynccontextmanager
    async def _results(self) -> AsyncIterator[Any]:
        """A consumer of decisions and dead letters, at their ends as they are now. It survives what workers do."""
        consumer = make_consumer(self._kafka)
        try:
            await consumer.start()
            await consumer._client.set_topics([DECISIONS, DLQ, REQUESTS, RESPONSES])
            partitions = []
            for topic in (DECISIONS, DLQ, REQUESTS, RESPONSES):
                found = consumer.partitions_for_topic(topic)
                if not found:
                    raise ConfigError(
                        f"the topic {topic} is missing at {self._kafka.bootstrap}: tidegate topics create"
                    )
                partitions += [TopicPartition(topic, number) for number in found if topic in {DECISIONS, DLQ}]
            consumer.assign(partitions)
            for partition, end in (await consumer.end_offsets(partitions)).items():
                consumer.seek(partition, end)
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise GuardsError(
                f"the broker {self._kafka.bootstrap} does not answer ({type(error).__name__}); name it with --kafka"
            ) from error
        except ConfigError:
            await consumer.stop()
            raise
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def _collect(self, consumer: Any, sending: asyncio.Task[None]) -> None:
        """Read until nothing is missing, or until nothing came for ``timeout_s`` after all was sent."""
        alive_s = monotonic()
        while True:
            if sending.done():
                sending.result()  # raises what the sending raised
                if not self.ledger.missing:
                    return
                if monotonic() - alive_s > self._options.timeout_s:
                    self._progress.say(f"nothing came for {self._options.timeout_s:g} s; are workers running?")
                    return
            else:
                alive_s = monotonic()
            came = False
            for partition, records in (await consumer.getmany(timeout_ms=POLL_MS)).items():
                for record in records:
                    if partition.topic == DECISIONS:
                        came |= self.ledger.decision(record.value)
                    else:
                        came |= self.ledger.letter(record.value, header(record.headers, RUN_HEADER))
            if came:
                alive_s = self._came_s = monotonic()
                self._progress.show(self._sent, self.ledger.decisions)

    async def _wait_for_windows(self, counted: Counted) -> bool:
        """Until the monitor has counted all that was sent; false if it makes no headway for ``timeout_s``."""
        alive_s = monotonic()
        behind = None
        while True:
            offsets = await counted()
            if offsets is not None:
                left = sum(
                    max(0, wanted - int((offsets.get(topic) or {}).get(str(partition), 0)))
                    for topic, partitions in self._next.items()
                    for partition, wanted in partitions.items()
                )
                if not left:
                    return True
                if behind is None or left < behind:
                    behind, alive_s = left, monotonic()
            if monotonic() - alive_s > self._options.timeout_s:
                self._progress.say(
                    "the monitor has not counted all that was sent; is `tidegate worker monitor` running?"
                )
                return False
            await asyncio.sleep(WINDOWS_POLL_S)


def new_run() -> str:
    """A run id: readable, sorts by time, unique."""
    return f"replay-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
