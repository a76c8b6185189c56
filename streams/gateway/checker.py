"""The one way to a decision for every gateway contract: `Checker.check` answers by its deadline, whatever hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping
from time import perf_counter, time
from typing import Any, Final

import msgspec
import orjson

from guards.engine import Engine, Item, Scan
from guards.policy import Policy
from guards.text import merge_redactions, redact, redact_documents
from guards.types import (
    Action,
    Coverage,
    Decision,
    Exchange,
    Failed,
    FailureCode,
    PolicyRef,
    Reason,
    Redaction,
    Stage,
    Timing,
)
from streams import metrics
from streams.events import Event, RequestEvent, exchange_of, stage_of, to_ms
from streams.gateway.exchanges import Exchanges
from streams.gateway.outbox import MAX_VALUE_BYTES, Judged, Outbox, Said
from streams.gateway.problems import Problem
from streams.gateway.replies import Replies
from streams.gateway.threads import GuardThreads
from streams.records import DecisionRecord
from streams.settings import SidecarSettings

__all__ = ["Answer", "Checker"]

JOIN_SHARE: Final = 0.2
"""The store may take this share of the deadline to find the request of a response; usually it takes a millisecond."""

JOIN_MAX_S: Final = 0.2


def margin_s(deadline_ms: float, inflight: int, size_bytes: int) -> float:
    """Seconds before the deadline at which an answer is put together, at most half of it.

    A tenth of the deadline, from 3 to 25 ms, because threads that compute hold the interpreter; 1 ms for each answer
    under way, because those that fall due together are put together one after the other; and 1 ms for each 8 KiB, for
    a megabyte of small messages is decided on in some 100 ms.
    """
    wanted_ms = min(25.0, max(3.0, deadline_ms / 10)) + inflight + size_bytes / 8_192
    return min(wanted_ms, deadline_ms / 2) / 1000


class Answer(msgspec.Struct, frozen=True):
    """The native answer. ``messages`` (and ``documents``, if one was touched) are there when it says `redact`."""

    decision: Action
    exchange_id: str
    stage: Stage
    policy: PolicyRef
    reasons: tuple[Reason, ...]
    coverage: Coverage
    shadow: tuple[Reason, ...]
    timing: Timing
    messages: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    documents: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


class Checker:
    """Decides on events: here (``engine``), or by asking the workers over the stream (``replies``).

    Exactly one of both is given; ``policy`` is needed where there is no engine. One per process, used from one event
    loop. What was judged goes to the ``outbox`` behind the answer.
    """

    def __init__(
        self,
        settings: SidecarSettings,
        *,
        exchanges: Exchanges,
        outbox: Outbox,
        engine: Engine | None = None,
        replies: Replies | None = None,
        policy: Policy | None = None,
        log: Any,
    ) -> None:
        if (engine is None) == (replies is None) or (engine is None and policy is None):
            raise ValueError("a checker needs an engine, or replies and a policy")
        self._settings = settings
        self._engine = engine
        self._replies = replies
        self._policy = policy
        self._exchanges = exchanges
        self._outbox = outbox
        self._log = log
        self._inflight = 0
        self.threads = GuardThreads(settings.threads if engine is not None else 0)

    # ------------------------------------------------------------ policy and admission

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        policy = self._engine.policy if self._engine is not None else self._policy
        assert policy is not None
        return policy

    def accept(self, policy: Policy) -> None:
        """Put a policy in force; checks that have begun keep theirs. May block while a new guard's model loads.

        Raises `ConfigError` or `ModelMissingError`; then the old one stays.
        """
        if self._engine is not None:
            self._engine.adopt(policy)
        else:
            self._policy = policy

    @property
    def inflight(self) -> int:
        return self._inflight

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place for one request, from before its body is read until it is answered; else `Problem` (503) at once."""
        if self._inflight >= self._settings.max_inflight:
            raise Problem("overloaded", f"{self._inflight} are under way", headers={"Retry-After": "1"})
        self._inflight += 1
        metrics.INFLIGHT.set(self._inflight)
        try:
            yield
        finally:
            self._inflight -= 1
            metrics.INFLIGHT.set(self._inflight)

    # ------------------------------------------------------------ the check

    async def check(
        self, event: Event, raw: Mapping[str, Any], *, deadline_ms: float, began_s: float | None = None
    ) -> Answer:
        """Decide on one event and publish what was decided.

        ``raw`` is the event as a JSON object (unknown fields kept): it is what is published and redacted.
        ``deadline_ms`` counts from ``began_s`` (`time.perf_counter` seconds; default: now). A guard without a verdict
        by then has failed with ``timeout``, and the policy's ``on_failure`` says what that means. Never raises for
        what the event holds, for a guard, the store or the broker.
        """
        began_s = perf_counter() if began_s is None else began_s
        value = orjson.dumps(raw)
        ends_s = began_s + deadline_ms / 1000 - margin_s(deadline_ms, self._inflight, len(value))
        request: RequestEvent | None = None
        if isinstance(event, RequestEvent):
            self._exchanges.remember(event, value)
        if self._replies is not None:
            request = self._exchanges.recent(event)
            decision = await self._ask(self._replies, event, request, value, ends_s)
        else:
            if not isinstance(event, RequestEvent):
                request = await self._exchanges.request_of(event, min(JOIN_MAX_S, JOIN_SHARE * deadline_ms / 1000))
                if request is None:
                    metrics.REQUESTS_MISSING.inc()
            decision = await self._judge(exchange_of(event, request), stage_of(event), ends_s)
            self._outbox.offer(Said(event, value))
        total_ms = round((perf_counter() - began_s) * 1000, 3)
        decision = msgspec.structs.replace(decision, timing=Timing(total_ms, decision.timing.guards))
        time_ms = to_ms(event.time) if event.time is not None else round(time() * 1000)
        joined = None if isinstance(event, RequestEvent) else request
        self._outbox.offer(Judged(decision, event, joined, time_ms, len(value)))
        self._count(decision)
        return _answer(decision, event, raw)

    def _count(self, decision: Decision) -> None:
        metrics.DECISIONS.labels("inline", decision.stage, decision.decision.value).inc()
        metrics.CHECK_SECONDS.labels("inline", decision.stage).observe(decision.timing.total_ms / 1000)
        for failed in decision.coverage.failed:
            metrics.GUARD_FAILURES.labels(failed.guard, failed.code.value).inc()

    # ------------------------------------------------------------ here

    async def _judge(self, exchange: Exchange, stage: Stage, ends_s: float) -> Decision:
        engine = self._engine
        assert engine is not None
        inline_only = self._settings.mode == "hybrid"
        scans: list[Scan] = []

        def run() -> Decision:
            scan = engine.scan([Item(exchange, stage)], inline_only=inline_only, deadline=ends_s)
            scans.append(scan)
            scan.run()
            return scan.decisions()[0]

        future = self.threads.submit(run, ends_s)
        await asyncio.wait([future], timeout=max(0.0, ends_s - perf_counter()))
        try:
            if future.done():
                whole: Decision = future.result()
                return whole
            self.threads.give_up(future)
            if scans:
                scans[0].cancel()
                (decision,) = await asyncio.to_thread(scans[0].decisions)
                return decision
        except Exception as error:  # planning failed: no guard has looked, and the policy says what that means
            self._log.error("the engine failed", error=type(error).__name__)
            return self._unlooked(exchange, stage, FailureCode.ERROR)
        return self._unlooked(exchange, stage, FailureCode.TIMEOUT)

    def _unlooked(self, exchange: Exchange, stage: Stage, code: FailureCode) -> Decision:
        """The decision when no guard has looked: each that should have has failed with ``code``."""
        policy = self.policy
        resolved = policy.resolve(exchange.tenant, exchange.route)
        failed: list[Failed] = []
        skipped: list[str] = []
        pending: list[str] = []
        for name, settings in resolved.guards.items():
            stages: Collection[Stage]
            if settings.stages is not None:
                stages = settings.stages
            else:  # without an engine it is not known at which stages a guard can look: assume that it can
                stages = self._engine.guards[name].stages if self._engine is not None else (stage,)
            if stage in stages and name in policy.slow_guards:
                pending.append(name)
            elif stage in stages and (settings.inline or self._settings.mode != "hybrid"):
                failed.append(Failed(name, code))
            else:
                skipped.append(name)
        verdict = resolved.decide((), failed, stage)
        return Decision(
            decision=verdict.decision,
            stage=stage,
            policy=policy.ref,
            reasons=verdict.reasons,
            shadow=verdict.shadow,
            coverage=Coverage((), tuple(skipped), tuple(failed), tuple(pending)),
        )

    # ------------------------------------------------------------ over the stream

    async def _ask(
        self, replies: Replies, event: Event, request: RequestEvent | None, value: bytes, ends_s: float
    ) -> Decision:
        joined = None if isinstance(event, RequestEvent) else request
        exchange, stage = exchange_of(event, joined), stage_of(event)
        with replies.question() as question:
            if not self._outbox.offer(Said(event, value, question.headers)):
                too_large = len(value) > MAX_VALUE_BYTES
                code = FailureCode.INPUT_TOO_LARGE if too_large else FailureCode.TIMEOUT
                return self._unlooked(exchange, stage, code)
            reply = await replies.wait(question, ends_s)
        if reply is None:
            return self._unlooked(exchange, stage, FailureCode.TIMEOUT)
        try:
            record = _record.decode(reply)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            self._log.error("a reply cannot be read", error=type(error).__name__, length_bytes=len(reply))
            return self._unlooked(exchange, stage, FailureCode.ERROR)
        if (record.tenant, record.exchange_id, record.stage) != (event.tenant, event.exchange_id, stage):
            self._log.error("a reply is for another exchange")
            return self._unlooked(exchange, stage, FailureCode.ERROR)
        return Decision(
            decision=Action(record.decision),
            stage=stage,
            policy=record.policy,
            reasons=record.reasons,
            shadow=record.shadow,
            redactions=_redactions(record),
            coverage=record.coverage,
            findings=record.findings,
            timing=record.timing,
        )


_record = msgspec.json.Decoder(DecisionRecord)


def _redactions(record: DecisionRecord) -> tuple[Redaction, ...]:
    """What a record's reasons say is to be redacted, by the policy's own rule (`Policy.decide`)."""
    if record.decision != Action.REDACT:
        return ()
    return merge_redactions(
        Redaction(span.location, span.start, span.end, f"<{span.kind}>")
        for reason in record.reasons
        if reason.action is Action.REDACT
        for span in reason.spans
    )


def _answer(decision: Decision, event: Event, raw: Mapping[str, Any]) -> Answer:
    messages: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    documents: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    if decision.decision is Action.REDACT:
        messages = redact(raw["messages"], decision.redactions)
        if any(item.location.document is not None for item in decision.redactions):
            documents = redact_documents(raw["documents"], decision.redactions)
    return Answer(
        decision=decision.decision,
        exchange_id=event.exchange_id,
        stage=decision.stage,
        policy=decision.policy,
        reasons=decision.reasons,
        coverage=decision.coverage,
        shadow=decision.shadow,
        timing=decision.timing,
        messages=messages,
        documents=documents,
    )
