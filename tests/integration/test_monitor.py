"""The monitor on a real broker and a real store: exact through kill -9, rebalances and an emptied Redis."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis.asyncio as aioredis

from streams.events import iso, to_ms
from streams.kafka import Publisher, Record, create_topics
from streams.monitor.report import total_json, windows_json
from streams.monitor.view import View
from streams.settings import KafkaSettings, RedisSettings, load_settings
from streams.topics import ALERTS, DECISIONS, METRICS, REQUESTS, RESPONSES
from streams.windows_reader import WindowsReader
from tests.integration.wire import Worker, read_until, request, response, run_worker_process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

QUICK = {"TIDEGATE_KAFKA__SESSION_TIMEOUT_MS": "6000", "TIDEGATE_KAFKA__HEARTBEAT_INTERVAL_MS": "1000"}


class Traffic:
    """Events, and what a direct count of them says."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.total: Counter[str] = Counter()
        self.by_series: dict[tuple[str, str, str], Counter[str]] = {}
        self.ends: dict[str, Counter[int]] = {}
        self._seen: set[tuple[str, str, str]] = set()

    def add(self, topic: str, event: dict[str, Any], *, key: str | None = None) -> None:
        self.records.append(Record(topic, (key or event["exchange_id"]).encode(), orjson.dumps(event)))
        kind = "requests" if topic == REQUESTS else "responses"
        claim = (kind, event["tenant"], event["exchange_id"])
        if claim in self._seen:
            self.total["deduplicated"] += 1
            return
        self._seen.add(claim)
        usage = event.get("usage", {})
        counters = Counter({kind: 1, "errors": int(bool(event.get("error"))), **usage})
        self.total += counters
        self.by_series.setdefault((event["tenant"], event["route"], event["model"]), Counter()).update(counters)

    def junk(self, topic: str, raw: bytes) -> None:
        self.records.append(Record(topic, b"junk", raw))
        self.total["dead"] += 1

    def exchange(self, number: int, rng: random.Random, prefix: str = "x") -> None:
        tenant, route = rng.choice([("acme", "chat"), ("acme", "support"), ("globex", "chat")])
        labels = {"tenant": tenant, "route": route, "model": "gpt-4o", "provider": "openai", "time": iso(now_ms())}
        exchange = f"{prefix}-{number}"
        self.add(REQUESTS, request(exchange, "hello", **labels))
        answer = {"usage": {"input_tokens": rng.randrange(900), "output_tokens": rng.randrange(900)}}
        if number % 10 == 0:
            answer["error"] = {"code": "500"}  # type: ignore[dict-item]
        self.add(RESPONSES, response(exchange, "hi", **labels, timing={"duration_ms": 100.0 + number % 50}, **answer))
        if number % 7 == 0:  # a retry, under another conversation: most likely another partition
            self.add(REQUESTS, request(exchange, "hello", **labels), key=f"retry-{number}")
            self.add(RESPONSES, response(exchange, "hi", **labels, **answer), key=f"retry-{number}")
        if number % 50 == 0:
            self.junk(REQUESTS, b"{not json")

    async def publish(self, kafka: KafkaSettings, chunk: int = 200, pause_s: float = 0.0) -> None:
        publisher = Publisher(kafka)
        await publisher.start()
        try:
            for start in range(0, len(self.records), chunk):
                for sent in await publisher.publish(self.records[start : start + chunk]):
                    ends = self.ends.setdefault(sent.topic, Counter())
                    ends[sent.partition] = max(ends[sent.partition], sent.offset + 1)
                await asyncio.sleep(pause_s)
        finally:
            await publisher.stop()
        self.records = []


def now_ms() -> int:
    return round(time.time() * 1000)


@asynccontextmanager
async def following(kafka: KafkaSettings, redis: RedisSettings) -> AsyncIterator[WindowsReader]:
    reader = WindowsReader(
        load_settings(kafka=kafka.model_dump(exclude_unset=True), redis=redis.model_dump(exclude_unset=True))
    )
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


async def until(condition: Any, timeout_s: float = 60, what: Any = lambda: "") -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, what()
        await asyncio.sleep(0.05)


async def wait_counted(view: View, traffic: Traffic, timeout_s: float = 90) -> None:
    """As `replay` does: until what was sent has been counted."""

    def counted() -> bool:
        state = view.counted()
        return all(
            state.get(topic, {}).get(partition, 0) >= end
            for topic, ends in traffic.ends.items()
            for partition, end in ends.items()
        )

    await until(counted, timeout_s, lambda: f"sent {traffic.ends}, counted {view.counted()}")


def check_exact(view: View, traffic: Traffic) -> None:
    total = total_json(view)["total"]
    assert total == {name: traffic.total.get(name, 0) for name in total}
    answer = windows_json(view, horizon="1h", now_ms=now_ms())
    found = {
        (series["tenant"], series["route"], series["model"]): {
            name: series[name] for name in ("requests", "responses", "errors", "input_tokens", "output_tokens")
        }
        for series in answer["series"]
    }
    assert found == {
        place: {name: counters.get(name, 0) for name in found[place]} for place, counters in traffic.by_series.items()
    }


def start(stack: ExitStack, kafka: KafkaSettings, redis: RedisSettings, folder: Path, **more: str) -> Worker:
    return stack.enter_context(run_worker_process("monitor", kafka, redis, folder, **QUICK, **more))


async def test_totals_are_exact_through_a_kill_half_way(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    traffic, rng = Traffic(), random.Random(11)
    for number in range(2_000):
        traffic.exchange(number, rng)
    await traffic.publish(fresh_kafka)
    with ExitStack() as stack:
        first = start(stack, fresh_kafka, fresh_redis, tmp_path, TIDEGATE_MONITOR__FLUSH_S="0.2")
        async with following(fresh_kafka, fresh_redis) as reader:
            view = reader.view
            await until(lambda: view.totals().get("responses", 0) > 300, what=first.log.read_text)
            first.kill()
            assert view.totals()["responses"] < traffic.total["responses"], "killed too late to tell"
            second = start(stack, fresh_kafka, fresh_redis, tmp_path)
            await wait_counted(view, traffic)
            check_exact(view, traffic)
            rng = random.Random(11)
            for number in range(50):  # again
                traffic.exchange(number, rng)
            await traffic.publish(fresh_kafka)
            await wait_counted(view, traffic)
            check_exact(view, traffic)
            assert total_json(view)["total"]["requests"] == 2_000
            assert second.stop() == 0
        async with following(fresh_kafka, fresh_redis) as late:  # what the topic says, read from its beginning
            await late.wait_until_caught_up(20)
            assert total_json(late.view) == total_json(view)


async def test_totals_are_exact_while_workers_come_and_go(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    traffic, rng = Traffic(), random.Random(12)
    for number in range(2_500):
        traffic.exchange(number, rng)
    with ExitStack() as stack:
        workers = [start(stack, fresh_kafka, fresh_redis, tmp_path)]
        async with following(fresh_kafka, fresh_redis) as reader:
            view = reader.view
            publishing = asyncio.create_task(traffic.publish(fresh_kafka, chunk=100, pause_s=0.3))
            await until(lambda: view.totals().get("requests", 0) > 100, what=workers[0].log.read_text)
            workers.append(start(stack, fresh_kafka, fresh_redis, tmp_path))
            await asyncio.to_thread(workers[1].wait_ready)
            await asyncio.sleep(2)
            workers[0].kill()
            await publishing
            await wait_counted(view, traffic)
            check_exact(view, traffic)
            assert workers[1].stop() == 0


async def test_a_worker_that_was_frozen_changes_nothing_when_it_comes_back(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    traffic, rng = Traffic(), random.Random(13)
    for number in range(2_000):
        traffic.exchange(number, rng)
    with ExitStack() as stack:
        frozen = start(stack, fresh_kafka, fresh_redis, tmp_path)
        async with following(fresh_kafka, fresh_redis) as reader:
            view = reader.view
            publishing = asyncio.create_task(traffic.publish(fresh_kafka, chunk=100, pause_s=0.4))
            await until(lambda: view.totals().get("requests", 0) > 100, what=frozen.log.read_text)
            frozen.process.send_signal(signal.SIGSTOP)
            other = start(stack, fresh_kafka, fresh_redis, tmp_path)
            at_freeze = view.totals()["requests"]
            await until(lambda: view.totals()["requests"] > at_freeze + 100, what=other.log.read_text)
            frozen.process.send_signal(signal.SIGCONT)
            await publishing
            await wait_counted(view, traffic)
            check_exact(view, traffic)
            assert frozen.process.poll() is None, frozen.log.read_text()


async def test_an_emptied_redis_does_not_let_duplicates_count(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    traffic = Traffic()
    for number in range(200):
        traffic.exchange(number, random.Random(number))
    await traffic.publish(fresh_kafka)
    client = aioredis.Redis.from_url(fresh_redis.url.get_secret_value())
    with ExitStack() as stack:
        worker = start(stack, fresh_kafka, fresh_redis, tmp_path)
        async with following(fresh_kafka, fresh_redis) as reader:
            await wait_counted(reader.view, traffic)
            await client.flushall()
            for number in range(220):  # all again, and twenty new ones
                traffic.exchange(number, random.Random(number))
            await traffic.publish(fresh_kafka)
            await wait_counted(reader.view, traffic)
            check_exact(reader.view, traffic)
            await client.flushall()
            worker.kill()
            start(stack, fresh_kafka, fresh_redis, tmp_path)  # finds Redis empty, epochs and all
            for number in range(210, 230):
                traffic.exchange(number, random.Random(number))
            await traffic.publish(fresh_kafka)
            await wait_counted(reader.view, traffic)
            check_exact(reader.view, traffic)
    await client.aclose()


async def test_a_response_gets_its_series_from_its_request(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    labels = {"tenant": "acme", "route": "chat", "model": "gpt-4o", "provider": "openai", "time": iso(now_ms())}
    prompt = {"name": "support", "version": "12"}
    with ExitStack() as stack:
        worker = start(stack, fresh_kafka, fresh_redis, tmp_path)
        async with following(fresh_kafka, fresh_redis) as reader:
            publisher = Publisher(fresh_kafka)
            await publisher.start()
            await publisher.publish([Record(REQUESTS, b"k", orjson.dumps(request("x", "a", prompt=prompt, **labels)))])
            await until(lambda: reader.view.totals().get("requests") == 1, what=worker.log.read_text)
            bare = response("x", "b", tenant="acme", time=labels["time"], usage={"input_tokens": 1_000_000})
            await publisher.publish([Record(RESPONSES, b"k", orjson.dumps(bare))])
            await until(lambda: reader.view.totals().get("responses") == 1, what=worker.log.read_text)
            (series,) = windows_json(reader.view, now_ms=now_ms())["series"]
            assert (series["requests"], series["responses"], series["prompt"]) == (1, 1, prompt)
            assert (series["cost_usd"], series["unpriced"]) == (2.5, 0)
            # A response that comes first waits for its request; one whose request never comes counts without.
            early = response("y", "b", tenant="acme", time=labels["time"])
            alone = response("z", "b", tenant="acme", time=labels["time"])
            await publisher.publish([Record(RESPONSES, b"k", orjson.dumps(event)) for event in (early, alone)])
            await asyncio.sleep(1.5)
            assert reader.view.totals().get("responses") == 1
            await publisher.publish([Record(REQUESTS, b"k", orjson.dumps(request("y", "a", prompt=prompt, **labels)))])
            await until(lambda: reader.view.totals().get("responses") == 3, what=worker.log.read_text)
            found = {one["route"]: one["responses"] for one in windows_json(reader.view, now_ms=now_ms())["series"]}
            assert found == {"chat": 2, "": 1}
            await publisher.stop()


async def test_alerts_fire_once_across_evaluators_and_metrics_are_published(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    with ExitStack() as stack:
        first = start(stack, fresh_kafka, fresh_redis, tmp_path, TIDEGATE_MONITOR__LEASE_S="2")
        await asyncio.to_thread(first.wait_ready)
        base_ms = now_ms() - 40_000
        publisher = Publisher(fresh_kafka)
        await publisher.start()
        for number in range(45):  # half a minute of errors, then as they come
            event = response(
                f"e-{number}",
                "",
                tenant="acme",
                route="chat",
                model="m",
                time=iso(min(base_ms + number * 1_000, now_ms())),
                error="overloaded",
            )
            decision = {
                "schema": "tidegate.decision.v1",
                "exchange_id": f"e-{number}",
                "conversation_id": "c",
                "tenant": "acme",
                "stage": "request",
                "path": "inline" if number % 2 else "stream",
                "content_hash": "0",
                "time": event["time"],
                "decision": "block",
                "policy": {"name": "default", "version": "1"},
                "labels": {"tenant": "acme", "route": "chat", "model": "m"},
                "reasons": [
                    {"guard": "injection", "kind": "injection", "rule": "block-injection", "score": 0.9}
                    | {"threshold": 0.8, "action": "block"}
                ],
            }
            twin = {**decision, "path": "stream" if number % 2 else "inline"}  # both paths block: one block
            records = [Record(RESPONSES, b"c", orjson.dumps(event))]
            records += [Record(DECISIONS, b"c", orjson.dumps(record)) for record in (decision, twin, decision)]
            await publisher.publish(records)
            if number > 38:
                await asyncio.sleep(1)
        await publisher.stop()
        alerts = await read_until(
            fresh_kafka,
            ALERTS,
            lambda seen: {alert["rule"] for alert in seen} >= {"error-rate", "blocks", "block-rate"},
            60,
        )
        error_rate = next(alert for alert in alerts if alert["rule"] == "error-rate")
        assert (error_rate["key"], error_rate["status"]) == ("error-rate:acme/chat", "firing")
        metrics = await read_until(
            fresh_kafka, METRICS, lambda seen: any(m["windows"]["5m"]["responses"] == 45 for m in seen)
        )
        assert metrics[-1]["schema"] == "tidegate.metrics.v1"
        blocks = await read_until(fresh_kafka, ALERTS, lambda seen: any(alert.get("count") == 45 for alert in seen))
        assert {alert["key"] for alert in blocks if "count" in alert} == {"blocks:acme/chat/block-injection"}
        first.kill()
        start(stack, fresh_kafka, fresh_redis, tmp_path, TIDEGATE_MONITOR__LEASE_S="2")
        seen = await read_until(
            fresh_kafka, ALERTS, lambda seen: sum(alert["status"] == "resolved" for alert in seen) >= 3, 150
        )
        firing = Counter(alert["key"] for alert in seen if alert["status"] == "firing" and alert["rule"] != "blocks")
        assert firing == {"error-rate:acme/chat": 1, "block-rate:acme/chat": 1}
        ended = Counter(alert["key"] for alert in seen if alert["status"] == "resolved")
        assert set(ended.values()) == {1}
        assert to_ms_of(seen[-1]["ends_at"]) > base_ms


def to_ms_of(text: str) -> int:
    from datetime import datetime

    return to_ms(datetime.fromisoformat(text))
