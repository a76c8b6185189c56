"""Recorded events: what a file holds, in which order its lines go, and how their times move. Pure but for `read_lines`.

What is remembered of a file is a hash per event, so memory stays small whatever the events hold.
"""

from __future__ import annotations

import gzip
import heapq
import random
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, timedelta
from hashlib import blake2b
from pathlib import Path

import msgspec
import orjson

from guards.errors import ConfigError
from streams.events import RESPONSE_SCHEMA, Bad, Event, conversation_of, decode, stage_of, to_ms
from streams.kafka import MAX_REQUEST_BYTES, Headers, Record
from streams.records import Hasher
from streams.topics import REQUESTS, RESPONSES

__all__ = [
    "Line",
    "Options",
    "Plan",
    "Shift",
    "digest",
    "exchange_key",
    "parsed",
    "read_lines",
    "record_of",
    "shuffled",
]


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
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_REQUEST_BYTES - 1_000:
                raise ConfigError(f"event {number} has {len(line)} bytes, more than a broker takes by default")
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
            content = digest(key, hasher.content(event).encode())
            if content not in contents:
                contents.add(content)
                plan.wanted[key] = plan.wanted.get(key, 0) + 1
        return plan

    @property
    def span_ms(self) -> int:
        return 0 if self.first_ms is None or self.last_ms is None else self.last_ms - self.first_ms


def exchange_key(tenant: str, exchange_id: str, stage: str) -> bytes:
    """16 bytes that stand for (tenant, exchange_id, stage)."""
    return digest(*(part.encode("utf-8", "surrogatepass") for part in (tenant, exchange_id, stage)))


def digest(*parts: bytes) -> bytes:
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


def record_of(line: Line, shift: Shift, headers: Headers) -> Record:
    """The message to publish: events by their schema and conversation, a bad line wherever it seems to belong."""
    if line.event is None:
        return Record(RESPONSES if RESPONSE_SCHEMA.encode() in line.raw else REQUESTS, None, line.raw, headers)
    topic = REQUESTS if stage_of(line.event) == "request" else RESPONSES
    key = conversation_of(line.event).encode("utf-8", "surrogatepass")
    return Record(topic, key, shift.apply(line.raw, line.event), headers)
