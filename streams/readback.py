"""Reading topics back: from some offsets to where they end now. Own consumers without a group; nothing is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from time import monotonic
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from guards.errors import GuardsError

__all__ = ["Remaining", "ends_of", "partitions_of", "read_to_end", "read_until"]

STALLED_S: Final = 30.0
"""A read that gets nothing for so long, though the end was not reached, has failed; it may be tried again."""


async def partitions_of(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions of a topic. Raises `GuardsError` when the topic is missing."""
    await consumer._client.set_topics([topic])
    found = consumer.partitions_for_topic(topic)
    if not found:
        raise GuardsError(f"the topic {topic} is missing; run `tidegate topics create`")
    return [TopicPartition(topic, partition) for partition in sorted(found)]


class Remaining:
    """What is left to read up to where the partitions ended when this was made.

    Tansu answers ListOffsets with the first offset of the last batch plus one, so an end offset alone may lie within
    that batch. The high watermark that comes with the fetched batch is right on every broker.
    """

    def __init__(self, consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> None:
        self._consumer = consumer
        self._ends = dict(ends)
        self._final: set[TopicPartition] = set()

    @classmethod
    async def of(cls, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> Remaining:
        remaining = cls(consumer, await consumer.end_offsets(list(partitions)))
        await remaining.update()
        return remaining

    async def update(self) -> None:
        """Look where the consumer is now."""
        for tp, end in list(self._ends.items()):
            position = await self._consumer.position(tp)
            if position >= end and tp not in self._final:
                self._final.add(tp)
                end = self._ends[tp] = max(end, self._consumer.highwater(tp) or 0)
            if position >= end:
                del self._ends[tp]

    @property
    def partitions(self) -> list[TopicPartition]:
        return list(self._ends)


async def read_to_end(consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> AsyncIterator[Any]:
    """Records of assigned partitions from their positions to at least their ends of now, per partition in order.

    Raises `TimeoutError` when the broker stops giving records before the end.
    """
    remaining = await Remaining.of(consumer, partitions)
    last_s = monotonic()
    while remaining.partitions:
        got = await consumer.getmany(*remaining.partitions, timeout_ms=200, max_records=5_000)
        for records in got.values():
            for record in records:
                yield record
        last_s = _still_going(bool(got), last_s, remaining.partitions)
        await remaining.update()
        await asyncio.sleep(0)  # heartbeats and status pages go on while much is read


async def ends_of(consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
    """The true end offsets of assigned partitions, on every broker; moves the consumer there."""
    for tp, end in (await consumer.end_offsets(list(partitions))).items():
        consumer.seek(tp, max(end - 1, 0))
    async for _ in read_to_end(consumer, partitions):
        pass
    return {tp: await consumer.position(tp) for tp in partitions}


async def read_until(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> AsyncIterator[Any]:
    """Records of assigned partitions from their positions up to known offsets (exclusive), per partition in order.

    Raises `TimeoutError` when the broker stops giving records before the end.
    """
    left = {tp for tp, end in ends.items() if await consumer.position(tp) < end}
    last_s = monotonic()
    while left:
        got = await consumer.getmany(*left, timeout_ms=200, max_records=5_000)
        for tp, records in got.items():
            for record in records:
                if record.offset < ends[tp]:
                    yield record
        last_s = _still_going(bool(got), last_s, left)
        left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
        await asyncio.sleep(0)


def _still_going(got: bool, last_s: float, left: Collection[TopicPartition]) -> float:
    now_s = monotonic()
    if got:
        return now_s
    if now_s - last_s > STALLED_S:
        names = ", ".join(f"{tp.topic}/{tp.partition}" for tp in left)
        raise TimeoutError(f"no records of {names} for {STALLED_S:g} s, though there must be some")
    return last_s
