"""One life of the topics: an id that lies in ``llm.policy`` and names Tidegate's keys in Redis.

A broker that was made anew starts its offsets at zero. What an older life left in Redis (claims, decisions, progress)
would then be taken for this one's, and events would count as repeats. So keys carry the id of the topics they are of.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import msgspec
from aiokafka.errors import KafkaError

from guards.errors import GuardsError
from streams.kafka import Publisher, Record, make_consumer
from streams.settings import KafkaSettings
from streams.topics import POLICY

__all__ = ["Deployment", "ensure_deployment"]

KEY: Final = b"tidegate:deployment"
_TIMEOUT_S: Final = 30.0
_SETTLE_S: Final = 0.5
"""Two processes that both find no id write one each; after this both read the same last one."""


class Deployment(msgspec.Struct, frozen=True, tag_field="schema", tag="tidegate.deployment.v1"):
    """``tidegate.deployment.v1``: the id of this life of the topics."""

    id: str


async def ensure_deployment(kafka: KafkaSettings) -> str:
    """The id of this life of the topics; written if there is none. Raises `GuardsError` if it cannot be read."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            found = await _read(kafka)
            if found is None:
                publisher = Publisher(kafka)
                await publisher.start()
                try:
                    record = Deployment(secrets.token_hex(8))
                    await publisher.publish([Record(POLICY, KEY, msgspec.json.encode(record))])
                finally:
                    await publisher.stop()
                await asyncio.sleep(_SETTLE_S)
                found = await _read(kafka)
    except (KafkaError, OSError, TimeoutError) as error:
        raise GuardsError(
            f"the topic {POLICY} at {kafka.bootstrap} cannot be read ({type(error).__name__}); is the broker up, and "
            "has `tidegate topics create` been run?"
        ) from error
    if found is None:
        raise GuardsError(f"the topic {POLICY} does not keep what is written to it")
    return found


async def _read(kafka: KafkaSettings) -> str | None:
    consumer = make_consumer(kafka, POLICY)
    found: str | None = None
    try:
        await consumer.start()
        ends = await consumer.end_offsets(consumer.assignment())
        for partition, end in ends.items():
            while await consumer.position(partition) < end:
                for records in (await consumer.getmany(partition, timeout_ms=200)).values():
                    for record in records:
                        if record.key == KEY and record.value is not None:
                            found = msgspec.json.decode(record.value, type=Deployment).id
    finally:
        await consumer.stop()
    return found
