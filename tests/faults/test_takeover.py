"""Checks workers that die, leave, freeze and join while events come in: a ledger of what was produced and decided."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from streams.kafka import Publisher, Record, create_topics, make_consumer
from streams.readback import partitions_of, read_to_end
from streams.settings import KafkaSettings, RedisSettings
from streams.topics import DECISIONS, REQUESTS, RESPONSES
from tests.integration.wire import Worker, fresh_id, read_until, request, response, run_worker_process, value_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

POLICY = """
name: default
guards: {secrets: {}}
rules: [{name: redact-secrets, guard: secrets, action: redact}]
"""
"""No model: workers start quickly and are fast, so that many events are in flight whenever one of them dies."""

EXCHANGES = 2_000
EXCHANGES_PER_S = 150
SESSION_TIMEOUT_MS = 6_000
FROZEN_S = 8.0
"""Past the session: the group has given its partitions to others when it thaws."""


async def produce(kafka: KafkaSettings, ids: list[str]) -> None:
    """Requests and responses at a steady rate, each with a text of its own, keyed by exchange."""
    publisher = Publisher(kafka)
    await publisher.start()
    try:
        for start in range(0, len(ids), EXCHANGES_PER_S // 10):
            records = []
            for identity in ids[start : start + EXCHANGES_PER_S // 10]:
                for topic, event in (
                    (REQUESTS, request(identity, f"What of {identity}?")),
                    (RESPONSES, response(identity, f"It is {identity}.")),
                ):
                    records.append(Record(topic, identity.encode(), json.dumps(event).encode()))
            await publisher.publish(records)
            await asyncio.sleep(0.1)
    finally:
        await publisher.stop()


async def disturb(kind: str, worker: Worker) -> None:
    if kind == "kill":
        worker.kill()
    elif kind == "leave":
        await asyncio.to_thread(worker.wait_ready)  # before, a SIGTERM finds no handler
        assert await asyncio.to_thread(worker.stop) == 0
    else:
        worker.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        worker.process.send_signal(signal.SIGCONT)


async def where_missing(kafka: KafkaSettings) -> str:
    """The undecided events by partition, beside what the group has committed there: lost below it, stuck above."""
    consumer = make_consumer(kafka)
    await consumer.start()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        partitions = await partitions_of(consumer, DECISIONS)
        consumer.assign(partitions)
        records = [value_of(record) async for record in read_to_end(consumer, partitions)]
        decided = {(r["exchange_id"], f"llm.{r['stage']}s") for r in records}
        committed = await admin.list_consumer_group_offsets("tidegate-checks")
        lines = []
        for topic in (REQUESTS, RESPONSES):
            partitions = await partitions_of(consumer, topic)
            consumer.assign(partitions)
            missing: dict[int, list[int]] = {}
            async for record in read_to_end(consumer, partitions):
                if (value_of(record)["exchange_id"], topic) not in decided:
                    missing.setdefault(record.partition, []).append(record.offset)
            for tp in partitions:
                if at := missing.get(tp.partition):
                    place = committed.get(tp)
                    lines.append(f"{topic}/{tp.partition}: {len(at)} missing, {at[0]} to {at[-1]}; committed {place}")
        return "\n".join(lines)
    finally:
        await consumer.stop()
        await admin.close()


@pytest.mark.parametrize("kind", ["kill", "leave", "freeze"])
async def test_nothing_is_lost_or_doubled(
    kind: str, fresh_kafka: KafkaSettings, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    seed = int(os.environ.get("FAULT_SEED", random.randrange(10_000)))
    print(f"seed {seed} (FAULT_SEED={seed} repeats it)")
    moments = random.Random(seed)
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    await create_topics(fresh_kafka)
    ids = [fresh_id("takeover") for _ in range(EXCHANGES)]

    with contextlib.ExitStack() as processes:

        def start() -> Worker:
            return processes.enter_context(
                run_worker_process(
                    "checks",
                    fresh_kafka,
                    redis_settings,
                    tmp_path,
                    TIDEGATE_POLICY_FILE=str(policy),
                    TIDEGATE_KAFKA__SESSION_TIMEOUT_MS=str(SESSION_TIMEOUT_MS),
                    TIDEGATE_KAFKA__HEARTBEAT_INTERVAL_MS="1500",
                )
            )

        workers = [start()]
        await asyncio.to_thread(workers[0].wait_ready)
        producing = asyncio.create_task(produce(fresh_kafka, ids))
        while not producing.done():
            # The next one joins while the first is about to go: a rebalance and a death at once.
            workers.append(start())
            await asyncio.sleep(moments.uniform(0.5, 4))
            await disturb(kind, workers[0])
            if kind != "freeze":
                workers.pop(0)
            else:
                workers.append(workers.pop(0))
                if len(workers) > 2:
                    workers.pop(0).kill()
        await producing
        try:
            records = await read_until(
                fresh_kafka,
                DECISIONS,
                lambda seen: len({(r["exchange_id"], r["stage"]) for r in seen}) >= 2 * len(ids),
                timeout_s=90,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await where_missing(fresh_kafka)}") from None
    distinct: dict[tuple[str, str], set[str]] = {}
    for record in records:
        record.pop("timing", None)
        distinct.setdefault((record["exchange_id"], record["stage"]), set()).add(json.dumps(record))
    assert distinct.keys() == {(identity, stage) for identity in ids for stage in ("request", "response")}
    assert [key for key, said in distinct.items() if len(said) > 1] == []
    joined = Counter(f["code"] for record in records for f in record["coverage"].get("failed", ()))
    assert not joined, "with so simple a policy no guard can fail"
