"""`tidegate up`: the embedded broker and store, the workers, the sidecar and demo traffic, as one supervised whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec
import psutil
from pydantic import SecretStr

from guards.models import ModelState, ModelStore
from guards.policy import Policy
from streams.dev.broker import START_TIMEOUT_S, EmbeddedBroker
from streams.dev.panel import Display, display_for
from streams.dev.ports import free_port, free_ports, is_free, require_free
from streams.dev.process import Service, StartError, run_folder
from streams.dev.store import EmbeddedStore
from streams.dev.summary import TrafficWatch
from streams.dev.supervisor import Supervisor
from streams.kafka import create_topics
from streams.settings import Settings, load_settings, state_folder
from streams.store import Store

__all__ = ["Plan", "UpOptions", "make_ready", "run_up"]

BROKER_PORT: Final = 9092
STORE_PORT: Final = 6379
"""Where Tidegate's other commands, and most Kafka and Redis tools, look without being told."""

READY_TIMEOUT_S: Final = 180.0
"""Seconds are normal; a machine that is busy with something else may take a minute."""

READY_POLL_S: Final = 0.1
REFRESH_S: Final = 1.0
"""The panel's numbers are asked for this often: a fresh look for a few milliseconds of work."""

EMBEDDED_GROUPS: Final = {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 1_500}
"""Tansu lets a consumer group wait half the session time-out for more members: 3 s at each start instead of 5."""

CHECKS, SLOW, MONITOR = "worker checks", "worker slow", "worker monitor"
SIDECAR, DEMO = "sidecar", "demo"
STOP_ORDER: Final = ((DEMO,), (SIDECAR,), (CHECKS, SLOW, MONITOR), ("store",), ("broker",))
GRACE_S: Final = {DEMO: 0.5, SIDECAR: 2.5, CHECKS: 4.5, SLOW: 4.5, MONITOR: 4.5}
"""With the store's and the broker's second each, the worst case of a stop is 9.5 s."""


class UpOptions(msgspec.Struct, frozen=True):
    """The command's options; ``None``: not given."""

    port: int | None = None
    demo: bool = True
    policy: Path | None = None
    profile: str | None = None
    kafka: str | None = None
    redis: str | None = None
    broker_port: int = 0
    store_port: int = 0
    json: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What will run, with all addresses fixed. ``status_ports``: by worker, of those that run: the slow one only where
    the policy that is started with names a slow guard."""

    settings: Settings
    demo: bool
    broker: EmbeddedBroker | None
    store: EmbeddedStore | None
    logs: Path
    status_ports: dict[str, int]
    display: Display
    profile: str | None


def make_ready(options: UpOptions) -> Plan:
    """Everything that can be wrong before a process is started: settings, policy, ports, models. Blocks.

    Fetches the models when the store lacks them (the only use of the network). Raises `ConfigError`, `PortInUseError`,
    `ModelPullError`.
    """
    policy = None if options.policy is None else options.policy.resolve()
    settings = load_settings(
        options.profile,
        policy_file=policy,
        sidecar={"port": options.port},
        kafka={"bootstrap": options.kafka},
        redis={"url": options.redis},
    )
    first = Policy.default() if settings.policy_file is None else Policy.load(settings.policy_file)
    workers = (CHECKS, SLOW, MONITOR) if first.slow_guards else (CHECKS, MONITOR)
    host = settings.sidecar.host
    port = settings.sidecar.port or free_port()
    require_free(port, "sidecar", "--port", host)
    _pull_missing_models(settings.model_store())
    logs = run_folder(state_folder(), port)
    broker = store = None
    kafka, redis = settings.kafka, settings.redis
    if options.kafka is None:
        broker = EmbeddedBroker(options.broker_port or _preferred(BROKER_PORT), log=logs / "broker.log")
        kafka = kafka.model_copy(update={"bootstrap": broker.bootstrap})
    if options.redis is None:
        store = EmbeddedStore(options.store_port or _preferred(STORE_PORT), log=logs / "store.log")
        redis = redis.model_copy(update={"url": SecretStr(store.url)})
    settings.master_key()  # made now, not by several processes at once
    return Plan(
        settings=settings.model_copy(
            update={"kafka": kafka, "redis": redis, "sidecar": settings.sidecar.model_copy(update={"port": port})}
        ),
        demo=options.demo,
        broker=broker,
        store=store,
        logs=logs,
        status_ports=dict(zip(workers, free_ports(len(workers)), strict=True)),
        display=display_for(as_json=options.json),
        profile=options.profile,
    )


def _preferred(port: int) -> int:
    return port if is_free(port) else free_port()


def _pull_missing_models(store: ModelStore) -> None:
    if all(model.state is ModelState.READY for model in store.list()):
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    if not console.is_terminal:
        console.print("fetching the models (once)")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("models", total=1.0)
        store.pull(lambda step, fraction: progress.update(task, description=f"models: {step}", completed=fraction))


async def run_up(plan: Plan) -> int:
    """Start everything, keep it running until SIGINT, SIGTERM or SIGHUP, stop it in order. Returns the exit code, 0.

    Raises `StartError`, `GaveUpError` or `ConfigError` after everything was stopped, when a process cannot be kept up.
    """
    return await _Up(plan).run()


class _Up:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._display = plan.display
        self._supervisor = Supervisor(plan.display.say)
        self._stop = asyncio.Event()
        settings = plan.settings
        self._url = f"http://{settings.sidecar.host}:{settings.sidecar.port}"
        self._status_urls = {name: f"http://127.0.0.1:{port}" for name, port in plan.status_ports.items()}
        self._kept = (*plan.status_ports, SIDECAR)
        self._services = {name: self._service(name) for name in (*self._kept, DEMO)}
        self._watch = TrafficWatch(
            settings.kafka, self._url, [f"{url}/metrics" for url in (self._url, *self._status_urls.values())]
        )

    # ------------------------------------------------------------ life

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        work = [asyncio.create_task(self._work(), name="up"), asyncio.create_task(self._stop.wait(), name="stop")]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            if work[0].done():
                work[0].result()  # it ends only by raising
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            self._display.close()
            self._display.say("stopping")
            self._stop.set()  # from now on a signal kills
            await self._supervisor.stop(STOP_ORDER)
            (self._plan.logs / "up.json").unlink(missing_ok=True)
        self._display.say("stopped")
        return 0

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._supervisor.kill()
        self._stop.set()

    async def _work(self) -> None:
        self._display.step("starting broker and store")
        await self._start_embedded()
        for name in self._kept:
            self._supervisor.keep(self._services[name])
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._supervisor.watch())
                tasks.create_task(self._show())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _start_embedded(self) -> None:
        embedded = [each for each in (self._plan.broker, self._plan.store) if each is not None]
        for each in embedded:
            hook = self._after_broker if isinstance(each, EmbeddedBroker) else None
            self._supervisor.keep(each.service, restarted=hook)
        for each in embedded:
            each.service.wait_until_answers(START_TIMEOUT_S)
        await create_topics(self._plan.settings.kafka)
        if self._plan.store is None:
            store = Store(self._plan.settings.redis)
            await store.connect()
            await store.close()

    async def _after_broker(self) -> None:
        """The broker came back empty: what the others remember of its topics no longer holds, so all begin anew."""
        assert self._plan.broker is not None
        self._plan.broker.service.wait_until_answers(START_TIMEOUT_S)
        await create_topics(self._plan.settings.kafka)
        self._watch.forget_alerts()
        self._supervisor.restart(["store", *self._kept, DEMO])
        self._display.say("the broker's topics are empty again; everything was started anew")

    async def _show(self) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await self._wait_until_ready(client)
            if self._plan.demo:
                self._supervisor.keep(self._services[DEMO])
            info = self._info()
            (self._plan.logs / "up.json").write_text(json.dumps(info))
            self._display.ready(info)
            alerts = asyncio.create_task(self._watch.follow_alerts(), name="alerts")
            try:
                while True:
                    self._display.update(await self._watch.refresh(client))
                    await asyncio.sleep(REFRESH_S)
            finally:
                alerts.cancel()
                await asyncio.gather(alerts, return_exceptions=True)

    async def _wait_until_ready(self, client: httpx.AsyncClient) -> None:
        waiting = {SIDECAR: self._url, **self._status_urls}
        end_s = time.monotonic() + READY_TIMEOUT_S
        while waiting:
            self._display.step(f"waiting for {', '.join(waiting)}")
            for name, url in list(waiting.items()):
                with contextlib.suppress(httpx.HTTPError):  # not listening yet
                    if (await client.get(f"{url}/ready", timeout=2)).status_code == 200:
                        del waiting[name]
            if time.monotonic() > end_s:
                slow = self._services[next(iter(waiting))]
                raise StartError(f"{slow.name} is not ready after {READY_TIMEOUT_S:g} s{slow.tail()}")
            await asyncio.sleep(READY_POLL_S)

    # ------------------------------------------------------------ what runs

    def _service(self, name: str) -> Service:
        module = ["streams.dev.demo"] if name == DEMO else ["streams.cli", *name.split()]
        return Service(
            name,
            [sys.executable, "-P", "-m", *module],
            log=self._plan.logs / f"{name.replace(' ', '-')}.log",
            env=self._environment(name),
            grace_s=GRACE_S[name],
        )

    def _environment(self, name: str) -> dict[str, str]:
        """Ours, and over it what this run decided. The children run in the same folder, so relative paths hold."""
        settings = self._plan.settings
        root = str(Path(__file__).resolve().parents[2])
        env = {
            **os.environ,
            "TIDEGATE_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
            "TIDEGATE_REDIS__URL": settings.redis.url.get_secret_value(),
            "TIDEGATE_SIDECAR__PORT": str(settings.sidecar.port),
            # The same code as this process, whatever folder it was called from and however it was installed.
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        }
        if self._plan.broker is not None and not settings.kafka.model_fields_set & {*EMBEDDED_GROUPS}:
            env |= {f"TIDEGATE_KAFKA__{key.upper()}": str(value) for key, value in EMBEDDED_GROUPS.items()}
        if self._plan.profile is not None:
            env["TIDEGATE_PROFILE"] = self._plan.profile
        if settings.policy_file is not None:
            env["TIDEGATE_POLICY_FILE"] = str(settings.policy_file)
        if name in self._plan.status_ports:
            env["TIDEGATE_STATUS_PORT"] = str(self._plan.status_ports[name])
        return env

    def _info(self) -> dict[str, Any]:
        """What ``--json`` prints and ``up.json`` beside the logs holds while it runs. No credentials."""
        plan, settings = self._plan, self._plan.settings
        services = [each.service for each in (plan.broker, plan.store) if each is not None]
        services += [self._services[name] for name in (*self._kept, DEMO)]
        redis = urlsplit(settings.redis.url.get_secret_value())
        processes: dict[str, dict[str, Any]] = {}
        for service in services:
            if service.pid is not None:
                processes[service.name] = {"pid": service.pid, "log": str(service.log)}
        for name, url in self._status_urls.items():
            processes[name] |= {"port": plan.status_ports[name], "metrics": f"{url}/metrics", "ready": f"{url}/ready"}
        return {
            "ready": True,
            "ready_s": round(time.time() - psutil.Process().create_time(), 3),
            "pid": os.getpid(),
            "url": self._url,
            "port": settings.sidecar.port,
            "profile": settings.profile,
            "kafka": {"bootstrap": settings.kafka.bootstrap, "embedded": plan.broker is not None},
            "redis": {
                "url": f"redis://{redis.hostname}:{redis.port or STORE_PORT}{redis.path}",
                "embedded": plan.store is not None,
            },
            "logs": str(plan.logs),
            "processes": processes,
        }
