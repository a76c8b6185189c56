"""A record of a source topic → what it says (`Fact`) → what it adds to the windows (`Addition`)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from guards.types import Action
from streams.events import Bad, BadCode, Labels, RequestEvent, ResponseEvent, decode, labels_of, to_ms
from streams.monitor.prices import Prices
from streams.monitor.windows import OVERFLOW, Addition, Series
from streams.records import Amendment, DecisionRecord, Judged
from streams.topics import DECISIONS, REQUESTS, RESPONSES

__all__ = ["SOURCES", "Fact", "addition_of", "dead", "duplicate", "read", "series_of"]

SOURCES: Final = (REQUESTS, RESPONSES, DECISIONS)
"""The topics that are counted."""

FUTURE_MAX_MS: Final = 86_400_000
"""An event that says it is more than a day later than its record is taken at the record's time: its clock is wrong."""

Kind = Literal["request", "response", "decision", "amendment"]


class Fact(msgspec.Struct, frozen=True):
    """A record that was read. ``claim``: what makes it count only once, whatever the topic repeats.

    ``once``: counter → a claim of its own, so that what both paths see of an exchange is one block, one finding.
    """

    kind: Kind
    event: RequestEvent | ResponseEvent | Judged
    time_ms: int
    claim: tuple[str, ...]
    run: str = ""
    once: dict[str, tuple[str, ...]] = {}

    @property
    def request_claim(self) -> tuple[str, ...] | None:
        """The claim of the request whose labels are needed, for a response that leaves some out."""
        event = self.event
        if not isinstance(event, ResponseEvent):
            return None
        if None in (event.route, event.model, event.provider, event.prompt):
            return ("request", event.tenant, event.exchange_id)
        return None

    def labels(self, request: Labels | None = None) -> Labels:
        """The labels, without the user; what a response leaves out comes from ``request``."""
        event = self.event
        labels = event.labels if isinstance(event, Judged) else labels_of(event, request)
        return msgspec.structs.replace(labels, tenant=event.tenant, user="")


_decisions = msgspec.json.Decoder(DecisionRecord | Amendment)


def read(topic: str, raw: bytes | None, timestamp_ms: int, run: str = "") -> Fact | Bad:
    """A record's bytes → what it says, or why it says nothing. Pure, never raises.

    ``timestamp_ms``: the Kafka record's; it is the event's time where the event has none, or an absurd one.
    """
    if topic == DECISIONS:
        return _read_decision(raw, timestamp_ms, run)
    event = decode(raw)
    if isinstance(event, Bad):
        return event
    kind: Kind = "request" if isinstance(event, RequestEvent) else "response"
    if topic != (REQUESTS if kind == "request" else RESPONSES):
        return Bad(BadCode.WRONG_TOPIC, f"not for {topic}")
    time_ms = timestamp_ms if event.time is None else _sane(to_ms(event.time), timestamp_ms)
    return Fact(kind, event, time_ms, (kind, event.tenant, event.exchange_id), run)


def _read_decision(raw: bytes | None, timestamp_ms: int, run: str) -> Fact | Bad:
    if not raw:
        return Bad(BadCode.EMPTY)
    try:
        record = _decisions.decode(raw)
        time_ms = _sane(to_ms(datetime.fromisoformat(record.time)), timestamp_ms)
        Action(record.decision)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError) as error:
        return Bad(BadCode.BAD_VALUE, type(error).__name__)
    seen: dict[str, None] = {}
    for reason in record.reasons:
        if reason.action is Action.BLOCK:
            seen[f"block:{record.stage}:{reason.rule}"] = None
        if not reason.kind.startswith("failure:"):
            seen[f"finding:{reason.guard}:{reason.kind}"] = None
    once: dict[str, tuple[str, ...]] = {
        name: ("once", record.tenant, record.exchange_id, record.stage, name) for name in seen
    }
    kind: Kind = "amendment" if isinstance(record, Amendment) else "decision"
    return Fact(kind, record, time_ms, (kind, *record.key), record.run or run, once)


def _sane(time_ms: int, timestamp_ms: int) -> int:
    return timestamp_ms if time_ms < 0 or time_ms > timestamp_ms + FUTURE_MAX_MS else time_ms


def series_of(labels: Labels, run: str, admit: Callable[[Series], bool]) -> Series:
    """The series of an event; beyond the cap the overflow series of its run."""
    series = Series(labels.tenant, labels.route, labels.model, labels.prompt_name, labels.prompt_version, run)
    return series if admit(series) else Series(OVERFLOW, OVERFLOW, OVERFLOW, run=run)


def dead() -> Addition:
    """A record that could not be read."""
    return Addition(totals={"dead": 1})


def duplicate(fact: Fact) -> Addition:
    """A record that was counted at another offset. Repeated records of ours are expected, and silent."""
    return Addition() if isinstance(fact.event, Judged) else Addition(totals={"deduplicated": 1})


def addition_of(fact: Fact, labels: Labels, series: Series, prices: Prices, own: Collection[str] = ()) -> Addition:
    """What a record that counts adds. ``own``: the counters of ``fact.once`` that this record is the first to tell.

    Findings are those above their rule's threshold: below it, a finding is only a score. An amendment is no decision:
    it adds the blocks and findings that its decision has not told.
    """
    event = fact.event
    if isinstance(event, Amendment):
        return Addition(series, fact.time_ms, counters=dict.fromkeys(own, 1))
    if isinstance(event, Judged):
        counters = {f"decision:{event.path}:{event.stage}:{event.decision}": 1, **dict.fromkeys(own, 1)}
        return Addition(series, fact.time_ms, counters=counters)
    if isinstance(event, RequestEvent):
        return Addition(series, fact.time_ms, {"requests": 1}, {"requests": 1}, timed=True)
    totals = {"responses": 1}
    if event.error is not None:
        totals["errors"] = 1
    if event.usage is not None:
        totals["input_tokens"] = event.usage.input_tokens
        totals["output_tokens"] = event.usage.output_tokens
    counters = totals | _cost(event, labels, prices, fact.time_ms)
    return Addition(series, fact.time_ms, totals, counters, _samples(event), timed=True)


def _cost(event: ResponseEvent, labels: Labels, prices: Prices, time_ms: int) -> dict[str, int]:
    usage = event.usage
    if usage is None:
        # An error that came without usage cost nothing that anybody was told of; an answer without it has a cost.
        return {} if event.error is not None else {"unpriced": 1}
    for model in (event.response_model, labels.model):
        cost = prices.cost_nano_usd(labels.provider, model, usage, time_ms) if model else None
        if cost is not None:
            return {"cost_nano_usd": cost}
    return {"unpriced": 1}


def _samples(event: ResponseEvent) -> dict[str, float]:
    timing: Any = event.timing
    if timing is None:
        return {}
    samples = {"duration_ms": timing.duration_ms, "time_to_first_token_ms": timing.time_to_first_token_ms}
    return {name: value for name, value in samples.items() if value is not None}
