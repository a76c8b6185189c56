"""The slow worker on a real broker and a real store, with a judge and a webhook that listen on this machine."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio as aioredis
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from guards.policy import Policy
from streams.dev.ports import free_port
from streams.kafka import RUN_HEADER, create_topics
from streams.monitor.report import windows_json
from streams.policies import apply_policy
from streams.settings import KafkaSettings, RedisSettings, load_settings
from streams.topics import ALERTS, DECISIONS, REQUESTS, RESPONSES
from streams.windows_reader import WindowsReader
from tests.integration.wire import Worker, fresh_id, publish, read_until, request, response, run_worker_process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

POLICY = """
name: slow-test
guards:
  secrets: {{}}
  judge:
    on_failure: allow
    options:
      endpoint: {url}/v1
      model: a-judge
      api_key_env: TEST_JUDGE_KEY
      criteria: [{{name: harm, description: It could hurt somebody.}}]
      timeout_s: {timeout_s}
      budget: {{per_minute: null, per_day: {per_day}}}
  webhook:
    stages: [response]
    options: {{url: {url}/check, kinds: [odd], secret_env: TEST_HOOK_SECRET, allow_private: true}}
rules:
  - {{name: judged, guard: judge, action: block, threshold: 0.7}}
  - {{name: odd, guard: webhook, action: flag}}
"""

ENVIRONMENT = {"TIDEGATE_POLICY": "slow-test", "TEST_JUDGE_KEY": "a-key", "TEST_HOOK_SECRET": "a-secret"}


class Services:
    """A judge and a webhook. The judge finds harm in what says so, and hangs on what asks it to until `release`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.calls: Counter[str] = Counter()  # by the text's first word
        self.unsigned = 0
        self.delay_s = 0.0
        self._released = asyncio.Event()
        routes = [
            Route("/v1/chat/completions", self._judge, methods=["POST"]),
            Route("/check", self._hook, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=self.port, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        end_s = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < end_s, "the services do not start"
            time.sleep(0.05)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    async def _judge(self, asked: Request) -> Response:
        if asked.headers.get("authorization") != "Bearer a-key":
            return JSONResponse({}, 401)
        text = (await asked.json())["messages"][1]["content"]
        self.calls[text.splitlines()[1].split()[0]] += 1
        if "HANG" in text:
            await asyncio.sleep(60)
        await asyncio.sleep(self.delay_s)
        scores = json.dumps({"harm": 0.9 if "HARM" in text else 0.1})
        return JSONResponse({"choices": [{"message": {"content": scores}, "finish_reason": "stop"}]})

    async def _hook(self, asked: Request) -> Response:
        body = await asked.body()
        time_s, mac = (part.partition("=")[2] for part in asked.headers["tidegate-signature"].split(","))
        self.unsigned += mac != hmac.new(b"a-secret", time_s.encode() + b"." + body, "sha256").hexdigest()
        text = json.loads(body)["texts"][0]["text"]
        at = text.find("ODD")
        findings = [] if at < 0 else [{"kind": "odd", "score": 0.8, "spans": [{"start": at, "end": at + 3}]}]
        return JSONResponse({"findings": findings})


@pytest.fixture
def services() -> Iterator[Services]:
    made = Services()
    made.start()
    yield made
    made.stop()


def policy_file(folder: Path, services: Services, *, timeout_s: float = 20, per_day: int | None = None) -> Path:
    path = folder / "policy.yaml"
    path.write_text(POLICY.format(url=services.url, timeout_s=timeout_s, per_day=per_day or "null"))
    return path


def run_slow(kafka: KafkaSettings, redis: RedisSettings, policy: Path, **more: str) -> Any:
    return run_worker_process(
        "slow",
        kafka,
        redis,
        policy.parent,
        **{**ENVIRONMENT, "TIDEGATE_POLICY_FILE": str(policy), **more},
    )


def split(records: list[dict[str, Any]], *ids: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Decisions and amendments of these exchanges."""
    of = [record for record in records if record.get("exchange_id") in ids]
    amendments = [record for record in of if record["schema"] == "tidegate.amendment.v1"]
    return [record for record in of if record not in amendments], amendments


async def amendments(kafka: KafkaSettings, count: int, *ids: str, timeout_s: float = 60) -> list[dict[str, Any]]:
    records = await read_until(kafka, DECISIONS, lambda seen: len(split(seen, *ids)[1]) >= count, timeout_s)
    return split(records, *ids)[1]


def key_of(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(record[name] for name in ("tenant", "exchange_id", "stage", "path", "content_hash"))


def metric(worker: Worker, name: str) -> float:
    lines = httpx.get(f"{worker.status_url}/metrics", timeout=5).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.1)


async def test_amendments_follow_their_decisions_and_are_no_decisions(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, services: Services, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    policy = policy_file(tmp_path, services)
    where = {**ENVIRONMENT, "TIDEGATE_POLICY_FILE": str(policy)}
    good, bad = fresh_id("good"), fresh_id("bad")
    with (
        run_worker_process("checks", fresh_kafka, fresh_redis, tmp_path, **where) as checks,
        run_worker_process("monitor", fresh_kafka, fresh_redis, tmp_path, **where) as monitor,
        run_slow(fresh_kafka, fresh_redis, policy) as slow,
    ):
        for worker in (checks, monitor, slow):
            worker.wait_ready()
        await publish(fresh_kafka, REQUESTS, request(good, "Hello"), request(bad, "HARM them"))
        await publish(fresh_kafka, RESPONSES, response(good, "So ODD an answer"), response(bad, "HARM done"))
        records = await read_until(
            fresh_kafka, DECISIONS, lambda seen: [len(part) for part in split(seen, good, bad)] == [4, 4], 60
        )
        alerts = await read_until(fresh_kafka, ALERTS, lambda seen: bool(seen), 60)

        settings = load_settings(
            kafka=fresh_kafka.model_dump(exclude_unset=True), redis=fresh_redis.model_dump(exclude_unset=True)
        )
        reader = WindowsReader(settings)
        await reader.start()
        try:
            await until(lambda: sum(reader.view.counted().get(DECISIONS, {}).values()) >= 8)
            (series,) = windows_json(reader.view, horizon="5m", now_ms=round(time.time() * 1000))["series"]
        finally:
            await reader.stop()
        assert slow.stop() == 0

    decisions, amended = split(records, good, bad)
    assert {key_of(record) for record in decisions} == {key_of(record) for record in amended}
    for record in decisions:
        assert record["decision"] == "allow"
        assert set(record["coverage"]["pending"]) == (
            {"judge"} if record["stage"] == "request" else {"judge", "webhook"}
        )
        assert record["coverage"]["scanned"] == ["secrets"]
    by_stage = {(record["exchange_id"], record["stage"]): record for record in amended}
    said = {place: record["decision"] for place, record in by_stage.items()}
    assert said == {
        (good, "request"): "allow", (good, "response"): "flag", (bad, "request"): "block", (bad, "response"): "block"
    }  # fmt: skip
    assert all(record["revision"] == 1 and record["event_time"] <= record["time"] for record in amended)
    odd = by_stage[good, "response"]
    assert odd["coverage"] == {"scanned": ["judge", "webhook"], "skipped": [], "failed": [], "pending": []}
    (span,) = odd["reasons"][0]["spans"]
    assert (span["start"], span["end"]) == (3, 6)
    assert odd["evidence"][0]["length_chars"] == 3
    assert not any(word in json.dumps(amended) for word in ("Hello", "HARM", "answer"))
    assert not services.unsigned

    assert alerts[0]["key"].startswith("blocks:")
    assert alerts[0]["labels"]["rule"] == "judged"
    assert series["decisions"]["stream"] == {"request": {"allow": 2}, "response": {"allow": 2}}
    assert series["blocks"] == {"request:judged": 1, "response:judged": 1}
    assert series["findings"] == {"judge:harm": 2, "webhook:odd": 1}


async def test_a_service_that_hangs_fails_in_time_and_its_partition_goes_on(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, services: Services, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    hanging, behind = fresh_id("hanging"), [fresh_id("behind") for _ in range(5)]
    with run_slow(fresh_kafka, fresh_redis, policy_file(tmp_path, services, timeout_s=3)) as slow:
        slow.wait_ready()
        events = [request(hanging, "HANG please"), *(request(identity, "Hello") for identity in behind)]
        await publish(fresh_kafka, REQUESTS, *events, key="one conversation")
        found = await amendments(fresh_kafka, 6, hanging, *behind)
        await until(lambda: metric(slow, "tidegate_oldest_unacknowledged_seconds") == 0)
    assert [record["exchange_id"] for record in found][-1] == hanging  # the others did not wait for it
    assert found[-1]["coverage"]["failed"] == [{"guard": "judge", "code": "timeout"}]
    assert found[-1]["decision"] == "allow"
    assert not any(record["coverage"]["failed"] for record in found[:-1])


async def test_killed_half_way_nothing_is_lost_or_doubled(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, services: Services, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    policy = policy_file(tmp_path, services)
    quick = {"TIDEGATE_KAFKA__SESSION_TIMEOUT_MS": "6000", "TIDEGATE_KAFKA__HEARTBEAT_INTERVAL_MS": "1000"}
    services.delay_s = 0.1
    ids = [fresh_id("killed") for _ in range(150)]
    with run_slow(fresh_kafka, fresh_redis, policy, **quick) as slow:
        slow.wait_ready()
        await publish(fresh_kafka, REQUESTS, *(request(identity, f"{identity} asks") for identity in ids))
        await publish(fresh_kafka, RESPONSES, *(response(identity, "ODD") for identity in ids))
        await amendments(fresh_kafka, 60, *ids)
        slow.kill()
    asked = sum(services.calls.values())
    assert asked < 2 * len(ids)
    with run_slow(fresh_kafka, fresh_redis, policy, **quick) as slow:
        slow.wait_ready()
        records = await read_until(
            fresh_kafka,
            DECISIONS,
            lambda seen: len({key_of(record) for record in split(seen, *ids)[1]}) == 2 * len(ids),
            timeout_s=90,
        )
        await until(lambda: metric(slow, "tidegate_oldest_unacknowledged_seconds") == 0)
        assert slow.stop() == 0
    assert len({json.dumps(record, sort_keys=True) for record in split(records, *ids)[1]}) == 2 * len(ids)
    # Only what was under way at the kill is asked twice: what stands in the store is published again, unasked.
    assert sum(services.calls.values()) <= 2 * len(ids) + 8


async def test_a_budget_is_kept_over_workers(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, services: Services, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    policy = policy_file(tmp_path, services, per_day=3)
    ids = [fresh_id("budget") for _ in range(10)]
    with run_slow(fresh_kafka, fresh_redis, policy) as one, run_slow(fresh_kafka, fresh_redis, policy) as other:
        one.wait_ready()
        other.wait_ready()
        await publish(fresh_kafka, REQUESTS, *(request(identity, "Hello") for identity in ids))
        found = await amendments(fresh_kafka, len(ids), *ids)
    failed = Counter(failure["code"] for record in found for failure in record["coverage"]["failed"])
    assert failed == {"over_budget": len(ids) - 3}
    assert sum(services.calls.values()) == 3


async def test_only_what_comes_under_a_policy_with_slow_guards_is_shown_to_them(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, services: Services, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    with_judge = policy_file(tmp_path, services)
    without = tmp_path / "without.yaml"
    without.write_text("name: slow-test\nguards: {secrets: {}}\nrules: []\n")
    before, replayed, after = fresh_id("before"), fresh_id("replayed"), fresh_id("after")
    with run_slow(fresh_kafka, fresh_redis, without) as slow:
        slow.wait_ready()
        await publish(fresh_kafka, REQUESTS, request(before, "Hello"))
        await until(lambda: metric(slow, "tidegate_slow_passed_over_total") == 1)
        await apply_policy(fresh_kafka, Policy.load(with_judge), author="a test")
        await until(lambda: metric(slow, "tidegate_policy_switches_total") == 2)
        await publish(fresh_kafka, REQUESTS, request(replayed, "Hello"), **{RUN_HEADER.replace("-", "_"): "r1"})
        await publish(fresh_kafka, REQUESTS, request(after, "Hello"))
        (found,) = await amendments(fresh_kafka, 1, before, replayed, after)
        await until(lambda: metric(slow, "tidegate_slow_passed_over_total") == 2)
    assert found["exchange_id"] == after
    assert sum(services.calls.values()) == 1


async def test_a_response_without_request_is_told_so_even_where_redis_forgot_how_far_requests_were_taken(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, services: Services, tmp_path: Path
) -> None:
    await create_topics(fresh_kafka)
    policy = policy_file(tmp_path, services)
    before, alone = [fresh_id("before") for _ in range(20)], fresh_id("alone")
    with run_slow(fresh_kafka, fresh_redis, policy) as slow:
        slow.wait_ready()
        await publish(fresh_kafka, REQUESTS, *(request(identity, "Hello") for identity in before))
        await amendments(fresh_kafka, len(before), *before)
        await asyncio.sleep(2)  # committed
        assert slow.stop() == 0
    client = aioredis.Redis.from_url(fresh_redis.url.get_secret_value())
    await client.flushall()
    await client.aclose()
    with run_slow(fresh_kafka, fresh_redis, policy, TIDEGATE_CHECKS__JOIN_WAIT_MS="1500") as slow:
        slow.wait_ready()
        await publish(fresh_kafka, RESPONSES, response(alone, "It is."))
        (found,) = await amendments(fresh_kafka, 1, alone)
    assert {failure["code"] for failure in found["coverage"]["failed"]} == {"request_missing"}
