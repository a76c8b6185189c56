"""Window state of one source partition, and its records in llm.windows.

Exact without transactions: every bucket, and the totals, say up to which source offset they have counted; an event is
applied to each only if its offset lies beyond. So events may be redelivered from any point, and a flush may be cut off
at any record, as long as the totals of a flush are written after its buckets (see `Book`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from streams.monitor.sketch import Sketch, index_of

__all__ = [
    "OVERFLOW",
    "Addition",
    "Book",
    "Bucket",
    "Restoration",
    "Series",
    "Source",
    "WindowKey",
    "WindowRecord",
    "WindowVersionError",
    "decode_key",
    "decode_value",
    "encode_key",
    "encode_value",
]

K = TypeVar("K", str, int)

STATE_VERSION: Final = 1
"""Version of the stored state. A reader refuses newer ones: it could not tell what it would leave out."""

TOTALS_START_MS: Final = -1
"""Stands for the bucket's start in the key of the totals."""

RUNS_MAX: Final = 16
"""Watermarks of so many runs (replays) are kept per partition; the run that was silent longest goes first."""


class WindowVersionError(Exception):
    """A record of llm.windows that is not ours or newer than this code."""


class Series(msgspec.Struct, frozen=True, array_like=True, order=True, cache_hash=True):
    """What a window is about. ``run`` names a replay; live traffic has none."""

    tenant: str = "default"
    route: str = ""
    model: str = ""
    prompt_name: str = ""
    prompt_version: str = ""
    run: str = ""


OVERFLOW: Final = "~other"
"""Tenant, route and model of the one series (per run) that takes everything beyond the cap."""


class Source(msgspec.Struct, frozen=True, array_like=True, order=True, cache_hash=True):
    """A partition of a topic that is counted."""

    topic: str
    partition: int


class WindowKey(msgspec.Struct, frozen=True, array_like=True):
    """Key of a record of llm.windows. ``series`` ``None`` and ``start_ms`` -1: the source partition's totals."""

    source: Source
    series: Series | None
    start_ms: int
    epoch: int


class WindowRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag="tidegate.window.v1"):
    """``tidegate.window.v1``: a bucket, or the totals, of one source partition.

    ``offset``: all source events up to and including it are counted here. ``watermarks`` (totals): greatest event time
    by run, ms. ``counted_at_ms`` (totals): wall time at which the last event was counted.
    """

    offset: int
    version: int = STATE_VERSION
    counters: dict[str, int] = {}
    sketches: dict[str, Sketch] = {}
    watermarks: dict[str, int] = {}
    counted_at_ms: int = 0

    def __post_init__(self) -> None:
        if self.version > STATE_VERSION:
            raise ValueError(f"state version {self.version}, this code knows {STATE_VERSION}")


class Addition(msgspec.Struct):
    """What one event adds. ``series`` ``None``: to the totals alone (a duplicate, a dead record).

    ``totals`` and ``counters`` are by name; ``samples`` are values by sketch. ``timed``: may be counted as late.
    """

    series: Series | None = None
    time_ms: int = 0
    totals: dict[str, int] = {}
    counters: dict[str, int] = {}
    samples: dict[str, float] = {}
    timed: bool = False


_encoder = msgspec.json.Encoder()
_keys = msgspec.json.Decoder(WindowKey)
_values = msgspec.json.Decoder(WindowRecord)


def encode_key(key: WindowKey) -> bytes:
    return _encoder.encode(key)


def encode_value(record: WindowRecord) -> bytes:
    # `omit_defaults` would leave the version out as long as it is the newest: it must always be there.
    return _encoder.encode({"schema": "tidegate.window.v1", "version": record.version, **_fields(record)})


def _fields(record: WindowRecord) -> dict[str, object]:
    fields = {
        "offset": record.offset,
        "counters": record.counters,
        "sketches": record.sketches,
        "watermarks": record.watermarks,
        "counted_at_ms": record.counted_at_ms,
    }
    return {name: value for name, value in fields.items() if value or name == "offset"}


def decode_key(raw: bytes | None) -> WindowKey:
    """Raises `WindowVersionError` for a key that is not of llm.windows."""
    try:
        return _keys.decode(raw or b"")
    except msgspec.DecodeError as error:
        raise WindowVersionError(f"a key of llm.windows cannot be read: {error}") from error


def decode_value(raw: bytes) -> WindowRecord:
    """Raises `WindowVersionError` for a value that is not of llm.windows, or newer than this code."""
    try:
        return _values.decode(raw)
    except msgspec.DecodeError as error:
        raise WindowVersionError(f"a record of llm.windows cannot be read: {error}; upgrade this process") from error


class Bucket:
    """Sums over one stretch of event time of one series. ``offset``: the last source offset that is in it."""

    __slots__ = ("counters", "offset", "sketches")

    def __init__(self, offset: int = -1) -> None:
        self.offset = offset
        self.counters: dict[str, int] = {}
        self.sketches: dict[str, Sketch] = {}

    def add(self, counters: Mapping[str, int], samples: Mapping[str, float]) -> None:
        for name, number in counters.items():
            if number:
                self.counters[name] = self.counters.get(name, 0) + number
        for name, value in samples.items():
            sketch = self.sketches.setdefault(name, {})
            index = index_of(value)
            sketch[index] = sketch.get(index, 0) + 1

    def merge(self, counters: Mapping[str, int], sketches: Mapping[str, Mapping[int, int]], sign: int = 1) -> None:
        """Add (or with -1 take away) another's sums; what becomes zero is dropped."""
        _merge(self.counters, counters, sign)
        for name, other in sketches.items():
            sketch = self.sketches.setdefault(name, {})
            _merge(sketch, other, sign)
            if not sketch:
                del self.sketches[name]

    @property
    def empty(self) -> bool:
        return not self.counters and not self.sketches


def _merge(into: dict[K, int], other: Mapping[K, int], sign: int) -> None:
    for name, number in other.items():
        total = into.get(name, 0) + sign * number
        if total:
            into[name] = total
        else:
            into.pop(name, None)


class Book:
    """The state of one source partition under its owner.

    The owner counts (`apply`), then writes `bucket_records`, then, once the broker has acknowledged those, the
    `totals_record`, then says `flushed`, and only then acknowledges the source events. After a crash at any point the
    next owner restores what was written, and the events from the last acknowledgement on are exact again.
    """

    def __init__(self, source: Source, epoch: int, *, bucket_ms: int, retention_ms: int, lateness_ms: int) -> None:
        self.source = source
        self.epoch = epoch
        self._bucket_ms = bucket_ms
        self._retention_ms = retention_ms
        self._lateness_ms = lateness_ms
        self.next_offset = 0
        self.totals: dict[str, int] = {}
        self.watermarks: dict[str, int] = {}
        self.counted_at_ms = 0
        self.buckets: dict[tuple[Series, int], Bucket] = {}
        self._dirty: set[tuple[Series, int]] = set()
        self.totals_dirty = True  # so that the new epoch stands in the topic from the start

    def apply(self, offset: int, addition: Addition, now_ms: int) -> None:
        """Count an event, unless it was counted before. Offsets must ascend from at most `next_offset`."""
        if offset < self.next_offset:
            return
        self.next_offset = offset + 1
        self.counted_at_ms = now_ms
        self.totals_dirty = True
        _merge(self.totals, addition.totals, 1)
        series = addition.series
        if series is None:
            return
        watermark = self.watermarks.pop(series.run, addition.time_ms)
        if addition.timed and addition.time_ms < watermark - self._lateness_ms:
            _merge(self.totals, {"late": 1}, 1)
        watermark = max(watermark, addition.time_ms)
        self.watermarks[series.run] = watermark  # last in order: the most recent
        if len(self.watermarks) > RUNS_MAX:
            del self.watermarks[next(run for run in self.watermarks if run)]
        start_ms = addition.time_ms - addition.time_ms % self._bucket_ms
        if start_ms < watermark - self._retention_ms:
            return  # nobody can see that window any more; the totals have the event
        place = (series, start_ms)
        bucket = self.buckets.get(place)
        if bucket is None:
            bucket = self.buckets[place] = Bucket()
        if offset > bucket.offset:
            bucket.add(addition.counters, addition.samples)
            bucket.offset = offset
            self._dirty.add(place)

    @property
    def dirty(self) -> int:
        """Records that a flush would write."""
        return len(self._dirty) + self.totals_dirty

    def bucket_records(self) -> list[tuple[bytes, bytes]]:
        """The buckets that changed since the last `flushed`."""
        records = []
        for series, start_ms in self._dirty:
            bucket = self.buckets[series, start_ms]
            record = WindowRecord(bucket.offset, counters=bucket.counters, sketches=bucket.sketches)
            key = WindowKey(self.source, series, start_ms, self.epoch)
            records.append((encode_key(key), encode_value(record)))
        return records

    def totals_record(self) -> tuple[bytes, bytes]:
        record = WindowRecord(
            self.next_offset - 1,
            counters=self.totals,
            watermarks=self.watermarks,
            counted_at_ms=self.counted_at_ms,
        )
        return encode_key(WindowKey(self.source, None, TOTALS_START_MS, self.epoch)), encode_value(record)

    def flushed(self) -> None:
        """All that was dirty is acknowledged by the broker. Drops the buckets that nobody can see any more.

        Only here may series vanish: between two flushes the set that decides on the overflow only grows.
        """
        self._dirty.clear()
        self.totals_dirty = False
        floor_ms = {run: watermark - self._retention_ms for run, watermark in self.watermarks.items()}
        gone = [place for place in self.buckets if _is_gone(place, floor_ms)]
        for place in gone:
            del self.buckets[place]

    def series(self) -> set[Series]:
        return {series for series, _ in self.buckets}


def _is_gone(place: tuple[Series, int], floor_ms: Mapping[str, int]) -> bool:
    series, start_ms = place
    floor = floor_ms.get(series.run)
    return floor is None or start_ms < floor


class Restoration:
    """Collects the records of llm.windows for some source partitions; only the highest epoch per place counts."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._found: dict[Source, dict[tuple[Series | None, int], tuple[int, bytes]]] = {s: {} for s in sources}
        self._epochs: dict[Source, int] = dict.fromkeys(self._found, 0)

    def feed(self, raw_key: bytes | None, value: bytes | None) -> None:
        """One record, in log order. Tombstones and other sources are passed over."""
        key = decode_key(raw_key)
        places = self._found.get(key.source)
        if places is None:
            return
        self._epochs[key.source] = max(self._epochs[key.source], key.epoch)
        place = (key.series, key.start_ms)
        held = places.get(place)
        if value is not None and (held is None or key.epoch >= held[0]):
            places[place] = (key.epoch, value)

    def highest_epoch(self, source: Source) -> int:
        """The highest epoch that was seen; 0 if none."""
        return self._epochs[source]

    def fill(self, book: Book) -> None:
        """Put what was found into a new book. Raises `WindowVersionError`."""
        places = self._found[book.source]
        totals = places.pop((None, TOTALS_START_MS), None)
        if totals is not None:
            record = decode_value(totals[1])
            book.next_offset = record.offset + 1
            book.totals = dict(record.counters)
            book.watermarks = dict(record.watermarks)
            book.counted_at_ms = record.counted_at_ms
        for (series, start_ms), (_, value) in places.items():
            if series is None:
                continue
            record = decode_value(value)
            bucket = Bucket(record.offset)
            bucket.merge(record.counters, record.sketches)
            book.buckets[series, start_ms] = bucket
