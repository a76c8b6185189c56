"""Windows over all source partitions: fed with the records of llm.windows, asked for sums over a stretch of time.

Per source partition, series and bucket only the highest epoch counts, so a worker that was frozen and comes back
changes nothing. A record replaces the one before it by its difference: O(its size), however many partitions there are.
Event time carries on at the pace of the wall clock where a partition has been silent: right after a replay the last
minute is the replay's, and when traffic has stopped the windows run empty.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Final, TypeVar

from streams.monitor.windows import Bucket, Series, Source, WindowRecord, decode_key, decode_value

__all__ = ["HORIZONS_MS", "View"]

HORIZONS_MS: Final = {"1m": 60_000, "5m": 300_000, "1h": 3_600_000}

COARSE_MS: Final = 60_000
"""Buckets are also kept summed by the minute: an hour is then 60 sums, not 720."""

G = TypeVar("G", bound=Hashable)


class View:
    """All times are milliseconds since the epoch. Not thread-safe; reading never changes it."""

    def __init__(self, *, bucket_ms: int, retention_ms: int, idle_ms: int) -> None:
        self.bucket_ms = bucket_ms
        self._retention_ms = retention_ms
        self._idle_ms = idle_ms
        self._totals: dict[Source, tuple[int, WindowRecord]] = {}
        self._cells: dict[tuple[Source, Series, int], tuple[int, WindowRecord]] = {}
        self._fine: dict[Series, dict[int, Bucket]] = {}
        self._coarse: dict[Series, dict[int, Bucket]] = {}
        self._watermarks: dict[str, int] = {}
        self._pruned_at_ms: dict[str, int] = {}
        self._changed: set[Series] = set()

    # ------------------------------------------------------------ feeding

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """One record of llm.windows. Tombstones change nothing. Raises `WindowVersionError`."""
        where = decode_key(key)
        if value is None:
            return
        record = decode_value(value)
        if where.series is None:
            held = self._totals.get(where.source)
            if held is None or where.epoch >= held[0]:
                self._totals[where.source] = (where.epoch, record)
                for run, watermark in record.watermarks.items():
                    self._advance(run, watermark)
            return
        series, start_ms = where.series, where.start_ms
        if start_ms < self._floor_ms(series.run):
            return
        self._advance(series.run, start_ms)
        place = (where.source, series, start_ms)
        cell = self._cells.get(place)
        if cell is not None and where.epoch < cell[0]:
            return
        self._cells[place] = (where.epoch, record)
        for level, at_ms in ((self._fine, start_ms), (self._coarse, start_ms - start_ms % COARSE_MS)):
            bucket = level.setdefault(series, {}).setdefault(at_ms, Bucket())
            bucket.merge(record.counters, record.sketches)
            if cell is not None:
                bucket.merge(cell[1].counters, cell[1].sketches, -1)
        self._changed.add(series)

    def _floor_ms(self, run: str) -> int:
        return self._watermarks.get(run, 0) - self._retention_ms

    def _advance(self, run: str, time_ms: int) -> None:
        if time_ms <= self._watermarks.get(run, -1):
            return
        self._watermarks[run] = time_ms
        if time_ms - self._pruned_at_ms.get(run, 0) >= COARSE_MS:  # so that dropping costs O(1) amortised
            self._pruned_at_ms[run] = time_ms
            self._prune(run)

    def _prune(self, run: str) -> None:
        floor_ms = self._floor_ms(run)
        for place in [p for p in self._cells if p[1].run == run and p[2] < floor_ms]:
            del self._cells[place]
        for level, width_ms in ((self._fine, self.bucket_ms), (self._coarse, COARSE_MS)):
            for series in [series for series in level if series.run == run]:
                buckets = level[series]
                for start_ms in [s for s in buckets if s + width_ms <= floor_ms]:
                    del buckets[start_ms]
                if not buckets:
                    del level[series]

    # ------------------------------------------------------------ asking

    def totals(self) -> dict[str, int]:
        """Everything that was ever counted, by counter, over all source partitions."""
        total: dict[str, int] = {}
        for _, record in self._totals.values():
            for name, number in record.counters.items():
                total[name] = total.get(name, 0) + number
        return total

    def counted(self) -> dict[str, dict[int, int]]:
        """Topic → partition → the next source offset that is not yet durably counted."""
        counted: dict[str, dict[int, int]] = {}
        for source in sorted(self._totals):
            counted.setdefault(source.topic, {})[source.partition] = self._totals[source][1].offset + 1
        return counted

    def as_of_ms(self, now_ms: int) -> int:
        """Event time: the greatest over the source partitions; where one is idle its time moves on with the clock.

        ``now_ms`` when nothing was ever counted.
        """
        times = []
        for _, record in self._totals.values():
            if record.watermarks:
                idle_ms = max(0, now_ms - record.counted_at_ms - self._idle_ms)
                times.append(max(record.watermarks.values()) + idle_ms)
        return max(times, default=now_ms)

    def complete_to_ms(self, now_ms: int, run: str, topic: str) -> int | None:
        """Event time up to which one topic has been counted for a run: the least over its partitions.

        Partitions that have been silent for ``idle_ms`` do not hold it; when all are, it moves on with the clock.
        ``None`` when the run has brought nothing on that topic.
        """
        active: list[int] = []
        idle: list[int] = []
        for source, (_, record) in self._totals.items():
            if source.topic == topic and run in record.watermarks:
                idle_ms = now_ms - record.counted_at_ms - self._idle_ms
                (active if idle_ms <= 0 else idle).append(record.watermarks[run] + max(0, idle_ms))
        return min(active) if active else max(idle, default=None)

    def runs(self) -> set[str]:
        """The runs that anything was counted for; the empty name is live traffic."""
        return {run for _, record in self._totals.values() for run in record.watermarks}

    def end_ms(self, at_ms: int) -> int:
        """The end (exclusive) of the bucket that holds ``at_ms``: windows end at bucket borders."""
        return at_ms - at_ms % self.bucket_ms + self.bucket_ms

    def series(self) -> Iterator[Series]:
        return iter(self._fine)

    def take_changed(self) -> set[Series]:
        """The series with new records since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def collect(self, start_ms: int, end_ms: int, group: Callable[[Series], G | None]) -> dict[G, Bucket]:
        """Sums of all buckets with ``start_ms <= start < end_ms``, by group; series of the group ``None`` are left out.

        Only groups with something to tell are there.
        """
        found: dict[G, Bucket] = {}
        for series in self._fine:
            name = group(series)
            if name is not None:
                self._collect(series, start_ms, end_ms, found.setdefault(name, Bucket()))
        return {name: bucket for name, bucket in found.items() if not bucket.empty}

    def collect_one(self, series: Series, start_ms: int, end_ms: int) -> Bucket:
        """The same for one series; empty if there is nothing."""
        bucket = Bucket()
        if series in self._fine:
            self._collect(series, start_ms, end_ms, bucket)
        return bucket

    def _collect(self, series: Series, start_ms: int, end_ms: int, into: Bucket) -> None:
        fine, coarse = self._fine[series], self._coarse[series]
        first_ms = -(-start_ms // COARSE_MS) * COARSE_MS
        last_ms = end_ms // COARSE_MS * COARSE_MS
        if first_ms >= last_ms:
            self._sum(fine, start_ms, end_ms, self.bucket_ms, into)
            return
        self._sum(fine, start_ms, first_ms, self.bucket_ms, into)
        self._sum(coarse, first_ms, last_ms, COARSE_MS, into)
        self._sum(fine, last_ms, end_ms, self.bucket_ms, into)

    def _sum(self, buckets: dict[int, Bucket], start_ms: int, end_ms: int, width_ms: int, into: Bucket) -> None:
        if (end_ms - start_ms) // width_ms < len(buckets):
            at_ms = -(-start_ms // width_ms) * width_ms
            while at_ms < end_ms:
                bucket = buckets.get(at_ms)
                if bucket is not None:
                    into.merge(bucket.counters, bucket.sketches)
                at_ms += width_ms
            return
        for at_ms, bucket in buckets.items():
            if start_ms <= at_ms < end_ms:
                into.merge(bucket.counters, bucket.sketches)
