"""The Redis-protocol store: requests that wait for their responses, decisions that stand, replies, shared facts.

Keys of events lie under the life of the topics (`streams.life`). What is here is rebuilt from the topics when it was
emptied; only the hash-key id and the joined requests are not, and both come back by themselves.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

import redis.asyncio as aioredis
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from guards.errors import ConfigError, GuardsError
from streams.events import RequestEvent, decode
from streams.records import Amendment, DecisionRecord, encode
from streams.settings import RedisSettings

__all__ = ["Store", "StoreError", "StoreUnreachableError", "key"]

PREFIX: Final = "tidegate"
_NONCE_BYTES: Final = 12
_KEY_ID_TTL_S: Final = 86_400

# KEYS: a counter per period. ARGV: per period its seconds and its limit. Counts in all of them, or in none.
_SPEND: Final = """
for i = 1, #KEYS do
  if tonumber(redis.call('GET', KEYS[i]) or '0') >= tonumber(ARGV[2 * i]) then return 0 end
end
for i = 1, #KEYS do
  redis.call('INCR', KEYS[i])
  redis.call('EXPIRE', KEYS[i], 2 * ARGV[2 * i - 1])
end
return 1
"""


class StoreError(GuardsError):
    """A command of the store failed; it may be tried again."""


class StoreUnreachableError(StoreError):
    """The store does not answer; the text names the setting."""


def key(*parts: str) -> str:
    """``tidegate:a:b:c``; parts are percent-encoded, so that a ``:`` in a tenant or an id cannot forge another key."""
    return ":".join((PREFIX, *(quote(part, safe="") for part in parts)))


class Store:
    """The store as the processes of Tidegate use it. All methods raise `StoreError` when it does not answer in time.

    ``store_key``: 32 bytes; joined requests are then kept under AES-256-GCM.
    """

    def __init__(self, settings: RedisSettings, *, store_key: bytes | None = None) -> None:
        self._settings = settings
        self._cipher = None if store_key is None else AESGCM(store_key)
        self._life: str | None = None
        timeout_s = settings.timeout_ms / 1000
        self.redis: aioredis.Redis = aioredis.Redis.from_url(
            settings.url.get_secret_value(),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 1),
        )
        self._spend = self.redis.register_script(_SPEND)

    @property
    def address(self) -> str:
        """Host and port, without credentials."""
        options = self.redis.connection_pool.connection_kwargs
        return f"{options.get('host', '?')}:{options.get('port', '?')}"

    async def connect(self) -> None:
        try:
            await self.redis.ping()
        except (RedisError, OSError) as error:
            raise StoreUnreachableError(
                f"no Redis answers at {self.address}; start one, or name it with --redis URL (TIDEGATE_REDIS__URL)"
            ) from error

    def bind(self, life: str) -> None:
        """Keys of events lie under this id from now on: `streams.life.life_of_topics`."""
        self._life = life

    def key(self, *parts: str) -> str:
        """`key` under the life of the topics that this store is bound to."""
        if self._life is None:
            raise RuntimeError("the store is not bound to a life of the topics yet")
        return key(self._life, *parts)

    async def close(self) -> None:
        await self.redis.aclose()

    # ------------------------------------------------------------ joining responses to requests

    async def put_requests(self, events: Sequence[tuple[RequestEvent, bytes]], ttl_s: int) -> None:
        """Keep requests (with the bytes they came as) for the join, ``ttl_s`` seconds. One round trip."""
        if not events:
            return
        async with _errors(), self.redis.pipeline(transaction=False) as pipe:
            for event, raw in events:
                name = self.key("request", event.tenant, event.exchange_id)
                pipe.set(name, self._seal(raw, name), ex=ttl_s)
            await pipe.execute()

    async def get_requests(self, ids: Sequence[tuple[str, str]]) -> list[RequestEvent | None]:
        """Requests by (tenant, exchange_id), in order; ``None`` where there is none. One round trip."""
        if not ids:
            return []
        names = [self.key("request", *pair) for pair in ids]
        async with _errors():
            values: list[bytes | None] = await self.redis.mget(names)  # type: ignore[assignment]
        found: list[RequestEvent | None] = []
        for name, value in zip(names, values, strict=True):
            event = None if value is None else decode(self._open(value, name))
            found.append(event if isinstance(event, RequestEvent) else None)
        return found

    def _seal(self, raw: bytes, name: str) -> bytes:
        if self._cipher is None:
            return b"0" + raw
        nonce = os.urandom(_NONCE_BYTES)
        return b"1" + nonce + self._cipher.encrypt(nonce, raw, name.encode())

    def _open(self, value: bytes, name: str) -> bytes | None:
        if value[:1] == b"0":
            return value[1:]
        if self._cipher is None:
            raise ConfigError("the store holds encrypted requests and this process has no key; set TIDEGATE_STORE_KEY")
        nonce, sealed = value[1 : 1 + _NONCE_BYTES], value[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, sealed, name.encode())
        except InvalidTag as error:
            raise ConfigError("a request in the store was encrypted under another TIDEGATE_STORE_KEY") from error

    # ------------------------------------------------------------ decisions

    async def put_decisions(self, records: Sequence[DecisionRecord], ttl_s: int) -> list[bytes]:
        """Keep each decision if there is none under its key yet. Returns, in order, the records that stand (encoded).

        The first decision for a key is the one that is published and followed, however often it is made again.
        """
        if not records:
            return []
        encoded = [encode(record) for record in records]
        async with _errors(), self.redis.pipeline(transaction=False) as pipe:
            for record, value in zip(records, encoded, strict=True):
                pipe.set(self.decision_key(record), value, px=ttl_s * 1000, nx=True, get=True)
            earlier = await pipe.execute()
        return [value if first is None else first for value, first in zip(encoded, earlier, strict=True)]

    def decision_key(self, record: DecisionRecord) -> str:
        """Where a decision stands."""
        return self.key("decision", record.path, record.stage, record.tenant, record.exchange_id, record.content_hash)

    async def get_amendment(self, tenant: str, exchange_id: str, stage: str, content_hash: str) -> bytes | None:
        """The amendment that stands for a decision over the stream, encoded."""
        async with _errors():
            value: bytes | None = await self.redis.get(  # type: ignore[assignment]
                self._amendment_key(tenant, exchange_id, stage, content_hash)
            )
        return value

    async def put_amendment(self, record: Amendment, ttl_s: int) -> bytes:
        """Keep an amendment if there is none for its decision yet. Returns the one that stands, encoded."""
        name = self._amendment_key(record.tenant, record.exchange_id, record.stage, record.content_hash)
        value = encode(record)
        async with _errors():
            first: bytes | None = await self.redis.set(  # type: ignore[assignment]
                name, value, px=ttl_s * 1000, nx=True, get=True
            )
        return value if first is None else first

    def _amendment_key(self, tenant: str, exchange_id: str, stage: str, content_hash: str) -> str:
        return self.key("amendment", stage, tenant, exchange_id, content_hash)

    async def reply(self, replies: Sequence[tuple[str, str, bytes]], ttl_s: int) -> None:
        """Answer those who asked over the stream: (reply key, channel, record); sets the key, tells the channel."""
        if not replies:
            return
        async with _errors(), self.redis.pipeline(transaction=False) as pipe:
            for reply_key, channel, value in replies:
                pipe.set(reply_key, value, px=ttl_s * 1000)
                pipe.publish(channel, reply_key)
            await pipe.execute()

    # ------------------------------------------------------------ budgets of slow guards

    async def spend(self, name: str, limits: Mapping[int, int], now_s: float) -> bool:
        """Count one more under a name, unless a limit is reached. ``limits``: seconds of a period → how many in it.

        Periods begin at multiples of their length. Not under the life of the topics: money is spent for good.
        """
        keys = [key("spent", name, str(length_s), str(int(now_s // length_s))) for length_s in limits]
        async with _errors():
            return bool(await self._spend(keys=keys, args=[n for pair in limits.items() for n in pair]))

    # ------------------------------------------------------------ what processes agree on

    async def agree_on_key(self, key_id: str) -> None:
        """Raises `ConfigError` if another process of this deployment hashes under another key."""
        async with _errors():
            name = key("hash-key-id")
            first: bytes | None = await self.redis.set(  # type: ignore[assignment]
                name, key_id, nx=True, get=True, ex=_KEY_ID_TTL_S
            )
            if first is None or first.decode() == key_id:
                await self.redis.expire(name, _KEY_ID_TTL_S)
                return
        raise ConfigError(
            "another process uses another hash key, so that hashes would not match; give all processes the same "
            "TIDEGATE_HASH_KEY"
        )

    # ------------------------------------------------------------ progress of the requests' consumption

    async def put_progress(self, group: str, offsets: dict[int, int]) -> None:
        """Say up to which offset (exclusive) a group's workers have taken in the requests of each partition."""
        if not offsets:
            return
        async with _errors():
            await self.redis.hset(self.key("progress", group), mapping={str(p): o for p, o in offsets.items()})

    async def get_progress(self, group: str) -> dict[int, int]:
        """Partition → next offset, as all workers of a group have said."""
        async with _errors():
            raw = await self.redis.hgetall(self.key("progress", group))
        return {int(partition): int(offset) for partition, offset in raw.items()}


def parse_store_key(text: str) -> bytes:
    """The 32 bytes of a store key in base64. Raises `ConfigError`."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ConfigError("TIDEGATE_STORE_KEY is not base64") from error
    if len(data) != 32:
        raise ConfigError("TIDEGATE_STORE_KEY must hold 32 bytes: openssl rand -base64 32")
    return data


class _errors:
    """Turns the client's errors into `StoreError`."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (RedisError, OSError)):
            raise StoreError(f"the store failed: {type(error).__name__}") from error
