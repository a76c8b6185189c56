"""Replay: send recorded events again, and verify that each got exactly one decision.

`Ledger` is pure and keeps a hash per decision; `Replay` moves the bytes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Any, Final, Protocol

import msgspec
import orjson
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from guards.errors import ConfigError, GuardsError
from streams.broker_state import partition_counts
from streams.kafka import RUN_HEADER, Publisher, PublishError, Record, header, make_consumer
from streams.recording import Line, Options, Plan, Shift, digest, exchange_key, parsed, read_lines, record_of, shuffled
from streams.records import Amendment
from streams.settings import KafkaSettings
from streams.topics import DECISIONS, DLQ, REQUESTS, RESPONSES

__all__ = ["Counted", "Ledger", "Replay", "Report", "Watcher", "new_run"]

_AMENDMENT: Final = str(Amendment.__struct_config__.tag)

BATCH_EVENTS: Final = 500
"""Sent and acknowledged together: about 350 KB of real events, some milliseconds."""

POLL_MS: Final = 200
WINDOWS_POLL_S: Final = 0.25
RESEND_PAUSE_S: Final = 0.5
SKIP_S: Final = 1.0
SETTLE_S: Final = 3.0
"""After the last decision was there, repeats of records are awaited while they come this close together."""


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
        if record is None or record.get("path") != "stream" or record.get("schema") == _AMENDMENT:
            return False
        exchange = exchange_key(str(record.get("tenant")), str(record.get("exchange_id")), str(record.get("stage")))
        if exchange not in self._wanted:
            return False
        key = digest(exchange, str(record.get("content_hash")).encode("utf-8", "surrogatepass"))
        record.pop("timing", None)
        said = digest(orjson.dumps(record, option=orjson.OPT_SORT_KEYS))
        earlier = self._seen.get(key)
        if earlier is not None:
            if earlier == said:
                self.repeated += 1
            else:
                self.doubled += 1
            return False
        self._seen[key] = said
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
    def records(self) -> int:
        """Stream decisions for exchanges of the file that came, the same ones again included."""
        return sum(self._came.values()) + self.repeated + self.doubled

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


class Watcher(Protocol):
    """Who watches a replay."""

    def show(self, sent: int, decided: int) -> None:
        """How far it is; both count up."""

    def say(self, message: str) -> None:
        """Something that a person should know."""


Counted = Callable[[], Awaitable[Mapping[str, Mapping[str, int]] | None]]
"""Asks the monitor what it has counted: topic → partition → next offset; ``None`` when it cannot say just now."""


class Replay:
    """One replay of one file. `run` sends and verifies; workers may come and go meanwhile."""

    def __init__(
        self,
        kafka: KafkaSettings,
        path: Path,
        plan: Plan,
        options: Options,
        watcher: Watcher,
        counted: Counted | None = None,
    ) -> None:
        if not plan.events and not plan.bad:
            raise ConfigError(f"{path} holds no events")
        self._kafka = kafka
        self._path = path
        self._options = options
        self._watcher = watcher
        self._counted = counted
        self.plan = plan
        self.ledger = Ledger(plan, options.run)
        self._headers = ((RUN_HEADER, options.run.encode()),)
        self._next: dict[str, dict[int, int]] = defaultdict(dict)  # topic → partition → offset after the last one sent
        self._sent = 0
        self._alive_s = 0.0  # monotonic time of the last result of any kind
        self._last_s = 0.0  # monotonic time of the last wanted decision

    async def run(self) -> Report:
        """Send everything, wait for the decisions and the windows. Raises `GuardsError` if the broker fails."""
        options, plan, ledger = self._options, self.plan, self.ledger
        shift = Shift.of(plan, options, round(time() * 1000))
        async with self._results() as consumer:
            began = self._last_s = monotonic()
            sending = asyncio.create_task(self._send(shift), name="replay-send")
            try:
                await self._collect(consumer, lambda: sending.done() and not ledger.missing, sending)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            sending.result()
            counting = asyncio.create_task(self._wait_for_windows(), name="replay-windows")
            try:
                await self._collect(consumer, self._settled, counting)
            finally:
                counting.cancel()
                await asyncio.gather(counting, return_exceptions=True)
        seconds = max(self._last_s - began, 1e-3)
        return Report(
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
            windows_counted=counting.result(),
        )

    # ------------------------------------------------------------ sending

    async def _send(self, shift: Shift) -> None:
        publisher = Publisher(self._kafka)
        await publisher.start()
        try:
            batch: list[Record] = []
            began = monotonic()
            for line, copies, due_s in self._schedule():
                if batch and (len(batch) >= BATCH_EVENTS or began + due_s > monotonic()):
                    await self._publish(publisher, batch)
                    batch = []
                wait_s = began + due_s - monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                batch += [record_of(line, shift, self._headers)] * copies
            await self._publish(publisher, batch)
        finally:
            await publisher.stop()

    def _schedule(self) -> Iterator[tuple[Line, int, float]]:
        """Lines in the order of sending: how often each goes, and the second after the start at which it is due."""
        options, first_ms = self._options, self.plan.first_ms or 0
        events = 0
        lines = shuffled(parsed(read_lines(self._path)), options.shuffle_s, options.seed)
        for number, line in enumerate(lines):
            events += line.event is not None
            again = line.event is not None and options.repeat_every > 0 and events % options.repeat_every == 0
            due_s = 0.0
            if options.rate is not None:
                due_s = number / options.rate
            elif options.speed is not None:
                due_s = (line.at_ms - first_ms) / 1000 / options.speed
            yield line, 2 if again else 1, due_s

    async def _publish(self, publisher: Publisher, batch: list[Record]) -> None:
        began = monotonic()
        while True:
            try:
                acknowledged = await publisher.publish(batch)
                break
            except PublishError as error:  # a broker that restarts; what is sent twice is decided once
                if monotonic() - began > self._options.timeout_s or not getattr(error.__cause__, "retriable", True):
                    raise
                self._watcher.say(f"sending again: {error}")
                await asyncio.sleep(RESEND_PAUSE_S)
        for record, done in zip(batch, acknowledged, strict=True):
            self._next[record.topic][done.partition] = max(
                done.offset + 1, self._next[record.topic].get(done.partition, 0)
            )
            self.ledger.letters_wanted += record.key is None
        self._sent += len(batch)
        self._watcher.show(self._sent, self.ledger.decisions)

    # ------------------------------------------------------------ verifying

    @asynccontextmanager
    async def _results(self) -> AsyncIterator[Any]:
        """A consumer of decisions and dead letters, at their ends as they are now. It survives what workers do."""
        counts = await partition_counts(self._kafka)
        missing = [topic for topic in (DECISIONS, DLQ, REQUESTS, RESPONSES) if topic not in counts]
        if missing:
            where = self._kafka.bootstrap
            raise ConfigError(f"{where} has no topic {', '.join(missing)}: run `tidegate topics create`")
        partitions = [TopicPartition(topic, n) for topic in (DECISIONS, DLQ) for n in range(counts[topic])]
        consumer = make_consumer(self._kafka)
        try:
            await consumer.start()
            consumer.assign(partitions)
            for partition, end in (await consumer.end_offsets(partitions)).items():
                consumer.seek(partition, end)
            await _skip_old(consumer)
            yield consumer
        except (KafkaError, OSError) as error:
            raise GuardsError(
                f"the broker {self._kafka.bootstrap} does not answer ({type(error).__name__}); name it with --kafka"
            ) from error
        finally:
            await consumer.stop()

    async def _collect(self, consumer: Any, done: Callable[[], bool], work: asyncio.Task[Any]) -> None:
        """Read results until ``work`` has ended and ``done`` says so, or nothing new came for ``timeout_s`` since."""
        self._alive_s = monotonic()
        while not (work.done() and done()):
            if not work.done():
                self._alive_s = monotonic()
            elif work.exception() is not None:
                return
            elif monotonic() - self._alive_s > self._options.timeout_s:
                self._watcher.say(f"nothing came for {self._options.timeout_s:g} s; are workers running?")
                return
            for partition, records in (await consumer.getmany(timeout_ms=POLL_MS)).items():
                for record in records:
                    self._take(partition.topic, record)
            self._watcher.show(self._sent, self.ledger.decisions)

    def _take(self, topic: str, record: Any) -> None:
        before = self.ledger.records
        if topic == DLQ:
            wanted = self.ledger.letter(record.value, header(record.headers, RUN_HEADER))
        else:
            wanted = self.ledger.decision(record.value)
        if wanted:
            self._last_s = monotonic()
        if wanted or self.ledger.records > before:
            self._alive_s = monotonic()

    def _settled(self) -> bool:
        """Whether what was sent twice has come back twice; if not, it may have come before a worker was killed."""
        return (
            bool(self.ledger.missing)
            or self.ledger.records + self.ledger.letters >= self._sent
            or monotonic() - self._alive_s > SETTLE_S
        )

    async def _wait_for_windows(self) -> bool:
        """Until the monitor has counted all that was sent; false if it makes no headway for ``timeout_s``."""
        if self._counted is None or self.ledger.missing:
            return False
        alive_s = monotonic()
        behind: int | None = None
        while True:
            offsets = await self._counted()
            if offsets is not None:
                left = sum(
                    max(0, wanted - int(offsets.get(topic, {}).get(str(partition), 0)))
                    for topic, partitions in self._next.items()
                    for partition, wanted in partitions.items()
                )
                if not left:
                    return True
                if behind is None or left < behind:
                    behind, alive_s = left, monotonic()
            if monotonic() - alive_s > self._options.timeout_s:
                self._watcher.say("the monitor has not counted what was sent; is `tidegate worker monitor` running?")
                return False
            await asyncio.sleep(WINDOWS_POLL_S)


async def _skip_old(consumer: Any) -> None:
    """Read away what is there already: the embedded broker counts only the first record of the last batch to the end.

    Live traffic may go on coming, and nothing of this replay was sent yet: stop at the first silence or after a while.
    """
    until_s = monotonic() + SKIP_S
    while monotonic() < until_s and await consumer.getmany(timeout_ms=POLL_MS):
        pass


def new_run() -> str:
    """A run id: readable, sorts by time, unique."""
    return f"replay-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
