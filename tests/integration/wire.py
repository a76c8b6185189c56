"""What integration tests need of the wire: publish events, read topics, run a worker as its own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from streams.dev.ports import free_port
from streams.kafka import Publisher, Record, make_consumer
from streams.settings import KafkaSettings, RedisSettings

__all__ = ["Worker", "fresh_id", "publish", "read_until", "request", "response", "run_worker_process"]


def fresh_id(prefix: str = "x") -> str:
    """An id that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def request(exchange_id: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "schema": "tidegate.request.v1",
        "exchange_id": exchange_id,
        "messages": [{"role": "user", "content": text}],
        **more,
    }


def response(exchange_id: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "schema": "tidegate.response.v1",
        "exchange_id": exchange_id,
        "messages": [{"role": "assistant", "content": text}],
        **more,
    }


async def publish(kafka: KafkaSettings, topic: str, *values: Any, key: str | None = None, **headers: str) -> list[Any]:
    """Publish JSON objects or raw bytes; header names get hyphens for underscores."""
    publisher = Publisher(kafka)
    await publisher.start()
    try:
        return await publisher.publish(
            [
                Record(
                    topic,
                    (key or (value["exchange_id"] if isinstance(value, dict) else "k")).encode(),
                    value if isinstance(value, bytes) else json.dumps(value).encode(),
                    tuple((name.replace("_", "-"), text.encode()) for name, text in headers.items()),
                )
                for value in values
            ]
        )
    finally:
        await publisher.stop()


def value_of(record: Any) -> dict[str, Any]:
    """The record's JSON object; empty for what other tests of the same broker wrote as bad input."""
    try:
        value = json.loads(record.value or b"null")
    except ValueError:  # includes UnicodeDecodeError
        return {}
    return value if isinstance(value, dict) else {}


async def read_until(
    kafka: KafkaSettings, topic: str, enough: Callable[[list[dict[str, Any]]], bool], timeout_s: float = 30
) -> list[dict[str, Any]]:
    """All records of a topic from its beginning, read until ``enough(records)``; fails after ``timeout_s``."""
    consumer = make_consumer(kafka, topic)
    await consumer.start()
    records: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(timeout_s):
            while not enough(records):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    records.extend(value for record in batch if (value := value_of(record)))
    except TimeoutError:
        raise AssertionError(f"{topic}: not what was waited for in {timeout_s} s; {len(records)} records") from None
    finally:
        await consumer.stop()
    return records


class Worker:
    """A worker process under test."""

    def __init__(self, process: subprocess.Popen[bytes], status_url: str, log: Path) -> None:
        self.process = process
        self.status_url = status_url
        self.log = log

    def wait_ready(self, timeout_s: float = 150) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the worker ended:\n{self.log.read_text()[-4000:]}"
            try:
                if httpx.get(f"{self.status_url}/ready", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready in {timeout_s} s:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self, timeout_s: float = 15) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def run_worker_process(
    kind: str, kafka: KafkaSettings, redis: RedisSettings, folder: Path, **environment: str
) -> Iterator[Worker]:
    """`tidegate worker KIND` against a broker and a store, killed at the end at the latest."""
    port = free_port()
    log = folder / f"{kind}-{port}.log"
    env = {
        **os.environ,
        "TIDEGATE_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "TIDEGATE_REDIS__URL": redis.url.get_secret_value(),
        "TIDEGATE_STATUS_PORT": str(port),
        "TIDEGATE_HASH_KEY": "a key for tests, 32 characters..",
        "TIDEGATE_LOG_FORMAT": "json",
        **environment,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "worker", kind], env=env, stdout=output, stderr=output
        )
    worker = Worker(process, f"http://127.0.0.1:{port}", log)
    try:
        yield worker
    finally:
        if process.poll() is None:
            worker.kill()
