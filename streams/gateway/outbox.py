"""What the sidecar judged goes to the topics in the background: it never delays an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiokafka.errors import KafkaError

from guards.types import Decision
from streams import metrics
from streams.events import Event, Labels, RequestEvent, conversation_of, labels_of, stage_of
from streams.gateway.drain import Drain
from streams.gateway.exchanges import Exchanges
from streams.kafka import Headers, PublishError, Record, SupportsPublish
from streams.records import DecisionRecord, Hasher, decision_record
from streams.topics import DECISIONS, REQUESTS, RESPONSES

__all__ = ["MAX_VALUE_BYTES", "Judged", "Outbox", "Said"]

MAX_VALUE_BYTES: Final = 1_048_576
"""Larger events are not published: readers of the topics refuse them (`streams.events.MAX_EVENT_BYTES`)."""

QUEUE_BYTES_MAX: Final = 67_108_864
"""Bytes of events that wait, 64 MiB: with the decoded events about three times that in memory."""

_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses after a failed attempt; the last one repeats while the queue holds."""


class Judged(msgspec.Struct, frozen=True):
    """A decision that was answered. ``time_ms``: the event's time; ``size_bytes``: the event's size."""

    decision: Decision
    event: Event
    request: RequestEvent | None
    time_ms: int
    size_bytes: int


class Said(msgspec.Struct, frozen=True):
    """An event to publish, as JSON, with what the asker wants to tell the workers."""

    event: Event
    value: bytes
    headers: Headers = ()


class Outbox:
    """A bounded queue before the broker. Full: dropped and counted (``tidegate_publish_dropped_total``). The broker
    does not acknowledge: tried again, for as long as the process lives; what it refuses for good is dropped and
    counted, alone. A crash loses what waits."""

    def __init__(
        self, publisher: SupportsPublish, exchanges: Exchanges, hasher: Hasher, *, queue_max: int, log: Any
    ) -> None:
        self._publisher = publisher
        self._exchanges = exchanges
        self._hasher = hasher
        self._log = log
        self._failing = False
        self._drain: Drain[Judged | Said] = Drain(
            self._deliver, items_max=queue_max, bytes_max=QUEUE_BYTES_MAX, on_error=self._lost
        )
        metrics.PUBLISH_QUEUE.set_function(lambda: len(self._drain))

    def start(self) -> None:
        self._drain.start()

    async def stop(self, timeout_s: float) -> int:
        """Flush within ``timeout_s``. Returns how many were left; they are counted as dropped."""
        left = await self._drain.stop(timeout_s)
        if left:
            metrics.PUBLISH_DROPPED.labels("shutdown").inc(left)
        return left

    def offer(self, item: Judged | Said) -> bool:
        """Queue an event or a decision; returns at once. ``False``: dropped and counted."""
        size_bytes = len(item.value) if isinstance(item, Said) else item.size_bytes
        if isinstance(item, Said) and size_bytes > MAX_VALUE_BYTES:
            metrics.PUBLISH_DROPPED.labels("too_large").inc()
            return False
        if not self._drain.offer(item, size_bytes):
            metrics.PUBLISH_DROPPED.labels("queue_full").inc()
            return False
        return True

    def _lost(self, error: Exception, count: int) -> None:
        metrics.PUBLISH_DROPPED.labels("error").inc(count)
        self._log.error("not published", error=type(error).__name__, records=count)

    async def _deliver(self, batch: list[Judged | Said]) -> None:
        records = [_said(item) for item in batch if isinstance(item, Said)]
        judged = [item for item in batch if isinstance(item, Judged)]
        if judged:
            decisions = await asyncio.to_thread(self._records, judged)
            standing = await self._exchanges.first_decisions(decisions)
            records += [
                Record(DECISIONS, decision.conversation_id.encode(), value)
                for decision, value in zip(decisions, standing, strict=True)
            ]
        await self._publish(records)

    def _records(self, judged: Sequence[Judged]) -> list[DecisionRecord]:
        records = []
        for item in judged:
            try:
                records.append(self._record(item))
            except Exception as error:  # one that cannot be written must not take its neighbours with it
                self._lost(error, 1)
        return records

    def _record(self, item: Judged) -> DecisionRecord:
        request = None if item.request is None else labels_of(item.request)
        labels: Labels = labels_of(item.event, request)
        return decision_record(
            item.decision,
            item.event,
            path="inline",
            labels=labels,
            content_hash=self._hasher.content(item.event),
            time_ms=item.time_ms,
            hasher=self._hasher,
            request=item.request,
        )

    async def _publish(self, records: Sequence[Record]) -> None:
        attempt = 0
        while True:
            try:
                await self._publisher.publish(records)
            except PublishError as error:
                metrics.PUBLISH_FAILED.inc()
                if _is_final(error):
                    if len(records) == 1:
                        metrics.PUBLISH_DROPPED.labels("refused").inc()
                        self._log.error("the broker refuses a record", error=type(error.__cause__).__name__)
                    else:
                        for record in records:
                            await self._publish([record])
                    return
                if not self._failing:
                    self._failing = True
                    self._log.warning("publishing fails; it is tried again", waiting=len(self._drain))
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                attempt += 1
            else:
                if self._failing:
                    self._failing = False
                    self._log.info("publishing works again", waiting=len(self._drain))
                return


def _is_final(error: PublishError) -> bool:
    cause = error.__cause__
    return isinstance(cause, KafkaError) and not cause.retriable


def _said(item: Said) -> Record:
    topic = REQUESTS if stage_of(item.event) == "request" else RESPONSES
    return Record(topic, conversation_of(item.event).encode(), item.value, item.headers)
