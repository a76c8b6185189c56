"""What Redis holds belongs to one life of the topics."""

from __future__ import annotations

import asyncio

import pytest

from guards.types import Message
from streams.events import RequestEvent
from streams.kafka import Publisher, create_topics
from streams.life import life_of_topics
from streams.policies import read_policies
from streams.records import encode
from streams.settings import KafkaSettings, RedisSettings
from streams.store import Store

pytestmark = pytest.mark.integration


async def lives(kafka: KafkaSettings, count: int) -> set[str]:
    """What so many processes that start at once take it to be."""
    await create_topics(kafka)
    publisher = Publisher(kafka)
    await publisher.start()
    try:
        return set(await asyncio.gather(*(life_of_topics(kafka, publisher) for _ in range(count))))
    finally:
        await publisher.stop()


async def test_processes_agree_and_a_topic_made_anew_is_another_life(
    fresh_kafka: KafkaSettings, kafka_settings: KafkaSettings, redis_settings: RedisSettings
) -> None:
    first = await lives(fresh_kafka, 5)
    assert len(first) == 1
    assert await lives(fresh_kafka, 1) == first
    assert not (await read_policies(fresh_kafka)).versions  # it is no policy
    other = await lives(kafka_settings, 1)
    assert first.isdisjoint(other)

    event = RequestEvent(exchange_id="life-1", messages=[Message("user", "hello")])
    store = Store(redis_settings)
    try:
        for life, expected in ((first, None), (other, None), (first, event)):
            store.bind(*life)
            (found,) = await store.get_requests([(event.tenant, event.exchange_id)])
            assert (found and found.exchange_id) == (expected and expected.exchange_id)
            if life == first:
                await store.put_requests([(event, encode(event))], ttl_s=60)
    finally:
        await store.close()


async def test_a_store_without_a_life_refuses(redis_settings: RedisSettings) -> None:
    store = Store(redis_settings)
    with pytest.raises(RuntimeError, match="not bound"):
        await store.get_progress("tidegate-checks")
    await store.close()
