"""Window state: exact under any batches, crashes, redeliveries, duplicates and zombies."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.monitor.view import View
from streams.monitor.windows import (
    OVERFLOW,
    Addition,
    Book,
    Restoration,
    Series,
    Source,
    WindowRecord,
    WindowVersionError,
    decode_key,
    decode_value,
    encode_value,
)

BUCKET_MS = 5_000
RETENTION_MS = 3_600_000
LATENESS_MS = 60_000
NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


def new_book(source: Source, epoch: int) -> Book:
    return Book(source, epoch, bucket_ms=BUCKET_MS, retention_ms=RETENTION_MS, lateness_ms=LATENESS_MS)


class World:
    """The topics (source events, llm.windows), the committed offsets and the claims: what survives a crash."""

    def __init__(self, events: dict[Source, list[tuple[str, Series, int]]], max_series: int) -> None:
        self.events = events
        self.windows: dict[Source, list[tuple[bytes, bytes]]] = {source: [] for source in events}
        self.committed = dict.fromkeys(events, 0)
        self.epochs = dict.fromkeys(events, 0)
        self.claims: dict[str, tuple[Source, int, Series]] = {}
        self.max_series = max_series

    def take_over(self, source: Source) -> Owner:
        self.epochs[source] += 1
        restoration = Restoration([source])
        for record in self.windows[source]:
            restoration.feed(*record)
        assert restoration.highest_epoch(source) < self.epochs[source]
        book = new_book(source, self.epochs[source])
        restoration.fill(book)
        return Owner(self, book)


class Owner:
    """A worker that owns a source partition, or believes so."""

    def __init__(self, world: World, book: Book) -> None:
        self.world = world
        self.book = book
        self.position = world.committed[book.source]
        self.known = book.series()

    def count(self, number: int) -> None:
        source, claims = self.book.source, self.world.claims
        for offset in range(self.position, min(self.position + number, len(self.world.events[source]))):
            exchange, series, time_ms = self.world.events[source][offset]
            if series not in self.known and len(self.known) >= self.world.max_series:
                series = Series(OVERFLOW, run=series.run)
            else:
                self.known.add(series)
            first, at, series = claims.setdefault(exchange, (source, offset, series))
            own = (first, at) == (source, offset)
            addition = (
                Addition(series, time_ms, {"requests": 1}, {"requests": 1}, {"duration_ms": float(at + 1)}, timed=True)
                if own
                else Addition(totals={"deduplicated": 1})
            )
            self.book.apply(offset, addition, NOW_MS)
            self.position = offset + 1

    def flush(self, cut: int | None = None) -> None:
        """Write what changed; with ``cut`` the process dies after so many records. Only a whole flush is committed."""
        log = self.world.windows[self.book.source]
        buckets = self.book.bucket_records()
        if cut is not None and cut <= len(buckets):
            log.extend(buckets[:cut])
            return
        log.extend(buckets)
        log.append(self.book.totals_record())
        if cut is None:
            self.book.flushed()
            self.known = self.book.series()
            self.world.committed[self.book.source] = max(self.position, self.world.committed[self.book.source])


def direct_count(world: World) -> tuple[Counter[str], Counter[tuple[Series, int]]]:
    totals: Counter[str] = Counter()
    buckets: Counter[tuple[Series, int]] = Counter()
    for source, events in world.events.items():
        for offset, (exchange, _, time_ms) in enumerate(events):
            first, at, series = world.claims[exchange]
            if (first, at) != (source, offset):
                totals["deduplicated"] += 1
                continue
            totals["requests"] += 1
            buckets[series, time_ms - time_ms % BUCKET_MS] += 1
    return totals, buckets


def view_of(records: list[tuple[bytes, bytes]]) -> View:
    view = View(bucket_ms=BUCKET_MS, retention_ms=2 * RETENTION_MS, idle_ms=5_000)
    for record in records:
        view.apply(*record)
    return view


SERIES = [Series("acme", "chat", "m"), Series("acme", "support", "m"), Series("globex", "chat", "m", "p", "2", "run-1")]
EVENT = st.tuples(
    st.integers(0, 25).map("x-{}".format), st.sampled_from(SERIES), st.integers(0, 20).map(lambda n: NOW_MS + n * 7_000)
)
STEP = st.tuples(
    st.integers(0, 1),  # the source partition
    st.sampled_from(["count", "count", "flush", "crash", "cut", "rebalance", "zombie"]),
    st.integers(0, 12),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(EVENT, max_size=25), st.lists(EVENT, max_size=25), st.lists(STEP, max_size=40), st.sampled_from([1, 99])
)
def test_any_crashes_redeliveries_duplicates_and_zombies_give_the_direct_count(
    left: list[Any], right: list[Any], steps: list[tuple[int, str, int]], max_series: int
) -> None:
    sources = [Source("llm.requests", 0), Source("llm.requests", 1)]
    world = World({sources[0]: left, sources[1]: right}, max_series)
    owners = [world.take_over(source) for source in sources]
    frozen: list[list[Owner]] = [[], []]
    for which, step, number in steps:
        owner = owners[which]
        if step == "count":
            owner.count(number)
        elif step == "flush":
            owner.flush()
        elif step in {"crash", "cut"}:
            if step == "cut":
                owner.flush(cut=number)
            owners[which] = world.take_over(sources[which])
        elif step == "rebalance":  # the old owner does not notice, and may write later
            frozen[which].append(owner)
            owners[which] = world.take_over(sources[which])
        elif frozen[which]:
            zombie = frozen[which][-1]
            zombie.count(number)
            zombie.flush(cut=10_000)  # writes all, and cannot commit
    for owner in owners:
        owner.count(len(left) + len(right))
        owner.flush()
    for zombie in frozen[0] + frozen[1]:  # all of them wake up at last
        zombie.flush(cut=10_000)
    log = [record for source in sources for record in world.windows[source]]
    compacted = list({key: (key, value) for key, value in log}.values())
    for source in sources:  # and the next owner restores what counts
        world.take_over(source).flush()
    taken_over = [record for source in sources for record in world.windows[source]]
    totals, buckets = direct_count(world)
    for records in (log, compacted, taken_over):
        view = view_of(records)
        counted = view.totals()
        assert {name: counted.get(name, 0) for name in ("requests", "deduplicated")} == {
            "requests": totals["requests"],
            "deduplicated": totals["deduplicated"],
        }
        found: Counter[tuple[Series, int]] = Counter()
        samples = 0
        for (series, start_ms), bucket in _buckets(view).items():
            found[series, start_ms] = bucket.counters["requests"]
            samples += sum(bucket.sketches["duration_ms"].values())
        assert found == buckets
        assert samples == totals["requests"]
        assert view.counted().get("llm.requests") == {0: len(left), 1: len(right)}


def _buckets(view: View) -> dict[tuple[Series, int], Any]:
    found = {}
    for start_ms in range(NOW_MS - NOW_MS % BUCKET_MS, NOW_MS + 160_000, BUCKET_MS):
        for series, bucket in view.collect(start_ms, start_ms + BUCKET_MS, lambda series: series).items():
            found[series, start_ms] = bucket
    return found


def test_a_late_event_counts_and_is_counted_as_late() -> None:
    book = new_book(Source("llm.requests", 0), 1)
    times = [NOW_MS, NOW_MS - LATENESS_MS, NOW_MS - LATENESS_MS - 1, NOW_MS - RETENTION_MS - 2 * BUCKET_MS]
    for offset, time_ms in enumerate(times):
        book.apply(offset, Addition(SERIES[0], time_ms, {"requests": 1}, {"requests": 1}, timed=True), NOW_MS)
    assert book.totals == {"requests": 4, "late": 2}
    assert sum(bucket.counters["requests"] for bucket in book.buckets.values()) == 3  # one lies beyond retention


def test_a_replay_has_a_watermark_of_its_own() -> None:
    book = new_book(Source("llm.requests", 0), 1)
    run = Series("acme", run="run-1")
    for offset, (series, time_ms) in enumerate([(SERIES[0], NOW_MS), (run, NOW_MS - 9 * HOUR_MS)]):
        book.apply(offset, Addition(series, time_ms, {"requests": 1}, {"requests": 1}, timed=True), NOW_MS)
    assert "late" not in book.totals
    assert len(book.buckets) == 2


def test_watermarks_of_runs_are_bounded_and_live_traffic_keeps_its_own() -> None:
    book = new_book(Source("llm.requests", 0), 1)
    for offset in range(100):
        series = Series(run="" if offset == 0 else f"run-{offset}")
        book.apply(offset, Addition(series, NOW_MS), NOW_MS)
    assert len(book.watermarks) == 16
    assert "" in book.watermarks


def test_old_buckets_are_dropped_and_memory_stays_flat() -> None:
    book = new_book(Source("llm.requests", 0), 1)
    for offset in range(5_000):
        book.apply(offset, Addition(SERIES[0], NOW_MS + offset * BUCKET_MS, counters={"requests": 1}), NOW_MS)
        if offset % 100 == 0:
            book.flushed()
    book.flushed()
    assert len(book.buckets) == RETENTION_MS // BUCKET_MS + 1


def test_only_what_is_not_zero_is_stored() -> None:
    book = new_book(Source("llm.requests", 3), 7)
    book.apply(0, Addition(SERIES[0], NOW_MS, {"errors": 0}, {"requests": 1, "errors": 0}), NOW_MS)
    ((key, value),) = book.bucket_records()
    assert decode_key(key).epoch == 7
    assert decode_key(key).source == Source("llm.requests", 3)
    assert value == b'{"schema":"tidegate.window.v1","version":1,"offset":0,"counters":{"requests":1}}'


def test_a_newer_state_is_refused() -> None:
    newer = encode_value(WindowRecord(1)).replace(b'"version":1', b'"version":2')
    with pytest.raises(WindowVersionError, match="upgrade"):
        decode_value(newer)
    with pytest.raises(WindowVersionError):
        decode_key(b"no key")


def test_reading_the_log_in_two_parts_restores_the_same() -> None:
    """As at a take-over: to the end, then (after the epoch was taken) what came meanwhile."""
    book = new_book(Source("llm.requests", 0), 1)
    log = []
    rng = random.Random(7)
    for offset in range(60):
        book.apply(offset, Addition(rng.choice(SERIES), NOW_MS + offset, {"requests": 1}, {"requests": 1}), NOW_MS)
        if offset % 7 == 0:
            log += [*book.bucket_records(), book.totals_record()]
            book.flushed()
    log += [*book.bucket_records(), book.totals_record()]
    restoration = Restoration([book.source])
    for record in log:
        restoration.feed(*record)
    restored = new_book(book.source, 2)
    restoration.fill(restored)
    assert restored.totals == book.totals
    assert restored.next_offset == book.next_offset
    assert {k: (b.counters, b.offset) for k, b in restored.buckets.items()} == {
        k: (b.counters, b.offset) for k, b in book.buckets.items()
    }
