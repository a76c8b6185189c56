"""Backoff, the supervisor with small real processes, and the panel's arithmetic."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from guards.errors import ConfigError
from streams.dev.demo import load_exchanges, records_of
from streams.dev.panel import summary_of
from streams.dev.process import Service, StartError
from streams.dev.summary import Accumulator, Summary, quantile, read_samples, summarise
from streams.dev.supervisor import Backoff, GaveUpError, Supervisor
from streams.events import RequestEvent, ResponseEvent, decode

SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def python(name: str, code: str, folder: Path, **options: object) -> Service:
    return Service(name, [sys.executable, "-c", code], log=folder / f"{name}.log", **options)  # type: ignore[arg-type]


async def until(said: list[str], words: str, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not any(words in line for line in said):
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------- backoff


def test_waits_double_up_to_the_longest_and_then_end():
    backoff = Backoff(failures_max=8)
    waits = []
    for moment in range(8):
        backoff.started(moment)
        waits.append(backoff.ended(moment + 0.5))
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, None]


def test_a_healthy_run_wipes_out_the_failures():
    backoff = Backoff(healthy_s=30)
    for moment in range(5):
        backoff.started(moment)
        backoff.ended(moment + 1)
    backoff.started(10)
    assert backoff.ended(40) == 0.2
    assert backoff.failures == 1


# ---------------------------------------------------------------- processes


def test_a_program_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(StartError, match="ghost cannot be run"):
        Service("ghost", [str(tmp_path / "nothing")], log=tmp_path / "log").spawn()


def test_a_process_that_ends_at_start_shows_the_end_of_its_log(tmp_path: Path):
    service = python("short", "import sys; print('no such thing'); sys.exit(3)", tmp_path, answers=lambda: False)
    service.spawn()
    with pytest.raises(StartError, match=r"exit code 3\n  \| no such thing\n  its log: "):
        service.wait_until_answers(10)


def test_a_process_that_does_not_stop_is_killed(tmp_path: Path):
    service = python("deaf", DEAF, tmp_path, grace_s=0.2, answers=lambda: "deaf" in (tmp_path / "deaf.log").read_text())
    service.spawn()
    service.wait_until_answers(10)
    assert not service.stop()
    assert service.exit_code == -signal.SIGKILL


# ---------------------------------------------------------------- supervisor


async def test_what_ends_is_started_again_and_said(tmp_path: Path):
    said: list[str] = []
    again = asyncio.Event()

    async def restarted() -> None:
        again.set()

    supervisor = Supervisor(said.append)
    service = python("one", SLEEP, tmp_path)
    supervisor.keep(service, restarted=restarted)
    watching = asyncio.create_task(supervisor.watch())
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await asyncio.wait_for(again.wait(), 10)
    assert service.running
    assert service.pid != first
    assert supervisor.restarts == 1
    assert "one was ended by SIGKILL; starting it again in 0.2 s" in said[0]
    watching.cancel()
    await supervisor.stop([["one"]])
    assert service.exit_code == -signal.SIGTERM


async def test_it_gives_up_with_the_end_of_the_log(tmp_path: Path):
    supervisor = Supervisor(lambda _: None)
    service = python("bad", "import sys; print('what is wrong'); sys.exit(1)", tmp_path)
    supervisor.keep(service, backoff=Backoff(first_s=0.01, longest_s=0.01, failures_max=3))
    with pytest.raises(GaveUpError, match=r"(?s)bad ended 3 times in a row.*what is wrong.*bad\.log"):
        await asyncio.wait_for(supervisor.watch(), 10)


async def test_a_bad_configuration_is_not_tried_again(tmp_path: Path):
    supervisor = Supervisor(lambda _: None)
    supervisor.keep(python("bad", "import sys; print('guards.toxicty'); sys.exit(2)", tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)exit code 2.*guards\.toxicty"):
        await asyncio.wait_for(supervisor.watch(), 10)
    assert supervisor.restarts == 0


async def test_groups_stop_in_order_and_the_deaf_are_killed(tmp_path: Path):
    said: list[str] = []
    supervisor = Supervisor(said.append)
    first = python("first", SLEEP, tmp_path)
    deaf = python("deaf", DEAF, tmp_path, grace_s=0.3)
    supervisor.keep(first)
    supervisor.keep(deaf)
    async with asyncio.timeout(10):
        while "deaf" not in deaf.log.read_text():
            await asyncio.sleep(0.02)
    await supervisor.stop([["first"], ["deaf"]])
    assert first.exit_code == -signal.SIGTERM
    assert deaf.exit_code == -signal.SIGKILL
    assert said == ["deaf did not stop within 0.3 s and was killed"]


# ---------------------------------------------------------------- numbers


def test_quantiles_are_linear_within_a_bucket():
    buckets = [(0.1, 50.0), (0.2, 100.0), (float("inf"), 100.0)]
    assert quantile(0.5, buckets) == pytest.approx(0.1)
    assert quantile(0.75, buckets) == pytest.approx(0.15)
    assert quantile(0.95, [(0.1, 0.0), (float("inf"), 4.0)]) == pytest.approx(0.1)
    assert quantile(0.5, []) is None
    assert quantile(0.5, [(0.1, 0.0), (float("inf"), 0.0)]) is None


def test_counters_outlive_a_restart_of_their_process():
    name = ("decision", "stream", "allow")
    totals = Accumulator()
    for value in (3.0, 10.0, 2.0, 5.0):  # began again between 10 and 2
        totals.add("checks", {name: value})
    assert totals.totals[name] == 15


def test_what_is_shown_comes_from_the_exposition():
    exposition = """\
# TYPE tidegate_decisions_total counter
tidegate_decisions_total{path="stream",stage="request",decision="allow"} 3.0
tidegate_decisions_total{path="stream",stage="response",decision="allow"} 4.0
tidegate_decisions_total{path="stream",stage="request",decision="block"} 1.0
# TYPE tidegate_check_duration_seconds histogram
tidegate_check_duration_seconds_bucket{path="stream",stage="request",le="0.1"} 8.0
tidegate_check_duration_seconds_bucket{path="stream",stage="request",le="+Inf"} 8.0
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.0
"""
    summary = summarise(read_samples(exposition), {"requests": 4, "responses": 4, "errors": 1}, {})
    assert summary.decisions == {"stream": {"allow": 7, "block": 1}}
    assert summary.check_ms["stream"] == (pytest.approx(50), pytest.approx(95))
    assert dict(summary_of(summary)) == {
        "exchanges": "4 requests, 4 responses, 1 of them errors",
        "stream": "allow 7  flag 0  redact 0  block 1  (p50 50 ms, p95 95 ms)",
        "alerts": "none firing",
    }
    assert dict(summary_of(Summary(firing={"slow": 2, "errors": 1})))["alerts"] == "firing: errors, slow ×2"


# ---------------------------------------------------------------- demo traffic


def test_every_demo_exchange_is_a_request_and_its_response():
    exchanges = load_exchanges()
    assert len(exchanges) >= 100
    assert len({exchange.request["tenant"] for exchange in exchanges}) == 3
    for number, exchange in enumerate(exchanges):
        request, response = records_of(exchange, round_id="r", exchange_id=f"x{number}", asked_ms=1.7e12)
        asked, answered = decode(request.value), decode(response.value)
        assert isinstance(asked, RequestEvent)
        assert isinstance(answered, ResponseEvent)
        assert asked.exchange_id == answered.exchange_id == f"x{number}"
        assert request.key == response.key == asked.conversation_id.encode()
        assert asked.time is not None
        assert answered.time is not None
        assert asked.time < answered.time
