"""The embedded broker and store: start, serve, forget, stop; a port in use; a parent that is killed; no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from streams.dev.broker import EmbeddedBroker
from streams.dev.ports import PortInUseError
from streams.dev.process import StartError
from streams.dev.store import EmbeddedStore
from streams.kafka import Publisher, Record, create_topics, make_consumer
from streams.settings import KafkaSettings, RedisSettings
from streams.store import Store
from streams.topics import REQUESTS, TOPICS
from tests.conftest import ROOT

pytestmark = pytest.mark.integration


def gone(pid: int, within_s: float = 5) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


async def test_a_record_goes_through_the_broker(tmp_path: Path):
    with EmbeddedBroker(log=tmp_path / "broker.log") as broker:
        settings = KafkaSettings(bootstrap=broker.bootstrap)
        assert set((await create_topics(settings)).values()) == {"created"}
        assert set((await create_topics(settings)).values()) == {"exists"}
        publisher = Publisher(settings)
        await publisher.start()
        (sent,) = await publisher.publish([Record(REQUESTS, b"c-1", b"{}", (("h", b"1"),))])
        await publisher.stop()
        consumer = make_consumer(settings, REQUESTS)
        await consumer.start()
        received = await consumer.getone()
        await consumer.stop()
        assert (received.value, received.partition, received.offset) == (b"{}", sent.partition, sent.offset)
        assert received.headers == (("h", b"1"),)


async def test_the_broker_forgets_at_its_stop_and_can_start_again(tmp_path: Path):
    broker = EmbeddedBroker(log=tmp_path / "broker.log")
    settings = KafkaSettings(bootstrap=broker.bootstrap)
    for _ in range(2):
        broker.start()
        assert set((await create_topics(settings)).values()) == {"created"}
        pid = broker.service.pid
        assert pid is not None
        broker.stop()
        assert gone(pid)
    broker.stop()  # once more does no harm


async def test_the_broker_stops_at_once_though_clients_are_connected(tmp_path: Path):
    with EmbeddedBroker(log=tmp_path / "broker.log") as broker:
        socket.create_connection(("127.0.0.1", broker.port)).close()
        with socket.create_connection(("127.0.0.1", broker.port)):
            begun_s = time.monotonic()
            broker.stop()
            assert time.monotonic() - begun_s < 2


async def test_a_value_goes_through_the_store(tmp_path: Path):
    with EmbeddedStore(log=tmp_path / "store.log") as embedded:
        store = Store(RedisSettings(url=embedded.url))  # type: ignore[arg-type]
        await store.connect()
        await store.redis.set("k", "v", px=60_000)
        assert await store.redis.get("k") == b"v"
        await store.close()
        pid = embedded.service.pid
    assert pid is not None
    assert gone(pid)
    assert not list(tmp_path.glob("*.rdb"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [(EmbeddedBroker, "wanted for the broker"), (EmbeddedStore, "wanted for the store")],
)
def test_a_port_in_use_names_its_holder_and_the_option(kind: type[EmbeddedBroker | EmbeddedStore], message: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=message) as raised:
            kind(port)
        assert f"port {port}" in str(raised.value)
        assert f"(pid {os.getpid()})" in str(raised.value)
        assert "-port PORT" in str(raised.value)


def test_a_port_taken_after_the_check_is_told_with_the_log(tmp_path: Path):
    store = EmbeddedStore(log=tmp_path / "store.log")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", store.port))
        with pytest.raises(StartError, match=r"(?s)store .*its log: "):
            store.start()


def test_broker_and_store_end_with_a_parent_that_is_killed(tmp_path: Path):
    code = (
        "import pathlib, sys, time\n"
        "from streams.dev.broker import EmbeddedBroker\n"
        "from streams.dev.store import EmbeddedStore\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "both = EmbeddedBroker(log=folder / 'b.log'), EmbeddedStore(log=folder / 's.log')\n"
        "for each in both: each.start()\n"
        "print(*(each.service.pid for each in both), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    assert all(gone(pid) for pid in children)


async def test_the_sessions_broker_serves_the_topics(topics: KafkaSettings):
    assert set((await create_topics(topics)).values()) == {"exists"}
    assert len(TOPICS) == 8


# Libraries that look whether torch is there, and do without it.
PROBING = ("presidio_analyzer", "thinc", "spacy")
SHIM = """\
import pathlib, sys
frame = sys._getframe(1)
while frame.f_globals["__name__"].startswith("importlib."):
    frame = frame.f_back
with (pathlib.Path(__file__).parent / "asked").open("a") as file:
    print(frame.f_globals["__name__"], __name__, file=file)
raise ImportError(f"no {__name__} in the embedded profile")
"""


def test_the_embedded_profile_does_without_torch(tmp_path: Path, model_store: object):
    """Everything is imported and the engine runs; imports of torch and its like fail and are noted by importer."""
    for name in ("torch", "transformers", "sentence_transformers", "detoxify"):
        (tmp_path / f"{name}.py").write_text(SHIM)
    code = (
        "import importlib, pkgutil, sys\n"
        "import guards, streams\n"
        "for package in (guards, streams):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "from guards.engine import Engine, Item\n"
        "from guards.policy import Policy\n"
        "from guards.types import Document, Exchange, Message\n"
        "from streams.settings import load_settings\n"
        "engine = Engine(Policy.default(), options=load_settings('embedded').guards)\n"
        "asked = [Message('user', 'Where does jane.doe@example.com live?')]\n"
        "said = [Message('assistant', 'In Berlin, you fool.')]\n"
        "exchange = Exchange(asked, said, [Document('Jane Doe lives in Berlin.')])\n"
        "items = [Item(exchange, 'request'), Item(exchange, 'response')]\n"
        "for decision in engine.check_batch(items):\n"
        "    assert not decision.coverage.failed, decision.coverage\n"
        "    assert decision.coverage.scanned\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert [line for line in asked if not line.startswith(PROBING)] == []
