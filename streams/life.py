"""The life of the topics: an id in ``llm.policy``, so that what Redis holds is never taken for another broker's.

Redis may outlive the topics (an embedded broker keeps nothing over its restart), and they are then filled anew. Keys of
the store that speak of events therefore lie under this id, and those of a life that has ended expire unseen.
"""

from __future__ import annotations

import asyncio
import secrets
from time import time
from typing import Final

import msgspec
from aiokafka.errors import KafkaError

from guards.errors import GuardsError
from streams.events import iso
from streams.kafka import Record, SupportsPublish, make_consumer
from streams.readback import partitions_of, read_to_end
from streams.records import TopicsLife, encode
from streams.settings import KafkaSettings
from streams.topics import POLICY

__all__ = ["life_of_topics"]

_TIMEOUT_S: Final = 30.0

_decoder = msgspec.json.Decoder(TopicsLife)


async def life_of_topics(kafka: KafkaSettings, publisher: SupportsPublish) -> str:
    """The id of the topics' life; the first process to ask writes it. ``publisher``: a started one.

    Processes that ask at once each write one under a key of its own (so that compaction keeps both), and all take the
    one that lies first. Raises `GuardsError` when the topic cannot be read, `PublishError` when it cannot be written.
    """
    consumer = make_consumer(kafka)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await consumer.start()
            partitions = await partitions_of(consumer, POLICY)
            consumer.assign(partitions)
            for attempt in range(2):
                async for record in read_to_end(consumer, partitions):
                    if (life := _decode(record.value)) is not None:
                        return life.id
                if attempt == 0:
                    new = TopicsLife(secrets.token_hex(6), iso(time() * 1000))
                    await publisher.publish([Record(POLICY, f"life/{new.id}".encode(), encode(new), partition=0)])
    except (KafkaError, OSError, TimeoutError) as error:
        raise GuardsError(f"the topic {POLICY} at {kafka.bootstrap} cannot be read: {type(error).__name__}") from error
    finally:
        await consumer.stop()
    raise GuardsError(f"the topic {POLICY} at {kafka.bootstrap} does not show what was just written to it")


def _decode(value: bytes | None) -> TopicsLife | None:
    try:
        return None if value is None else _decoder.decode(value)
    except msgspec.DecodeError:  # a policy's record; includes ValidationError
        return None
