"""Kafka clients: one place for connection options, acknowledged publishing and the creation of topics."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, Final, Literal, Protocol

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code
from aiokafka.structs import RecordMetadata

from guards.errors import GuardsError
from streams.settings import KafkaSettings
from streams.topics import TOPICS, Topic

__all__ = [
    "REPLY_CHANNEL_HEADER",
    "REPLY_KEY_HEADER",
    "RUN_HEADER",
    "BrokerUnreachableError",
    "Headers",
    "PublishError",
    "Publisher",
    "Record",
    "SupportsPublish",
    "client_options",
    "create_topics",
    "header",
    "make_consumer",
    "make_producer",
    "wait_for_broker",
]

RUN_HEADER: Final = "tidegate-run"
"""Names a replay: what follows from such events touches no sinks, standing or budgets."""
REPLY_KEY_HEADER: Final = "tidegate-reply-key"
REPLY_CHANNEL_HEADER: Final = "tidegate-reply-channel"

MAX_REQUEST_BYTES: Final = 1_100_000
"""Largest message a producer of ours sends: an event at the cap (1 MiB) with headers. Kafka's default limit is 1 MiB
for the whole batch, so an event at the very cap needs a broker that was told so; a smaller one does not."""

_TOPIC_EXISTS = 36

Headers = tuple[tuple[str, bytes], ...]


class BrokerUnreachableError(GuardsError):
    """The broker does not answer; the text names the setting."""


class PublishError(GuardsError):
    """The broker did not acknowledge in time. What was sent may or may not be there: send it again."""


class Record(msgspec.Struct, frozen=True):
    """One message to publish. ``partition`` ``None``: by the hash of the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


def header(headers: Iterable[tuple[str, bytes]] | None, name: str) -> str:
    """The last header of that name as text, or an empty string. Bytes that are not UTF-8 count as absent."""
    found = ""
    for key, value in headers or ():
        if key == name and value is not None:
            with contextlib.suppress(UnicodeDecodeError):
                found = value.decode("utf-8")[:512]
    return found


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Bootstrap servers and security, as any aiokafka client takes them."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap,
        "security_protocol": settings.security_protocol,
        "request_timeout_ms": settings.request_timeout_ms,
    }
    if settings.security_protocol in {"SSL", "SASL_SSL"}:
        options["ssl_context"] = ssl.create_default_context(
            cafile=None if settings.ssl_cafile is None else str(settings.ssl_cafile)
        )
    if settings.sasl_mechanism is not None:
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = (
            None if settings.sasl_password is None else settings.sasl_password.get_secret_value()
        )
    return options


def make_producer(settings: KafkaSettings) -> AIOKafkaProducer:
    """A producer of raw bytes that waits for all in-sync replicas; not started."""
    return AIOKafkaProducer(
        **client_options(settings),
        acks="all",
        enable_idempotence=settings.idempotence,
        max_request_size=MAX_REQUEST_BYTES,
        linger_ms=2,
    )


def make_consumer(settings: KafkaSettings, *topics: str, group: str | None = None, **options: Any) -> AIOKafkaConsumer:
    """A consumer of raw bytes, without automatic commits; not started."""
    return AIOKafkaConsumer(
        *topics,
        **client_options(settings),
        group_id=group,
        enable_auto_commit=False,
        **{
            "fetch_max_wait_ms": settings.fetch_max_wait_ms,
            "auto_offset_reset": "earliest",
            "session_timeout_ms": settings.session_timeout_ms,
            "heartbeat_interval_ms": settings.heartbeat_interval_ms,
            "metadata_max_age_ms": 30_000,
            **options,
        },
    )


class SupportsPublish(Protocol):
    """What the rest needs of `Publisher`."""

    async def start(self) -> None: ...

    async def publish(self, records: Sequence[Record]) -> Any: ...

    async def stop(self) -> None: ...


class Publisher:
    """Publishes and waits until the broker has acknowledged. Safe for concurrent callers of one event loop."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        producer = make_producer(self._settings)
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise _unreachable(self._settings) from error
        self._producer = producer

    async def stop(self) -> None:
        if self._producer is not None:
            with contextlib.suppress(asyncio.TimeoutError, KafkaError):
                await asyncio.wait_for(self._producer.stop(), 5)
            self._producer = None

    async def publish(self, records: Sequence[Record]) -> list[RecordMetadata]:
        """Send all and wait for all acknowledgements, in order.

        Raises `PublishError` when one fails or ``request_timeout_ms`` passes; then any of the records may be there,
        and sending them again may repeat some: readers count by key.
        """
        producer = self._producer
        if producer is None:
            raise PublishError("the publisher is not running")
        try:
            async with asyncio.timeout(self._settings.request_timeout_ms / 1000):
                futures = [
                    await producer.send(
                        record.topic,
                        value=record.value,
                        key=record.key,
                        headers=list(record.headers),
                        partition=record.partition,
                    )
                    for record in records
                ]
                return list(await asyncio.gather(*futures))
        except (KafkaError, TimeoutError) as error:
            raise PublishError(f"the broker {self._settings.bootstrap} did not acknowledge: {error!r}") from error


async def create_topics(
    settings: KafkaSettings, topics: Sequence[Topic] = TOPICS
) -> dict[str, Literal["created", "exists"]]:
    """Create what is missing. Idempotent; an existing topic is left as it is.

    Raises `BrokerUnreachableError`, or `KafkaError` when the broker refuses (bad replication factor, no right).
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
    except (KafkaError, OSError) as error:
        await admin.close()
        raise _unreachable(settings) from error
    outcome: dict[str, Literal["created", "exists"]] = {}
    try:
        wanted = [
            NewTopic(
                name=topic.name,
                num_partitions=topic.partitions or settings.partitions,
                replication_factor=settings.replication,
                topic_configs=topic.config(),
            )
            for topic in topics
        ]
        response = await admin.create_topics(wanted, timeout_ms=settings.request_timeout_ms)
        for entry in response.topic_errors:
            name, code = entry[0], entry[1]
            if code == 0:
                outcome[name] = "created"
            elif code == _TOPIC_EXISTS:
                outcome[name] = "exists"
            else:
                raise for_code(code)(f"topic {name}: {entry[2] if len(entry) > 2 else ''}")
    finally:
        await admin.close()
    return outcome


async def wait_for_broker(settings: KafkaSettings, timeout_s: float) -> None:
    """Return when the broker answers; raises `BrokerUnreachableError` after ``timeout_s``."""
    end = monotonic() + timeout_s
    while True:
        admin = AIOKafkaAdminClient(**client_options(settings))
        try:
            await asyncio.wait_for(admin.start(), max(0.1, end - monotonic()))
        except (TimeoutError, KafkaError, OSError) as error:
            if monotonic() >= end:
                raise _unreachable(settings) from error
            await asyncio.sleep(0.1)
        else:
            return
        finally:
            with contextlib.suppress(KafkaError, OSError):
                await admin.close()


def _unreachable(settings: KafkaSettings) -> BrokerUnreachableError:
    return BrokerUnreachableError(
        f"no Kafka broker answers at {settings.bootstrap}; start one, or name it with --kafka HOST:PORT "
        "(TIDEGATE_KAFKA__BOOTSTRAP)"
    )
