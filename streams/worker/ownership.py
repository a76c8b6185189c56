"""Taking over source partitions: a new epoch for each, and the state that the owner before has written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from redis.exceptions import RedisError

from streams.kafka import make_consumer
from streams.monitor.windows import Book, Restoration, Source
from streams.readback import partitions_of, read_to_end
from streams.settings import Settings
from streams.store import Store, StoreError
from streams.topics import WINDOWS

__all__ = ["Ownership"]

# Epochs grow over the life of the topic, also when Redis was emptied: ARGV[1] is the highest in the topic.
_NEXT_EPOCH: Final = """
local epoch = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])) + 1
redis.call('SET', KEYS[1], epoch)
return epoch
"""


class Ownership:
    """Makes books for source partitions; knows where in llm.windows each one's state lies."""

    def __init__(self, store: Store, settings: Settings, windows_partitions: int) -> None:
        self._store = store
        self._settings = settings
        self._windows_partitions = windows_partitions
        self._next_epoch = store.redis.register_script(_NEXT_EPOCH)

    def partition_of(self, source: Source) -> int:
        """The partition of llm.windows that holds a source partition's state."""
        return source.partition % self._windows_partitions

    async def take(self, sources: Sequence[Source]) -> list[Book]:
        """Books with all that is in llm.windows, under new epochs; nothing is written yet.

        The topic is read to its end, then the epoch is taken, then what came meanwhile is read: whatever the owner
        before writes from then on has a lower epoch. Raises `StoreError`, `KafkaError`, `TimeoutError` (try again) or
        `WindowVersionError` (the state is newer than this code).
        """
        monitor = self._settings.monitor
        restoration = Restoration(sources)
        partitions = [TopicPartition(WINDOWS, p) for p in sorted({self.partition_of(source) for source in sources})]
        consumer = make_consumer(self._settings.kafka)
        try:
            await consumer.start()
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            await _feed(restoration, consumer, partitions)
            epochs = [await self._epoch(source, restoration.highest_epoch(source)) for source in sources]
            await _feed(restoration, consumer, partitions)
        finally:
            await consumer.stop()
        books = []
        for source, epoch in zip(sources, epochs, strict=True):
            book = Book(
                source,
                epoch,
                bucket_ms=monitor.bucket_s * 1000,
                retention_ms=monitor.retention_s * 1000,
                lateness_ms=monitor.allowed_lateness_s * 1000,
            )
            restoration.fill(book)
            books.append(book)
        return books

    async def _epoch(self, source: Source, highest: int) -> int:
        name = self._store.key("epoch", source.topic, str(source.partition))
        try:
            return int(await self._next_epoch(keys=[name], args=[highest]))
        except (RedisError, OSError) as error:
            raise StoreError(f"the store failed: {type(error).__name__}") from error


async def windows_partitions(consumer: AIOKafkaConsumer) -> int:
    """How many partitions llm.windows has. Raises `GuardsError` when it is missing."""
    return len(await partitions_of(consumer, WINDOWS))


async def _feed(restoration: Restoration, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
    async for record in read_to_end(consumer, partitions):
        restoration.feed(record.key, record.value)
