"""The checks worker on a real broker and a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from guards.policy import Policy
from streams.events import MAX_EVENT_BYTES
from streams.kafka import create_topics
from streams.policies import apply_policy
from streams.settings import KafkaSettings, RedisSettings
from streams.topics import DECISIONS, DLQ, REQUESTS, RESPONSES
from tests.integration.wire import Worker, fresh_id, publish, read_until, request, response, run_worker_process

pytestmark = pytest.mark.integration

CARD = "My card is 4111 1111 1111 1111, call John Smith on 212-555-0143"
JOIN_WAIT_MS = 1500


@pytest.fixture(scope="module")
def worker(
    kafka_settings: KafkaSettings, redis_settings: RedisSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    asyncio.run(create_topics(kafka_settings))
    with run_worker_process(
        "checks",
        kafka_settings,
        redis_settings,
        tmp_path_factory.mktemp("checks"),
        TIDEGATE_CHECKS__JOIN_WAIT_MS=str(JOIN_WAIT_MS),
    ) as process:
        process.wait_ready()
        yield process


def of(records: list[dict[str, Any]], *ids: str) -> list[dict[str, Any]]:
    return [record for record in records if record.get("exchange_id") in ids]


async def decisions(kafka: KafkaSettings, count: int, *ids: str) -> list[dict[str, Any]]:
    records = await read_until(kafka, DECISIONS, lambda seen: len(of(seen, *ids)) >= count)
    return of(records, *ids)


async def test_a_request_with_personal_data_is_redacted_and_the_record_holds_no_text(
    worker: Worker, kafka_settings: KafkaSettings
) -> None:
    exchange = fresh_id()
    await publish(kafka_settings, REQUESTS, request(exchange, CARD, tenant="acme", route="support"))
    (record,) = await decisions(kafka_settings, 1, exchange)
    assert (record["decision"], record["path"], record["stage"]) == ("redact", "stream", "request")
    assert {reason["kind"] for reason in record["reasons"]} == {"CREDIT_CARD", "PERSON", "PHONE_NUMBER"}
    assert record["policy"]["version"] == Policy.default().version
    assert not any(word in json.dumps(record) for word in ("4111", "John", "Smith", "212-555"))


async def test_a_response_that_comes_first_finds_its_request(worker: Worker, kafka_settings: KafkaSettings) -> None:
    exchange = fresh_id()
    await publish(kafka_settings, RESPONSES, response(exchange, "The capital of France is Paris."))
    await asyncio.sleep(0.5)
    await publish(
        kafka_settings,
        REQUESTS,
        request(
            exchange,
            "What is the capital of France?",
            route="kb",
            documents=[{"id": "d", "text": "Paris is the capital of France."}],
        ),
    )
    records = await decisions(kafka_settings, 2, exchange)
    (answer,) = [record for record in records if record["stage"] == "response"]
    assert not answer["coverage"]["failed"]
    assert "hallucination" in answer["coverage"]["scanned"]
    assert answer["labels"]["route"] == "kb"


async def test_a_response_without_a_request_is_judged_and_says_so(
    worker: Worker, kafka_settings: KafkaSettings
) -> None:
    exchange = fresh_id()
    await publish(kafka_settings, RESPONSES, response(exchange, "The capital of France is Paris."))
    (record,) = await decisions(kafka_settings, 1, exchange)
    assert {(f["guard"], f["code"]) for f in record["coverage"]["failed"]} == {
        ("hallucination", "request_missing"),
        ("relevance", "request_missing"),
    }


async def test_bad_input_becomes_dead_letters_and_the_next_good_event_is_processed(
    worker: Worker, kafka_settings: KafkaSettings
) -> None:
    good = fresh_id()
    bad: dict[str, bytes] = {
        "not_json": b'{"schema": "tidegate.request.v1", s3cret',
        "bad_value": json.dumps(request(fresh_id(), "s3cret", tenant=5)).encode(),
        "nul": json.dumps(request(fresh_id(), "s3cret\0")).encode(),
        "lone_surrogate": b'{"schema": "tidegate.request.v1", "exchange_id": "s3cret", "messages": ["\\ud800"]}',
        "unknown_schema": json.dumps({**request(fresh_id(), "s3cret"), "schema": "tidegate.request.v99"}).encode(),
        "missing_field": b'{"schema": "tidegate.request.v1", "exchange_id": "s3cret"}',
        "too_deep": b'{"a":' * 80 + b'"s3cret"' + b"}" * 80,
        "wrong_topic": json.dumps(response(fresh_id(), "s3cret")).encode(),
        "too_large": json.dumps(request("s3cret", "x" * MAX_EVENT_BYTES)).encode()[: MAX_EVENT_BYTES + 100],
    }
    run = fresh_id("run")
    await publish(kafka_settings, REQUESTS, *bad.values(), request(good, "Hello there"), key=good, tidegate_run=run)
    await decisions(kafka_settings, 1, good)
    letters = await read_until(
        kafka_settings, DLQ, lambda seen: sum(letter.get("run") == run for letter in seen) >= len(bad)
    )
    letters = [letter for letter in letters if letter.get("run") == run]
    assert {letter["code"] for letter in letters} == set(bad)
    assert "s3cret" not in json.dumps(letters)
    assert {letter["length_bytes"] for letter in letters} == {len(value) for value in bad.values()}


async def test_an_event_sent_twice_is_decided_once(worker: Worker, kafka_settings: KafkaSettings) -> None:
    exchange = fresh_id()
    event = request(exchange, CARD)
    await publish(kafka_settings, REQUESTS, event)
    await publish(kafka_settings, REQUESTS, event, event, key="another-conversation")
    records = await decisions(kafka_settings, 3, exchange)
    assert len({json.dumps(record) for record in records}) == 1


async def test_other_content_under_an_old_id_is_a_decision_of_its_own(
    worker: Worker, kafka_settings: KafkaSettings
) -> None:
    exchange = fresh_id()
    await publish(kafka_settings, REQUESTS, request(exchange, "Hello there"), request(exchange, CARD))
    records = await decisions(kafka_settings, 2, exchange)
    assert [record["decision"] for record in records] == ["allow", "redact"]
    assert len({record["content_hash"] for record in records}) == 2


async def test_who_asks_over_the_stream_gets_the_record(
    worker: Worker, kafka_settings: KafkaSettings, redis_settings: RedisSettings
) -> None:
    exchange = fresh_id()
    client = aioredis.Redis.from_url(redis_settings.url.get_secret_value())
    reply_key, channel = f"tidegate:reply:{exchange}", "tidegate:reply:channel-of-a-test"
    async with client.pubsub() as listener:
        await listener.subscribe(channel)
        await publish(
            kafka_settings,
            REQUESTS,
            request(exchange, CARD),
            tidegate_reply_key=reply_key,
            tidegate_reply_channel=channel,
        )
        async with asyncio.timeout(10):
            async for message in listener.listen():
                if message["type"] == "message":
                    assert message["data"].decode() == reply_key
                    break
    record = json.loads(await client.get(reply_key))
    assert record["decision"] == "redact"
    await client.aclose()


async def test_a_reply_key_cannot_overwrite_something_else(
    worker: Worker, kafka_settings: KafkaSettings, redis_settings: RedisSettings
) -> None:
    exchange = fresh_id()
    client = aioredis.Redis.from_url(redis_settings.url.get_secret_value())
    await client.set("precious", b"1")
    await publish(
        kafka_settings,
        REQUESTS,
        request(exchange, CARD),
        tidegate_reply_key="precious",
        tidegate_reply_channel="tidegate:reply:c",
    )
    await decisions(kafka_settings, 1, exchange)
    assert await client.get("precious") == b"1"
    await client.aclose()


async def test_a_new_policy_is_in_force_within_a_second(worker: Worker, kafka_settings: KafkaSettings) -> None:
    changed = Policy.parse(Policy.default().source.replace("action: redact", "action: block"))
    try:
        await apply_policy(kafka_settings, changed, author="a test")
        await asyncio.sleep(1)
        exchange = fresh_id()
        await publish(kafka_settings, REQUESTS, request(exchange, CARD))
        (record,) = await decisions(kafka_settings, 1, exchange)
        assert (record["decision"], record["policy"]["version"]) == ("block", changed.version)
    finally:
        await apply_policy(kafka_settings, Policy.default(), author="a test")
        await asyncio.sleep(1)
