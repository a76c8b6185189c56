"""A sidecar over HTTP in this process, with guards small enough to see through, and a store and a broker in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import orjson
import structlog

from guards.artifacts import Artifacts
from guards.engine import Engine
from guards.guard import Needs, NoOptions, Result
from guards.policy import Policy
from guards.types import Failure, FailureCode, Hit, Range, Unit
from streams.gateway.app import make_app
from streams.gateway.sidecar import Sidecar
from streams.kafka import PublishError, Record
from streams.records import DecisionRecord, encode
from streams.settings import Settings, load_settings
from streams.store import StoreError

POLICY = """
name: default
guards:
  pii: {on_failure: {request: block}}
  toxicity: {on_failure: allow}
  relevance: {stages: [response], on_failure: allow}
  hallucination: {inline: false, on_failure: block}
rules:
  - {name: redact-secret, guard: pii, action: redact}
  - {name: block-bad, guard: toxicity, action: block}
  - {name: flag-foreign, guard: relevance, action: flag}
  - {name: shadow-bad, guard: toxicity, action: flag, shadow: true}
"""
ASK = {"stage": "request", "exchange_id": "e1", "messages": [{"role": "user", "content": "hello"}]}


class Word:
    """Finds one word; ``before`` runs at each check."""

    version = "1"
    options_type: type[msgspec.Struct] = NoOptions
    unit: Any = "text"
    stages: Any = frozenset({"request", "response"})

    def __init__(self, name: str, word: str, before: Callable[[str], None] = lambda text: None) -> None:
        self.name, self.word, self.before = name, word, before

    def applies(self, unit: Unit, options: Any) -> bool:
        return bool(unit.texts)

    def needs(self, unit: Unit, options: Any) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Any, artifacts: Artifacts) -> Sequence[Result]:
        results: list[Result] = []
        for unit in units:
            text = unit.texts[0].text
            self.before(text)
            at = text.find(self.word)
            results.append([Hit(self.word.upper(), 0.9, (Range(at, at + len(self.word)),))] if at >= 0 else [])
        return results


class Joined(Word):
    """Needs the request: finds an answer that does not repeat the question's first word."""

    unit = "exchange"
    stages = frozenset({"response"})

    def check(self, units: Sequence[Unit], options: Any, artifacts: Artifacts) -> Sequence[Result]:
        results: list[Result] = []
        for unit in units:
            if unit.exchange.messages is None:
                results.append(Failure(FailureCode.REQUEST_MISSING))
            else:
                asked = str(unit.exchange.messages[0].content).split()[0]
                results.append([] if asked in unit.texts[0].text else [Hit("FOREIGN", 0.9)])
        return results


class MemoryStore:
    """What `streams.store.Store` offers the sidecar, in memory. ``mode``: ``up``, ``down`` or ``hangs``."""

    def __init__(self) -> None:
        self.mode = "up"
        self.requests: dict[tuple[str, str], Any] = {}
        self.decisions: dict[Any, bytes] = {}
        self.calls = 0

    async def _pass(self) -> None:
        self.calls += 1
        if self.mode == "hangs":
            await asyncio.sleep(60)
        if self.mode == "down":
            raise StoreError("the store failed: ConnectionError")

    async def connect(self) -> None:
        await self._pass()

    async def close(self) -> None:
        return None

    async def put_requests(self, events: Any, ttl_s: int) -> None:
        await self._pass()
        self.requests.update({(event.tenant, event.exchange_id): event for event, _ in events})

    async def get_requests(self, ids: Any) -> list[Any]:
        await self._pass()
        return [self.requests.get(pair) for pair in ids]

    async def put_decisions(self, records: Sequence[DecisionRecord], ttl_s: int) -> list[bytes]:
        await self._pass()
        return [self.decisions.setdefault(record.key, encode(record)) for record in records]


class MemoryPublisher:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.down = False

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def publish(self, records: Sequence[Record]) -> None:
        if self.down:
            raise PublishError("the broker did not acknowledge")
        self.records.extend(records)

    def values(self, topic: str) -> list[dict[str, Any]]:
        return [orjson.loads(r.value) for r in self.records if r.topic == topic and r.value is not None]


class Rig(msgspec.Struct):
    sidecar: Sidecar
    client: httpx.AsyncClient
    store: MemoryStore
    publisher: MemoryPublisher

    async def ask(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.client.post(
            "/v1/guard", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    async def settled(self) -> None:
        for _ in range(500):
            if not len(self.sidecar.outbox._drain) and not len(self.sidecar.exchanges._drain):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the outbox did not empty")


def settings(**sidecar: Any) -> Settings:
    return load_settings("embedded", hash_key="k" * 32, sidecar={"mode": "local", **sidecar})


@asynccontextmanager
async def rig(
    *, before: Callable[[str], None] = lambda text: None, policy_text: str = POLICY, **options: Any
) -> AsyncIterator[Rig]:
    store, publisher = MemoryStore(), MemoryPublisher()
    sidecar = Sidecar(settings(**options), structlog.get_logger(), store=store, publisher=publisher)  # type: ignore[arg-type]
    policy = Policy.parse(policy_text)
    guards = {
        "pii": Word("pii", "secret"),
        "toxicity": Word("toxicity", "bad", before),
        "relevance": Joined("relevance", ""),
        "hallucination": Word("hallucination", "lie"),
    }
    sidecar.exchanges.start()
    sidecar.outbox.start()
    sidecar.use(Engine(policy, guards=guards), policy)
    transport = httpx.ASGITransport(make_app(sidecar))
    async with httpx.AsyncClient(transport=transport, base_url="http://sidecar") as client:
        yield Rig(sidecar, client, store, publisher)
    publisher.down = False
    await sidecar.outbox.stop(1)
    await sidecar.exchanges.stop(1)
    assert sidecar.checker is not None
    await sidecar.checker.threads.stop(0)


RESPONSE = {"stage": "response", "exchange_id": "e1", "messages": [{"role": "assistant", "content": "hello you"}]}
