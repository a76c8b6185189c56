"""The sidecar with a real broker and a real store: what it publishes, how it joins, asking over the stream, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import structlog
from pydantic import SecretStr

from guards.engine import Engine
from guards.models import ModelStore
from guards.policy import Policy
from guards.types import Action, Coverage, Finding, PolicyRef, Reason, Span
from streams.dev.ports import free_port
from streams.dev.store import EmbeddedStore
from streams.gateway.app import make_app
from streams.gateway.sidecar import Sidecar
from streams.kafka import REPLY_CHANNEL_HEADER, REPLY_KEY_HEADER, header, make_consumer
from streams.policies import apply_policy
from streams.records import DecisionRecord, encode
from streams.settings import KafkaSettings, RedisSettings, Settings, load_settings
from streams.store import Store
from streams.topics import DECISIONS, REQUESTS
from tests.gateway_rig import POLICY, Joined, Word
from tests.integration.wire import run_worker_process, value_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parent.parent.parent
HASH_KEY = "k" * 32


class Light(Sidecar):
    """A sidecar whose guards load in no time."""

    def _load(self, policy: Policy) -> Engine:
        guards = [Word("pii", "secret"), Word("toxicity", "bad"), Joined("relevance", ""), Word("hallucination", "lie")]
        return Engine(policy, guards={guard.name: guard for guard in guards})  # type: ignore[misc]


@pytest.fixture(scope="module")
def redis_settings() -> Iterator[RedisSettings]:
    """A store of this module's own: all its processes share one hash key, and other modules have theirs."""
    with EmbeddedStore() as store:
        yield RedisSettings(url=SecretStr(store.url))


@pytest.fixture
def policy_name() -> str:
    return f"p{uuid4().hex[:12]}"


@pytest.fixture
def base(topics: KafkaSettings, redis_settings: RedisSettings, tmp_path: Path, policy_name: str) -> dict[str, Any]:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.replace("name: default", f"name: {policy_name}"))
    return {
        "hash_key": HASH_KEY,
        "policy": policy_name,
        "policy_file": file,
        "kafka": topics.model_dump(),
        "redis": {"url": redis_settings.url.get_secret_value()},
    }


def settings(base: dict[str, Any], **sidecar: Any) -> Settings:
    return load_settings("embedded", **base, sidecar=sidecar)


@asynccontextmanager
async def running(base: dict[str, Any], **options: Any) -> AsyncIterator[tuple[Sidecar, httpx.AsyncClient]]:
    sidecar = Light(settings(base, **options), structlog.get_logger())
    transport = httpx.ASGITransport(make_app(sidecar))
    try:
        await sidecar.start()
        async with httpx.AsyncClient(transport=transport, base_url="http://sidecar", timeout=30) as client:
            yield sidecar, client
    finally:
        await sidecar.stop()


async def records(kafka: KafkaSettings, tenant: str, *topics: str, count: int) -> list[tuple[str, Any, dict[str, Any]]]:
    """The first ``count`` records of a tenant: topic, record, value."""
    found: list[tuple[str, Any, dict[str, Any]]] = []
    consumer = make_consumer(kafka, *topics)
    await consumer.start()
    try:
        async with asyncio.timeout(15):
            while len(found) < count:
                for batch in (await consumer.getmany(timeout_ms=100)).values():
                    for record in batch:
                        value = value_of(record)
                        if value.get("tenant") == tenant:
                            found.append((record.topic, record, value))
    finally:
        await consumer.stop()
    return found


def ask(tenant: str, text: str, exchange_id: str = "e1", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"stage": "request", "tenant": tenant, "exchange_id": exchange_id, "messages": [message], **more}


async def test_event_and_inline_decision_arrive(base: dict[str, Any], topics: KafkaSettings) -> None:
    tenant = uuid4().hex
    async with running(base, mode="local") as (_, client):
        body = ask(tenant, "my secret", conversation_id="c-1", extra=[1])
        answer = (await client.post("/v1/guard", json=body)).json()
        assert answer["decision"] == "redact"
        found = await records(topics, tenant, REQUESTS, DECISIONS, count=2)
    by_topic = {topic: (record, value) for topic, record, value in found}
    record, event = by_topic[REQUESTS]
    assert (record.key, event["extra"], event["schema"]) == (b"c-1", [1], "tidegate.request.v1")
    record, decision = by_topic[DECISIONS]
    assert (record.key, decision["path"], decision["decision"]) == (b"c-1", "inline", "redact")
    assert decision["reasons"] == answer["reasons"]


async def test_a_response_is_joined_across_sidecars(base: dict[str, Any]) -> None:
    tenant = uuid4().hex
    async with running(base, mode="local") as (_, one), running(base, mode="local") as (other, two):
        await one.post("/v1/guard", json=ask(tenant, "hello there"))
        body = {"stage": "response", "tenant": tenant, "exchange_id": "e1"}
        deadline = time.monotonic() + 5
        while True:
            message = {"role": "assistant", "content": f"hello {time.monotonic()}"}
            answer = (await two.post("/v1/guard", json={**body, "messages": [message]})).json()
            if not answer["coverage"]["failed"] or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        assert "relevance" in answer["coverage"]["scanned"]
        assert other.exchanges.usable


async def test_the_first_decision_stands_across_sidecars(base: dict[str, Any], topics: KafkaSettings) -> None:
    tenant = uuid4().hex
    async with running(base, mode="local") as (_, one), running(base, mode="local") as (_, two):
        for client in (one, two):
            await client.post("/v1/guard", json=ask(tenant, "hello", time="2026-11-24T10:00:00Z"))
        found = await records(topics, tenant, DECISIONS, count=2)
    assert found[0][1].value == found[1][1].value


# ---------------------------------------------------------------- over the stream


@asynccontextmanager
async def worker(kafka: KafkaSettings, redis: RedisSettings, tenant: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Replies to every question of a tenant with a redaction of the first four characters."""
    seen: list[dict[str, Any]] = []
    consumer = make_consumer(kafka, REQUESTS, auto_offset_reset="latest")
    store = Store(redis)
    await consumer.start()
    for partition in consumer.assignment():
        await consumer.position(partition)

    async def follow() -> None:
        async for record in consumer:
            event = value_of(record)
            reply_key = header(record.headers, REPLY_KEY_HEADER)
            if event.get("tenant") != tenant or not reply_key:
                continue
            seen.append(event)
            span = Span(start=0, end=4, kind="WORD", message=0)
            reply = DecisionRecord(
                exchange_id=event["exchange_id"],
                conversation_id=event["exchange_id"],
                tenant=tenant,
                stage="request",
                path="stream",
                content_hash="x",
                time=event["time"],
                decision="redact",
                policy=PolicyRef("theirs", "0" * 12),
                reasons=(Reason("pii", "WORD", "r", 0.9, 0.5, Action.REDACT, (span,)),),
                coverage=Coverage(("pii",), (), ()),
                findings=(Finding("pii", "WORD", 0.9, (span,)),),
            )
            await store.reply([(reply_key, header(record.headers, REPLY_CHANNEL_HEADER), encode(reply))], 60)

    task = asyncio.create_task(follow())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()
        await store.close()


async def test_stream_mode_answers_with_the_workers_verdict(
    base: dict[str, Any], topics: KafkaSettings, redis_settings: RedisSettings
) -> None:
    tenant = uuid4().hex
    async with running(base, mode="stream") as (_, client), worker(topics, redis_settings, tenant) as seen:
        replies = await asyncio.gather(
            *(client.post("/v1/guard", json=ask(tenant, f"word {n}", f"e{n}", mine=n)) for n in range(20))
        )
        for number, reply in enumerate(replies):
            answer = reply.json()
            assert (answer["decision"], answer["exchange_id"]) == ("redact", f"e{number}")
            assert answer["policy"]["name"] == "theirs"
            assert answer["messages"] == [{"role": "user", "content": f"<WORD> {number}"}]
            assert answer["timing"]["total_ms"] < 2_000
        assert sorted(event["mine"] for event in seen) == list(range(20))
        found = await records(topics, tenant, DECISIONS, count=20)
        assert {value["path"] for _, _, value in found} == {"inline"}


async def test_stream_mode_without_a_worker_answers_by_the_deadline(base: dict[str, Any]) -> None:
    async with running(base, mode="stream", deadline_ms=400) as (_, client):
        began = time.perf_counter()
        answer = (await client.post("/v1/guard", json=ask(uuid4().hex, "hello"))).json()
        assert (time.perf_counter() - began) * 1000 < 400
        assert answer["decision"] == "block"
        assert {f["code"] for f in answer["coverage"]["failed"]} == {"timeout"}
        assert {f["guard"] for f in answer["coverage"]["failed"]} == {"pii", "toxicity", "hallucination"}


async def test_stream_mode_and_the_real_worker_understand_each_other(
    base: dict[str, Any], topics: KafkaSettings, redis_settings: RedisSettings, model_store: ModelStore, tmp_path: Path
) -> None:
    tenant = uuid4().hex
    with run_worker_process("checks", topics, redis_settings, tmp_path, TIDEGATE_HASH_KEY=HASH_KEY) as checks:
        checks.wait_ready()
        async with running(base, mode="stream", deadline_ms=10_000) as (_, client):
            text = "My card is 4111 1111 1111 1111"
            answer = (await client.post("/v1/guard", json=ask(tenant, text))).json()
    assert (answer["decision"], answer["coverage"]["failed"]) == ("redact", [])
    assert answer["messages"] == [{"role": "user", "content": "My card is <CREDIT_CARD>"}]


# ---------------------------------------------------------------- policy


async def test_a_new_policy_is_in_force_within_a_second(
    base: dict[str, Any], topics: KafkaSettings, policy_name: str
) -> None:
    async with running(base, mode="local") as (sidecar, client):
        text = base["policy_file"].read_text()
        changed = Policy.parse(text.replace("action: block", "action: flag"))
        await apply_policy(topics, changed, author="a test")
        began = time.monotonic()
        while (await client.get("/v1/info")).json()["policy"]["version"] != changed.version:
            assert time.monotonic() - began < 1.0
            await asyncio.sleep(0.01)
        assert (await client.post("/v1/guard", json=ask("t", "bad"))).json()["decision"] == "flag"

        refused = Policy.parse(text.replace("guards:\n", "guards:\n  secrets: {}\n"))
        await apply_policy(topics, refused, author="a test")
        while sidecar.refused is None:
            assert time.monotonic() - began < 5.0
            await asyncio.sleep(0.01)
        policy = (await client.get("/v1/info")).json()["policy"]
        assert policy == {"name": policy_name, "version": changed.version, "refused": refused.version}
        assert (await client.post("/v1/guard", json=ask("t", "bad"))).json()["decision"] == "flag"


async def test_ready_and_windows(base: dict[str, Any]) -> None:
    async with running(base, mode="local") as (_, client):
        for _ in range(100):
            reply = await client.get("/ready")
            if reply.status_code == 200:
                break
            await asyncio.sleep(0.05)
        assert reply.json() == {
            "status": "ok",
            "checks": {"policy": "ok", "guards": "ok", "process": "ok", "broker": "ok", "store": "ok"},
        }
        for _ in range(100):
            reply = await client.get("/v1/windows?horizon=5m&series=acme/*")
            if reply.status_code == 200:
                break
            await asyncio.sleep(0.05)
        assert reply.json()["horizon"] == "5m"
        assert "total" in (await client.get("/v1/windows?total=true")).json()
        bad = ("horizon=9m", "at=yesterday", "at=2026-01-01T00:00:00", "total=maybe", "hrizon=1m", "series=a/b/c/d/e")
        for query in bad:
            reply = await client.get(f"/v1/windows?{query}")
            assert (reply.status_code, reply.json()["code"]) == (400, "bad-request"), query


# ---------------------------------------------------------------- the process


@contextmanager
def process(base: dict[str, Any], tmp_path: Path, *options: str, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable, "-m", "streams.cli", "sidecar", "--mode", "stream", "--port", str(port),
        "--kafka", base["kafka"]["bootstrap"], "--redis", base["redis"]["url"],
        "--policy-file", str(base["policy_file"]), *options,
    ]  # fmt: skip
    env = {**os.environ, "TIDEGATE_POLICY": base["policy"], "TIDEGATE_HASH_KEY": HASH_KEY}
    child = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


async def until_ready(client: httpx.AsyncClient, child: subprocess.Popen[str]) -> None:
    async with asyncio.timeout(40):
        while True:
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            await asyncio.sleep(0.05)


async def test_a_process_refuses_what_is_bad_and_ends_gracefully(
    base: dict[str, Any], topics: KafkaSettings, tmp_path: Path
) -> None:
    tenant, port = uuid4().hex, free_port()
    with process(base, tmp_path, port=port) as child:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await until_ready(client, child)
            huge = b'{"stage": "request", "messages": [{"role": "user", "content": "' + b"a" * 10_000_000 + b'"}]}'
            for content, status in ((huge, 413), (b"{", 400), (b"\xff", 400), (b"[" * 90_000, 400), (b"[]", 422)):
                assert (await client.post("/v1/guard", content=content)).status_code == status

            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(100):
                    yield b" " * 100_000

            with suppress(httpx.TransportError):  # the connection may be closed on someone who goes on sending
                assert (await client.post("/v1/guard", content=chunks())).status_code == 413
            tight = {"x-tidegate-deadline-ms": "200"}
            assert (await client.post("/v1/guard", json=ask(tenant, "hi", "e0"), headers=tight)).status_code == 200

            in_flight = asyncio.create_task(client.post("/v1/guard", json=ask(tenant, "hi", "e1")))
            await asyncio.sleep(0.3)
            child.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            assert (await client.get("/ready")).json()["checks"]["process"] == "stopping"
            answer = (await in_flight).json()
            assert answer["exchange_id"] == "e1"
        async with asyncio.timeout(15):
            assert await asyncio.to_thread(child.wait) == 0
    found = await records(topics, tenant, REQUESTS, DECISIONS, count=4)
    assert {value["exchange_id"] for _, _, value in found} == {"e0", "e1"}
    assert child.stderr is not None
    log = child.stderr.read()
    assert "stopped" in log
    assert "aaaa" not in log


async def test_a_port_in_use_ends_with_3_and_names_the_option(base: dict[str, Any], tmp_path: Path) -> None:
    port = free_port()
    holder = await asyncio.start_server(lambda r, w: None, "127.0.0.1", port)
    async with holder:
        with process(base, tmp_path, port=port) as child:
            _, stderr = await asyncio.to_thread(child.communicate, timeout=40)
            assert child.returncode == 3
            assert "--port" in stderr
            assert "TIDEGATE_SIDECAR__PORT" in stderr


async def test_a_broker_that_is_not_there_ends_the_start_with_a_fix(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.gateway.sidecar.START_TIMEOUT_S", 0.5)
    away = {**base, "kafka": {**base["kafka"], "bootstrap": f"127.0.0.1:{free_port()}"}}
    sidecar = Light(settings(away, mode="local"), structlog.get_logger())
    try:
        with pytest.raises(ExceptionGroup) as caught:
            await sidecar.start()
        assert "--kafka" in str(caught.value.exceptions[0])
    finally:
        await sidecar.stop()
