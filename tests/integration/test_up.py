"""`tidegate up` as a process: ready, serving, restarting, ending. Slow: each start loads the models."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from guards.models import ModelStore
from tests.conftest import ROOT, Up

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

STOP_S = 10.0
"""What `tidegate up` promises for Ctrl-C."""


def family(up: Up) -> list[psutil.Process]:
    return [psutil.Process(up.process.pid), *psutil.Process(up.process.pid).children(recursive=True)]


def left_over(processes: list[psutil.Process], within_s: float) -> list[str]:
    _, alive = psutil.wait_procs([each for each in processes if each.is_running()], within_s)
    return [" ".join(each.cmdline()) for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return reply.status, reply.read().decode()


def ask(url: str, text: str) -> dict[str, Any]:
    body = {"stage": "request", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(f"{url}/v1/guard", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer


def until(what: str, timeout_s: float, check: Any) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if check():
                return
        time.sleep(0.1)
    pytest.fail(f"not within {timeout_s:g} s: {what}")


@pytest.fixture
def started(model_store: ModelStore, tmp_path: Path) -> Iterator[Any]:
    """Starts `tidegate up`s that end with the test."""
    ups: list[Up] = []

    def start(*options: str, **arguments: Any) -> Up:
        folder = tmp_path / f"state-{len(ups)}"
        folder.mkdir()
        ups.append(Up(folder, *options, **arguments))
        return ups[-1]

    yield start
    for up in ups:
        up.stop()


def test_it_serves_what_it_says(tidegate_up: Up):
    info = tidegate_up.info
    assert info["ready"] is True
    assert info["kafka"]["embedded"] is True
    assert info["redis"]["embedded"] is True
    assert set(info["processes"]) == {"broker", "store", "worker checks", "worker monitor", "sidecar"}
    assert get(f"{info['url']}/ready")[0] == 200
    for name in ("worker checks", "worker monitor"):
        assert get(info["processes"][name]["ready"])[0] == 200
        assert "# HELP" in get(info["processes"][name]["metrics"])[1]
    assert ask(info["url"], "My card is 4111 1111 1111 1111")["decision"] == "redact"
    assert json.loads((Path(info["logs"]) / "up.json").read_text()) == info


def test_every_process_has_its_exact_title(tidegate_up: Up):
    titles = sorted(" ".join(each.cmdline()).strip() for each in family(tidegate_up))
    for wanted in ("tidegate up", "tidegate worker checks", "tidegate worker monitor", "tidegate sidecar"):
        assert titles.count(wanted) == 1
        assert sum(wanted in title for title in titles) == 1


def test_a_killed_process_comes_back(tidegate_up: Up):
    monitor = tidegate_up.info["processes"]["worker monitor"]
    os.kill(monitor["pid"], signal.SIGKILL)
    until("said", 5, lambda: "worker monitor was ended by SIGKILL; starting it again" in tidegate_up.stderr)
    until("the monitor is ready again", 60, lambda: get(monitor["ready"])[0] == 200)


def test_a_port_in_use_names_the_option(tidegate_up: Up, tmp_path: Path):
    port = str(tidegate_up.info["port"])
    run = subprocess.run(
        [sys.executable, "-m", "streams.cli", "up", "--no-demo", "--port", port],
        cwd=ROOT,
        env={**os.environ, "TIDEGATE_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 3
    assert f"port {port} on 127.0.0.1" in run.stderr
    assert "--port PORT" in run.stderr
    assert "Traceback" not in run.stderr
    assert get(f"{tidegate_up.info['url']}/ready")[0] == 200


def test_a_second_one_runs_beside_the_first_and_ctrl_c_leaves_nothing(tidegate_up: Up, started: Any):
    second = started()
    info = second.wait_until_ready()
    for name in ("kafka", "redis", "url", "logs"):
        assert info[name] != tidegate_up.info[name]
    decided = f"http://127.0.0.1:{info['processes']['worker checks']['port']}/metrics"
    until("the demo's exchanges are decided", 60, lambda: "tidegate_decisions_total{" in get(decided)[1])
    processes = family(second)
    assert len(processes) == 7  # up, broker, store, two workers, sidecar, demo
    begun_s = time.monotonic()
    assert second.stop(signal.SIGINT) == 0
    assert time.monotonic() - begun_s < STOP_S
    assert left_over(processes, 0) == []
    assert not (Path(info["logs"]) / "up.json").exists()
    assert get(f"{tidegate_up.info['url']}/ready")[0] == 200


def test_a_kill_leaves_no_process(started: Any):
    up = started()
    up.wait_until_ready()
    processes = family(up)
    assert len(processes) == 7
    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    assert left_over(processes, 5) == []


def test_ctrl_c_during_the_start_leaves_no_process(started: Any):
    up = started()
    until("its processes are there", 30, lambda: len(family(up)) >= 6)
    time.sleep(1)
    processes = family(up)
    assert up.stop(signal.SIGINT) == 0
    assert left_over(processes, 0) == []


def test_a_broker_that_dies_comes_back_with_its_topics(started: Any):
    up = started("--no-demo")
    info = up.wait_until_ready()
    os.kill(info["processes"]["broker"]["pid"], signal.SIGKILL)
    until("said", 20, lambda: "topics are empty again" in up.stderr)
    until("the sidecar is ready again", 90, lambda: get(f"{info['url']}/ready")[0] == 200)
    assert ask(info["url"], "hello")["decision"] == "allow"


def test_a_bad_policy_ends_it_before_anything_starts(started: Any, tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: mine\nguards: {toxicty: {}}\n")
    up = started("--policy", str(policy))
    assert up.process.wait(90) == 2
    assert "toxic" in up.stderr
    assert "Traceback" not in up.stderr


def test_a_broker_that_does_not_answer_is_said(started: Any):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        up = started("--kafka", address)
        assert up.process.wait(60) == 3
    assert address in up.stderr
    assert "--kafka" in up.stderr
    assert "Traceback" not in up.stderr
