"""`tidegate replay` against the real worker: every event gets one decision, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from guards.models import ModelStore
from streams.kafka import Publisher, Record, create_topics
from streams.settings import KafkaSettings, RedisSettings
from streams.topics import DECISIONS
from tests.conftest import ROOT, Up

pytestmark = pytest.mark.integration


def write_events(path: Path, exchanges: int, *bad: bytes) -> Path:
    """Requests and responses, one exchange a second, in five conversations."""
    salt = uuid4().hex[:8]
    lines = []
    for number in range(exchanges):
        shared = {
            "exchange_id": f"{salt}-{number}",
            "conversation_id": f"{salt}-c{number % 5}",
            "tenant": salt,
            "route": "test",
            "model": "gpt-4o",
        }
        at = f"2025-05-04T03:{number // 60:02d}:{number % 60:02d}"
        texts = (f"What is the price of article {number}?", f"Article {number} costs {number} euros.")
        for stage, role, text, fraction in (
            ("request", "user", texts[0], ".100Z"),
            ("response", "assistant", texts[1], ".900Z"),
        ):
            message = {"role": role, "content": text}
            lines.append(
                orjson.dumps({"schema": f"tidegate.{stage}.v1", **shared, "time": at + fraction, "messages": [message]})
            )
    path.write_bytes(b"\n".join([*lines, *bad]) + b"\n")
    return path


def start_replay(path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "replay", str(path), "--json", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=150)
    assert out, err
    return process.returncode, json.loads(out), err


def replay(path: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    return finish(start_replay(path, *options))


class Worker:
    """A checks worker in a process of its own."""

    def __init__(self, kafka: KafkaSettings, redis: RedisSettings, log: Path) -> None:
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "worker", "checks", "--kafka", kafka.bootstrap],
            cwd=ROOT,
            env={**os.environ, "TIDEGATE_REDIS__URL": redis.url.get_secret_value()},
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
            self._log.close()


@pytest.fixture
async def worker(
    fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, model_store: ModelStore, tmp_path: Path
) -> Any:
    await create_topics(fresh_kafka)
    one = Worker(fresh_kafka, fresh_redis, tmp_path / "checks.log")
    yield one
    one.stop()


def test_nothing_is_missing_and_nothing_doubled(worker: Worker, fresh_kafka: KafkaSettings, tmp_path: Path) -> None:
    path = write_events(tmp_path / "events.jsonl", 40, b"not json", b'{"schema": "tidegate.response.v1"}')
    options = ("--kafka", fresh_kafka.bootstrap, "--shuffle-s", "3", "--seed", "7", "--repeat-every", "8")
    code, report, err = replay(path, *options)
    assert code == 0, err
    assert (report["events"], report["sent"]) == (80, 92)
    assert (report["decisions"], report["missing"], report["doubled"], report["repeated"]) == (80, 0, 0, 10)
    assert (report["dead_letters"], report["dead_letters_expected"]) == (2, 2)
    assert sum(report["by_decision"].values()) == 80
    assert report["shift_ms"] > 0
    assert report["seed"] == 7
    assert report["windows_counted"] is False


async def test_a_second_different_record_is_told(worker: Worker, fresh_kafka: KafkaSettings, tmp_path: Path) -> None:
    path = write_events(tmp_path / "events.jsonl", 20)
    code, first, err = replay(path, "--kafka", fresh_kafka.bootstrap)
    assert code == 0, err
    # Paced, so that there is time to publish a forged decision between the real ones.
    process = start_replay(path, "--kafka", fresh_kafka.bootstrap, "--rate", "4")
    tenant = orjson.loads(path.read_bytes().splitlines()[0])["tenant"]
    forged = {
        "schema": "tidegate.decision.v1",
        "exchange_id": f"{tenant}-19",
        "tenant": tenant,
        "stage": "response",
        "path": "stream",
        "content_hash": "forged",
    }
    publisher = Publisher(fresh_kafka)
    await publisher.start()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)
        for decision in ("allow", "block"):
            await publisher.publish([Record(DECISIONS, b"x", orjson.dumps({**forged, "decision": decision}))])
    finally:
        await publisher.stop()
    code, report, _ = finish(process)
    assert code == 1
    assert report["doubled"] == 1
    assert report["run"] != first["run"]


def test_a_killed_worker_costs_no_decision(
    worker: Worker, fresh_kafka: KafkaSettings, fresh_redis: RedisSettings, tmp_path: Path
) -> None:
    path = write_events(tmp_path / "events.jsonl", 150)
    process = start_replay(path, "--kafka", fresh_kafka.bootstrap, "--rate", "50", "--timeout-s", "90")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(6)  # some are decided, some in flight, some not sent yet
    worker.stop(signal.SIGKILL)
    second = Worker(fresh_kafka, fresh_redis, tmp_path / "second.log")
    try:
        code, report, err = finish(process)
    finally:
        second.stop()
    assert code == 0, err
    assert (report["decisions"], report["missing"], report["doubled"]) == (300, 0, 0)


async def test_without_workers_decisions_are_missing(fresh_kafka: KafkaSettings, tmp_path: Path) -> None:
    await create_topics(fresh_kafka)
    path = write_events(tmp_path / "events.jsonl", 3)
    code, report, err = replay(path, "--kafka", fresh_kafka.bootstrap, "--timeout-s", "1")
    assert code == 1
    assert report["missing"] == 6
    assert "are workers running?" in err


def test_without_topics_it_says_which_command_makes_them(fresh_kafka: KafkaSettings, tmp_path: Path) -> None:
    path = write_events(tmp_path / "events.jsonl", 1)
    process = start_replay(path, "--kafka", fresh_kafka.bootstrap)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "tidegate topics create" in err


# ---------------------------------------------------------------- with a sidecar


@pytest.fixture
def up_port(tidegate_up: Up) -> str:
    return str(tidegate_up.info["port"])


def test_the_sidecar_names_the_broker_and_the_windows_count_everything(up_port: str, tmp_path: Path) -> None:
    path = write_events(tmp_path / "events.jsonl", 30)
    code, report, err = replay(path, "--port", up_port)
    assert code == 0, err
    assert (report["decisions"], report["missing"], report["windows_counted"]) == (60, 0, True)
    tenant = orjson.loads(path.read_bytes().splitlines()[0])["tenant"]
    shown = _json("windows", "--series", f"{tenant}/test", "--horizon", "1h", "--port", up_port)
    (series,) = shown["series"]
    assert (series["requests"], series["responses"]) == (30, 30)
    before = _json("windows", "--total", "--port", up_port)["total"]
    code, _, err = replay(path, "--port", up_port)  # the same exchanges again: known ones are not counted twice
    assert code == 0, err
    after = _json("windows", "--total", "--port", up_port)["total"]
    assert after["requests"] == before["requests"]
    assert after["deduplicated"] == before["deduplicated"] + 60


def test_a_policy_is_applied_and_shown_through_the_sidecar(up_port: str, tmp_path: Path) -> None:
    path = tmp_path / "mild.yaml"
    path.write_text("name: mild\nguards: {pii: {}}\nrules: [{name: r, guard: pii, action: flag}]\n")
    applied = _json("policy", "apply", str(path), "--comment", "a [bold] test", "--port", up_port)
    shown = {entry["name"]: entry for entry in _json("policy", "show", "--port", up_port)}
    assert shown["mild"]["in_force"] == applied["version"]
    assert shown["mild"]["versions"][0]["comment"] == "a [bold] test"
    assert "default" in shown


def _json(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
