"""What a broker has: which topics, with how many partitions."""

from __future__ import annotations

from aiokafka.admin import AIOKafkaAdminClient

from streams.kafka import client_options, wait_for_broker
from streams.settings import KafkaSettings

__all__ = ["partition_counts"]

TIMEOUT_S = 5.0
"""A broker that is up answers within milliseconds."""


async def partition_counts(settings: KafkaSettings) -> dict[str, int]:
    """Topic → number of partitions, of all topics there. Raises `BrokerUnreachableError` after `TIMEOUT_S`."""
    await wait_for_broker(settings, TIMEOUT_S)
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        return {entry["topic"]: len(entry["partitions"]) for entry in await admin.describe_topics()}
    finally:
        await admin.close()
