"""Claims in Redis: the first (topic, partition, offset) of an event counts, wherever and however often it comes again.

Claims are only good while none was lost. Each source partition has a sentinel key without expiry; all of them are
looked at in the same script that claims. Where one is missing, Redis was emptied (or the partition is new): its owner
reads the claims back from the topic, up to what it has counted, before anybody counts on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec
from aiokafka import TopicPartition
from redis.exceptions import RedisError

from guards.errors import GuardsError
from streams.events import Bad, Labels
from streams.kafka import RUN_HEADER, header, make_consumer
from streams.monitor.claims import Claim, decode_claim, encode_claim
from streams.monitor.facts import Fact, read, series_of
from streams.monitor.windows import OVERFLOW, Series, Source
from streams.readback import read_until
from streams.settings import Settings
from streams.store import Store, StoreError
from streams.topics import REQUESTS

Admit = Callable[[Series], bool]
"""Whether a series may stand for itself, or goes to the overflow."""

Waits = Callable[["Item"], bool]
"""Whether a response that lacks labels waits for its request to be claimed."""

__all__ = ["HELD", "Claimed", "Claims", "ClaimsLostError", "Held", "Item"]

_READ_BACK_CHUNK: Final = 500
"""Claims written per round trip while reading back."""

# KEYS: sentinels, then claims. ARGV: number of sentinels, milliseconds to live, then a value per claim ('' only reads).
# Nothing is claimed, and nil returned, if a sentinel is missing. Else the values that stood before, nil for a first.
_CLAIM: Final = """
local sentinels = tonumber(ARGV[1])
for i = 1, sentinels do
  if redis.call('EXISTS', KEYS[i]) == 0 then return false end
end
local before = {}
for i = sentinels + 1, #KEYS do
  local value = ARGV[i - sentinels + 2]
  if value == '' then
    before[#before + 1] = redis.call('GET', KEYS[i])
  else
    before[#before + 1] = redis.call('SET', KEYS[i], value, 'NX', 'GET', 'PX', ARGV[2])
  end
end
return before
"""

# Only the reader that began last may say that the claims are back: another may have begun because they were lost again.
_FINISH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], '1')
redis.call('DEL', KEYS[1])
return 1
"""

_READ_BACK_TTL_S: Final = 3_600


class ClaimsLostError(GuardsError):
    """Claims of some source partitions are missing; they must be read back before anything is counted."""


class Item(msgspec.Struct):
    """A record on its way to be counted. ``since_s``: monotonic time at which it was taken in."""

    source: Source
    offset: int
    fact: Fact
    since_s: float = 0.0


class Claimed(msgspec.Struct, frozen=True):
    """A record that counts: under which labels and series, and which of its ``once`` counters are its own to tell."""

    labels: Labels
    series: Series
    own: tuple[str, ...] = ()


class Held:
    """A record that is to be settled later."""


HELD: Final = Held()


class Claims:
    """Methods raise `StoreError` when Redis does not answer in time; what was claimed by then stays so."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._ttl_ms = settings.monitor.dedup_horizon_s * 1000
        self._claim = store.redis.register_script(_CLAIM)
        self._finish = store.redis.register_script(_FINISH)

    async def settle(
        self, items: Sequence[Item], sources: Collection[Source], admit: Admit, waits: Waits
    ) -> list[Claimed | Held | None]:
        """For each record how it counts, or ``None``: another offset has it. Two round trips for a batch, at most.

        ``sources``: all source partitions there are; raises `ClaimsLostError` if the claims of one are not there.
        Requests go first, so that a response in the same batch finds its request's labels. Where they are not there
        and it ``waits``, it is held, and with it all that follows in its partition.
        """
        outcome: list[Claimed | Held | None] = [None] * len(items)
        requests = [n for n, item in enumerate(items) if item.fact.kind == "request"]
        others = [n for n, item in enumerate(items) if item.fact.kind != "request"]
        wanted = [n for n in others if items[n].fact.request_claim is not None]
        requested: dict[int, Labels] = {}
        if requests or wanted:
            writes = [self._write(items[n], None, admit) for n in requests]
            reads = [(self._name(items[n].fact.request_claim or ()), b"") for n in wanted]
            before = await self._run(sources, [*writes, *reads])
            self._note(items, requests, writes, before[: len(writes)], outcome)
            for n, value in zip(wanted, before[len(writes) :], strict=True):
                if value is not None:
                    requested[n] = decode_claim(value).labels
        others = self._not_held(items, others, requested, waits, outcome)
        if others:
            writes = [self._write(items[n], requested.get(n), admit) for n in others]
            onces = [(n, counter, self._name(claim)) for n in others for counter, claim in items[n].fact.once.items()]
            marks = [(name, encode_claim(_mark(items[n]))) for n, _, name in onces]
            before = await self._run(sources, [*writes, *marks])
            own: dict[int, list[str]] = {}
            for (n, counter, _), value in zip(onces, before[len(writes) :], strict=True):
                if value is None or decode_claim(value).is_of(items[n].source, items[n].offset):
                    own.setdefault(n, []).append(counter)
            self._note(items, others, writes, before[: len(writes)], outcome, own)
        return outcome

    @staticmethod
    def _not_held(
        items: Sequence[Item],
        numbers: Sequence[int],
        requested: Mapping[int, Labels],
        waits: Waits,
        outcome: list[Claimed | Held | None],
    ) -> list[int]:
        held: set[Source] = set()
        passed = []
        for n in numbers:
            item = items[n]
            lacks = item.fact.request_claim is not None and n not in requested
            if item.source in held or (lacks and waits(item)):
                held.add(item.source)
                outcome[n] = HELD
            else:
                passed.append(n)
        return passed

    def _write(self, item: Item, request: Labels | None, admit: Admit) -> tuple[str, bytes]:
        labels = item.fact.labels(request)
        series = series_of(labels, item.fact.run, admit)
        claim = Claim(item.source.topic, item.source.partition, item.offset, labels, series.tenant == OVERFLOW)
        return self._name(item.fact.claim), encode_claim(claim)

    def _note(
        self,
        items: Sequence[Item],
        numbers: Sequence[int],
        writes: Sequence[tuple[str, bytes]],
        before: Sequence[bytes | None],
        outcome: list[Claimed | Held | None],
        own: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        for n, (_, ours), first in zip(numbers, writes, before, strict=True):
            item = items[n]
            claim = decode_claim(ours if first is None else first)
            if claim.is_of(item.source, item.offset):
                series = series_of(claim.labels, item.fact.run, _admit_none if claim.overflow else _admit_all)
                outcome[n] = Claimed(claim.labels, series, tuple((own or {}).get(n, ())))

    async def _run(self, sources: Collection[Source], pairs: Sequence[tuple[str, bytes]]) -> list[bytes | None]:
        names = [self._sentinel(source) for source in sources]
        keys = [*names, *(name for name, _ in pairs)]
        args: list[int | bytes] = [len(names), self._ttl_ms, *(value for _, value in pairs)]
        try:
            before = await self._claim(keys=keys, args=args)
        except (RedisError, OSError) as error:
            raise StoreError(f"the store failed: {type(error).__name__}") from error
        if before is None:
            raise ClaimsLostError("claims are missing; they are read back from the topics")
        return list(before)

    # ------------------------------------------------------------ after Redis was emptied

    async def missing(self, sources: Collection[Source]) -> list[Source]:
        """The source partitions whose claims are not there."""
        if not sources:
            return []
        ordered = list(sources)
        try:
            found = await self._store.redis.mget([self._sentinel(source) for source in ordered])
        except (RedisError, OSError) as error:
            raise StoreError(f"the store failed: {type(error).__name__}") from error
        return [source for source, value in zip(ordered, found, strict=True) if value is None]

    async def read_back(self, counted: Mapping[Source, int], now_ms: int) -> int:
        """Claim again what was counted: partitions that this worker owns, up to their next offset (exclusive).

        Reads the last ``dedup_horizon_s`` of the topics, requests first. Returns how many claims were written. Raises
        `KafkaError` or `StoreError`; then the sentinels stay away and it is done again.
        """
        tokens = {source: secrets.token_hex(8) for source in counted}
        written = 0
        try:
            for source, token in tokens.items():
                await self._store.redis.set(self._reading(source), token, ex=_READ_BACK_TTL_S)
            for wanted in (
                {s: end for s, end in counted.items() if s.topic == REQUESTS},
                {s: end for s, end in counted.items() if s.topic != REQUESTS},
            ):
                written += await self._read_back({s: end for s, end in wanted.items() if end > 0}, now_ms)
            for source, token in tokens.items():
                await self._finish(keys=[self._reading(source), self._sentinel(source)], args=[token])
        except (RedisError, OSError) as error:
            raise StoreError(f"the store failed: {type(error).__name__}") from error
        return written

    async def _read_back(self, counted: Mapping[Source, int], now_ms: int) -> int:
        if not counted:
            return 0
        consumer = make_consumer(self._settings.kafka)
        await consumer.start()
        written = 0
        try:
            ends = {TopicPartition(source.topic, source.partition): end for source, end in counted.items()}
            consumer.assign(list(ends))
            since = await consumer.offsets_for_times(dict.fromkeys(ends, max(0, now_ms - self._ttl_ms)))
            for tp, found in since.items():
                # Nothing is younger than the horizon: nothing to claim.
                consumer.seek(tp, ends[tp] if found is None else found.offset)
            chunk: list[Item] = []
            async for record in read_until(consumer, ends):
                fact = read(record.topic, record.value, record.timestamp, header(record.headers, RUN_HEADER))
                if not isinstance(fact, Bad):
                    chunk.append(Item(Source(record.topic, record.partition), record.offset, fact))
                if len(chunk) >= _READ_BACK_CHUNK:
                    await self.settle(chunk, (), _admit_all, _waits_not)
                    written += len(chunk)
                    chunk = []
            await self.settle(chunk, (), _admit_all, _waits_not)
            written += len(chunk)
        finally:
            await consumer.stop()
        return written

    def _name(self, claim: Sequence[str]) -> str:
        return self._store.key("claim", *claim)

    def _sentinel(self, source: Source) -> str:
        return self._store.key("claims-of", source.topic, str(source.partition))

    def _reading(self, source: Source) -> str:
        return self._store.key("claims-reading", source.topic, str(source.partition))


def _waits_not(_: Item) -> bool:
    return False


def _admit_none(_: Series) -> bool:
    return False


def _admit_all(_: Series) -> bool:
    return True


def _mark(item: Item) -> Claim:
    return Claim(item.source.topic, item.source.partition, item.offset)
