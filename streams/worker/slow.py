"""The slow worker: guards that ask a service look at exchanges behind the checks, and amend the decisions.

A consumer group of its own: however slow a service is, no decision waits for it. Each exchange goes its own way, some
at once; events are acknowledged in offset order all the same. The first amendment for a decision stands in Redis, and a
redelivery publishes that one again without asking anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import Any, Final

from guards.engine import Engine, Item, Scan
from guards.errors import GuardsError
from guards.outside import Budget
from guards.policy import Policy
from streams import metrics
from streams.events import Bad, BadCode, exchange_of, stage_of
from streams.kafka import Record
from streams.policies import PolicyFeed
from streams.records import Amendment, Hasher, amendment_of
from streams.settings import Settings
from streams.topics import DECISIONS
from streams.worker.app import guarded, make_app, run_worker
from streams.worker.host import Host, hosted
from streams.worker.intake import Intake, Job, Taken, listen, record_of
from streams.worker.status import Check
from streams.worker.transport import HttpOutside

__all__ = ["GROUP", "Slow", "run_slow"]

GROUP: Final = "tidegate-slow"

POLL_INTERVAL_MAX_S: Final = 86_400.0
"""While services are slow nothing is polled, and that is no sign of death: a worker that died misses its heartbeats."""

GRACE_S: Final = 2.0
"""At a graceful end, services may still answer for so long; who has not by then is asked again by the next worker."""

MINUTE_S: Final = 60
DAY_S: Final = 86_400


class Slow:
    """What happens to jobs: slow guards look at them, and what they say is published."""

    def __init__(self, host: Host, engine: Engine, outside: HttpOutside, hasher: Hasher) -> None:
        self._settings = host.settings.slow
        self._engine = engine
        self._outside = outside
        self._store = host.store
        self._hasher = hasher
        self._lifecycle = host.lifecycle
        self._log = host.log
        self.intake = Intake(host, hasher, GROUP, self.judge, wants=self._wants)
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        self._threads = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="tidegate-slow")
        self._tasks: set[asyncio.Task[None]] = set()

    def _wants(self, taken: Taken) -> bool:
        reason = None
        if not self._engine.policy.slow_guards:
            reason = "no_slow_guards"
        elif taken.run and not self._settings.replays:
            reason = "replay"
        elif time() - taken.time_ms / 1000 > self._settings.max_age_s:
            reason = "too_old"
        if reason is not None:
            metrics.SLOW_PASSED_OVER.labels(reason=reason).inc()
        return reason is None

    async def judge(self, jobs: Sequence[Job]) -> None:
        """Begin with each job; blocks while all places are taken."""
        for job in jobs:
            await self._slots.acquire()
            # The process ends, or the partition was revoked while the job waited: its next owner asks.
            if self._lifecycle.stopping or not self.intake.acks.holds(job.taken.entry):
                self._slots.release()
                continue
            task = asyncio.create_task(guarded(self._amend(job), self._lifecycle), name="amend")
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        metrics.SLOW_INFLIGHT.set(len(self._tasks))

    async def _amend(self, job: Job) -> None:
        metrics.SLOW_INFLIGHT.set(len(self._tasks))
        try:
            scan = self._engine.scan([Item(exchange_of(job.event, job.request), stage_of(job.event))])
            if not scan.nothing_to_do:
                standing = await self._standing(job) or await self._made(job, scan)
                if standing is None:
                    return  # the process ends; the event comes again
                conversation = job.event.conversation_id or job.event.exchange_id
                await self.intake.publish([Record(DECISIONS, conversation.encode(), standing, job.taken.run_header)])
        except Exception as error:  # whatever it is, one event must not hold up its partition
            self._log.error("an event failed", error=type(error).__name__)
            await self.intake.bury([(job.taken, Bad(BadCode.UNPROCESSABLE, type(error).__name__))])
        self.intake.finish([job.taken])

    async def _standing(self, job: Job) -> bytes | None:
        event = job.event
        content_hash = self._hasher.content(event)
        found: bytes | None = await self.intake.persistence.until_done(
            "amendments",
            lambda: self._store.get_amendment(event.tenant, event.exchange_id, stage_of(event), content_hash),
        )
        return found

    async def _made(self, job: Job, scan: Scan) -> bytes | None:
        """The amendment that stands now; ``None``: the guards were interrupted."""
        amendment = await asyncio.get_running_loop().run_in_executor(self._threads, self._look, job, scan)
        if self._outside.closed:
            return None
        metrics.AMENDMENTS.labels(stage=amendment.stage, decision=amendment.decision).inc()
        metrics.CHECK_SECONDS.labels(path="slow", stage=amendment.stage).observe(amendment.timing.total_ms / 1000)
        for failed in amendment.coverage.failed:
            metrics.GUARD_FAILURES.labels(guard=failed.guard, code=failed.code).inc()
        standing: bytes = await self.intake.persistence.until_done(
            "amendments", lambda: self._store.put_amendment(amendment, self._settings.amendment_ttl_s)
        )
        return standing

    def _look(self, job: Job, scan: Scan) -> Amendment:
        """Runs in a thread, for as long as the services take."""
        scan.run()
        (decision,) = scan.decisions()
        return amendment_of(record_of(job, decision, self._hasher), round(time() * 1000))

    async def stop(self) -> None:
        """Let services answer for `GRACE_S`, then let nobody wait for them any longer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_S)
        await self._outside.close()


async def run_slow(settings: Settings) -> int:
    """The process `tidegate worker slow`: runs until it is told to stop. Returns the exit code.

    Without slow guards in the policy in force it passes all events over, until a policy with some comes into force.
    Raises `GuardsError` (with the fix) when it cannot start.
    """
    hasher = Hasher(settings.master_key())
    state: dict[str, Any] = {"engine": None, "assigned": False, "slow": None}
    ready: dict[str, Check] = {
        "policy": lambda: None if state["engine"] is not None else "no policy yet",
        "assigned": lambda: None if state["assigned"] else "no partitions assigned yet",
        "broker_and_store": lambda: state["slow"].intake.trouble if state["slow"] else None,
    }
    async with hosted("slow", settings, ready=ready) as host:
        budgets = host.persistence()

        async def spend(guard: str, budget: Budget) -> bool:
            limits = {MINUTE_S: budget.per_minute, DAY_S: budget.per_day}
            given = {length_s: limit for length_s, limit in limits.items() if limit is not None}
            left: bool = await budgets.until_done("budgets", lambda: host.store.spend(guard, given, time()))
            return left

        outside = HttpOutside(spend, host.log)
        host.at_end(outside.close)

        def on_error(guard: str, error: BaseException) -> None:
            metrics.GUARD_ERRORS.labels(guard=guard).inc()
            why = str(error) if isinstance(error, GuardsError) else ""  # other texts may quote what was checked
            host.log.error("a guard raised", guard=guard, error=type(error).__name__, why=why)

        def accept(policy: Policy) -> None:
            if state["engine"] is None:
                state["engine"] = Engine(
                    policy,
                    models=settings.model_store(),
                    options=settings.guards,
                    on_error=on_error,
                    outside=outside,
                )
            else:
                state["engine"].adopt(policy)
            if not policy.slow_guards:
                host.log.info("the policy has no slow guards; events are passed over", policy=policy.name)

        await host.store.agree_on_key(hasher.key_id)
        feed = PolicyFeed(settings, accept, host.log)
        host.at_end(feed.stop)
        await feed.start()
        slow = Slow(host, state["engine"], outside, hasher)
        state["slow"] = slow
        app = make_app(GROUP, settings, max_poll_interval_s=POLL_INTERVAL_MAX_S)
        await listen(slow.intake, app, host, lambda: state.update(assigned=True))
        host.spawn(feed.watch(), "policy-feed")

        async def stop() -> None:
            await feed.stop()
            await slow.stop()

        return await run_worker(app, host.lifecycle, stop=stop)
