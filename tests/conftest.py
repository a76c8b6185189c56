"""Fixtures that all tests share: a broker, a store, the models, and a whole `tidegate up`.

The broker is the one that TIDEGATE_TEST_BOOTSTRAP names, else Apache Kafka from KAFKA_HOME, else the embedded one. It
serves a whole session (with pytest-xdist: one per worker process), so tests keep apart by tenants and ids of their own,
or take ``fresh_kafka`` and ``fresh_redis``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from guards.models import ModelState, ModelStore
from streams.dev.broker import EmbeddedBroker
from streams.dev.ports import free_port
from streams.dev.store import EmbeddedStore
from streams.kafka import create_topics
from streams.settings import KafkaSettings, RedisSettings
from tests.brokers import ApacheKafka

ROOT = Path(__file__).resolve().parent.parent
BOOTSTRAP = "TIDEGATE_TEST_BOOTSTRAP"
KEPT = {BOOTSTRAP, "TIDEGATE_MODELS"}


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the caller's environment reaches a test, and no test touches the user's state folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TIDEGATE_") and name not in KEPT]:
            patch.delenv(name)
        patch.setenv("TIDEGATE_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def model_store() -> ModelStore:
    store = ModelStore()
    missing = [model.name for model in store.list() if model.state is not ModelState.READY]
    if missing:
        pytest.fail(f"models are not in {store.root}: {', '.join(missing)}; run `make install`", pytrace=False)
    return store


# ---------------------------------------------------------------- broker and store


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[KafkaSettings]:
    home = os.environ.get("KAFKA_HOME")
    broker = ApacheKafka(Path(home), folder) if home else EmbeddedBroker(log=folder / "broker.log")
    try:
        broker.start()
        if home:
            yield KafkaSettings(bootstrap=broker.bootstrap, fetch_max_wait_ms=500, idempotence=True)
        else:
            yield KafkaSettings(bootstrap=broker.bootstrap)
    finally:
        broker.stop()


@contextlib.contextmanager
def _store(folder: Path) -> Iterator[RedisSettings]:
    with EmbeddedStore(log=folder / "store.log") as store:
        yield RedisSettings(url=SecretStr(store.url))


@pytest.fixture(scope="session")
def kafka_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """The session's broker; topics are made by ``topics``."""
    if bootstrap := os.environ.get(BOOTSTRAP):
        yield KafkaSettings(bootstrap=bootstrap)
        return
    with _broker(tmp_path_factory.mktemp("broker")) as settings:
        yield settings


@pytest.fixture
def fresh_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """A broker of the test's own, without topics: KAFKA_HOME's or an embedded one."""
    with _broker(tmp_path_factory.mktemp("broker")) as settings:
        yield settings


@pytest.fixture
async def topics(kafka_settings: KafkaSettings) -> KafkaSettings:
    """The session's broker with Tidegate's topics."""
    await create_topics(kafka_settings)
    return kafka_settings


@pytest.fixture(scope="session")
def redis_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """The session's store."""
    with _store(tmp_path_factory.mktemp("store")) as settings:
        yield settings


@pytest.fixture
def fresh_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """A store of the test's own, empty."""
    with _store(tmp_path_factory.mktemp("store")) as settings:
        yield settings


# ---------------------------------------------------------------- the whole


class Up:
    """A `tidegate up` in a process of its own; ``info`` is what ``--json`` printed. ``folder`` is its state folder."""

    def __init__(self, folder: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._stderr = folder / "up.stderr"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams.cli", "up", "--json", "--port", str(free_port()), *options],
                cwd=ROOT,
                env={**os.environ, "TIDEGATE_STATE": str(folder), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self.info: dict[str, Any] = {}

    def wait_until_ready(self) -> dict[str, Any]:
        """Blocks until the JSON line comes; fails with what `up` said on standard error when it ends without."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(20)
            pytest.fail(f"tidegate up ended with {self.process.returncode}:\n{self.stderr}", pytrace=False)
        self.info = json.loads(line)
        return self.info

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 15) -> int:
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()


@pytest.fixture(scope="module")
def tidegate_up(model_store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A whole `tidegate up --no-demo` on free ports, ready; one per test module."""
    up = Up(tmp_path_factory.mktemp("up"), "--no-demo")
    try:
        up.wait_until_ready()
        yield up
    finally:
        up.stop()
