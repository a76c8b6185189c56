"""The checks worker: requests and responses → engine → decisions, at least once, in order, nothing doubled.

For a batch, decoded and joined by `streams.worker.intake`: check; let the first decision for a key stand in Redis;
publish it and answer who asked; only then acknowledge, in offset order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Final

from guards.engine import Engine, Item
from guards.policy import Policy
from streams import metrics
from streams.events import Bad, BadCode, exchange_of, stage_of
from streams.kafka import REPLY_CHANNEL_HEADER, REPLY_KEY_HEADER, Record, header
from streams.policies import PolicyFeed
from streams.records import DecisionRecord, Hasher
from streams.settings import Settings
from streams.store import key
from streams.topics import DECISIONS
from streams.worker.app import make_app, run_worker
from streams.worker.host import Host, hosted
from streams.worker.intake import Intake, Job, listen, record_of
from streams.worker.status import Check

__all__ = ["GROUP", "Checks", "run_checks"]

GROUP: Final = "tidegate-checks"

REPLY_PREFIX = key("reply") + ":"
"""Only such keys are written on an asker's behalf: a header must not overwrite anything else."""


class Checks:
    """What happens to jobs: they are decided, and the decisions published."""

    def __init__(self, host: Host, engine: Engine, hasher: Hasher) -> None:
        self._settings = host.settings.checks
        self._engine = engine
        self._store = host.store
        self._hasher = hasher
        self._log = host.log
        self.intake = Intake(host, hasher, GROUP, self.judge)
        self._persistence = self.intake.persistence
        # Two: while one batch waits for the encoder, another (the other topic's) can use the interpreter.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tidegate-engine")

    async def judge(self, jobs: Sequence[Job]) -> None:
        """Decide, publish, acknowledge. Never raises."""
        await self._decide(jobs)
        self.intake.finish([job.taken for job in jobs])

    async def _decide(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        began = monotonic()
        policy = self._engine.policy  # one version for the whole batch
        loop = asyncio.get_running_loop()
        try:
            records = await loop.run_in_executor(self._threads, self._check, jobs, policy)
        except Exception as error:  # whatever it is, one event must not hold up its partition
            self._log.error("a batch failed", events=len(jobs), error=type(error).__name__)
            if len(jobs) == 1:
                why = Bad(BadCode.UNPROCESSABLE, type(error).__name__)
                await self.intake.bury([(jobs[0].taken, why)])
                return
            for job in jobs:
                await self._decide([job])
            return
        seconds = (monotonic() - began) / len(jobs)
        for record in records:
            metrics.DECISIONS.labels(path="stream", stage=record.stage, decision=record.decision).inc()
            metrics.CHECK_SECONDS.labels(path="stream", stage=record.stage).observe(seconds)
            for failed in record.coverage.failed:
                metrics.GUARD_FAILURES.labels(guard=failed.guard, code=failed.code).inc()
        standing: list[bytes] = await self._persistence.until_done(
            "decisions", lambda: self._store.put_decisions(records, self._settings.decision_ttl_s)
        )
        await self._answer(jobs, standing)
        await self.intake.publish(
            [
                Record(DECISIONS, record.conversation_id.encode(), value, job.taken.run_header)
                for job, record, value in zip(jobs, records, standing, strict=True)
            ]
        )

    def _check(self, jobs: Sequence[Job], policy: Policy) -> list[DecisionRecord]:
        """Runs in a thread."""
        items = [Item(exchange_of(job.event, job.request), stage_of(job.event)) for job in jobs]
        decisions = self._engine.check_batch(items, policy=policy)
        return [record_of(job, decision, self._hasher) for job, decision in zip(jobs, decisions, strict=True)]

    async def _answer(self, jobs: Sequence[Job], standing: Sequence[bytes]) -> None:
        replies = []
        for job, value in zip(jobs, standing, strict=True):
            reply_key = header(job.taken.headers, REPLY_KEY_HEADER)
            channel = header(job.taken.headers, REPLY_CHANNEL_HEADER)
            if reply_key.startswith(REPLY_PREFIX) and channel.startswith(REPLY_PREFIX):
                replies.append((reply_key, channel, value))
        if replies:
            await self._persistence.until_done(
                "reply", lambda: self._store.reply(replies, self._settings.decision_ttl_s)
            )


async def run_checks(settings: Settings) -> int:
    """The process `tidegate worker checks`: runs until it is told to stop. Returns the exit code.

    Raises `GuardsError` (with the fix) when it cannot start.
    """
    hasher = Hasher(settings.master_key())
    state: dict[str, Any] = {"engine": None, "assigned": False, "checks": None}
    ready: dict[str, Check] = {
        "models": lambda: None if state["engine"] is not None else "models are loading",
        "assigned": lambda: None if state["assigned"] else "no partitions assigned yet",
        "broker_and_store": lambda: state["checks"].intake.trouble if state["checks"] else None,
    }
    async with hosted("checks", settings, ready=ready) as host:

        def on_error(guard: str, error: BaseException) -> None:
            metrics.GUARD_ERRORS.labels(guard=guard).inc()
            host.log.error("a guard raised", guard=guard, error=type(error).__name__)

        def accept(policy: Policy) -> None:
            if state["engine"] is not None:
                state["engine"].adopt(policy)
                return
            engine = Engine(
                policy,
                models=settings.model_store(),
                options=settings.guards,
                on_error=on_error,
                hasher=hasher.mask,
            )
            engine.warm()
            metrics.SCREENS.add(engine)
            state["engine"] = engine

        await host.store.agree_on_key(hasher.key_id)
        feed = PolicyFeed(settings, accept, host.log)
        host.at_end(feed.stop)
        await feed.start()
        checks = Checks(host, state["engine"], hasher)
        state["checks"] = checks
        app = make_app(GROUP, settings)
        await listen(checks.intake, app, host, lambda: state.update(assigned=True))
        host.spawn(feed.watch(), "policy-feed")
        return await run_worker(app, host.lifecycle, stop=feed.stop)
