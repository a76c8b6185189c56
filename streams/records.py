"""What Tidegate itself writes: decisions, dead letters, alerts, policies: positions, lengths, keyed hashes, no text."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from guards.text import texts_of
from guards.types import Coverage, Decision, Finding, Location, PolicyRef, Reason, Span, Stage, Timing
from streams.events import Event, Labels, RequestEvent, exchange_of, iso

__all__ = [
    "Alert",
    "Amendment",
    "DeadLetter",
    "DecisionRecord",
    "Evidence",
    "Hasher",
    "Judged",
    "Path",
    "PolicyPointer",
    "PolicyVersion",
    "TopicsLife",
    "amendment_of",
    "decision_record",
    "encode",
]

Path = Literal["inline", "stream"]

HASH_HEX_CHARS = 32
"""128 bits of the HMAC: no accidental collisions in any conceivable traffic, half the length on the wire."""


class Hasher:
    """Keyed hashes, with a key of its own per tenant derived from one master key.

    A plain hash of a card number can be reversed by trying all of them; this cannot without the master key.
    """

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) < 16:
            raise ValueError("the hash key must have at least 16 bytes")
        self._master_key = master_key
        self._keys: dict[str, bytes] = {}

    def hash(self, tenant: str, data: bytes) -> str:
        """32 hex digits of HMAC-SHA256 under the tenant's key."""
        key = self._keys.get(tenant)
        if key is None:
            key = hmac.digest(self._master_key, b"tenant:" + tenant.encode("utf-8", "surrogatepass"), "sha256")
            if len(self._keys) < 10_000:  # tenants are few; a flood of made-up names must not grow the memory
                self._keys[tenant] = key
        return hmac.digest(key, data, "sha256").hex()[:HASH_HEX_CHARS]

    def mask(self, tenant: str, text: str) -> str:
        """The digits that stand in redacted text: not those of the evidence, which a caller need not know."""
        return self.hash(tenant, b"mask:" + text.encode("utf-8", "surrogatepass"))

    @property
    def key_id(self) -> str:
        """Tells two keys apart without telling the key: processes of one deployment must agree on it."""
        return hashlib.sha256(b"tidegate-key-id:" + self._master_key).hexdigest()[:16]

    def content(self, event: Event) -> str:
        """The hash of what the guards look at: other content under an old id is a decision of its own."""
        parts: list[Any] = [event.messages]
        if isinstance(event, RequestEvent):
            parts.append(event.documents)
        elif event.reference is not None or event.logprobs is not None:
            parts += [event.reference, event.logprobs]
        return self.hash(event.tenant, _encoder.encode(parts))


_encoder = msgspec.json.Encoder()


def encode(record: msgspec.Struct) -> bytes:
    """A record → UTF-8 JSON."""
    return _encoder.encode(record)


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands at a finding's place, without telling it: a keyed hash and a length in characters."""

    guard: str
    kind: str
    hash: str
    length_chars: int


class Judged(msgspec.Struct, frozen=True, omit_defaults=True):
    """What decisions and their amendments have in common: the native answer without ``messages``, plus labels, path,
    time, content hash and all scores. ``run`` names a replay."""

    exchange_id: str
    conversation_id: str
    tenant: str
    stage: Stage
    path: Path
    content_hash: str
    time: str
    decision: str
    policy: PolicyRef
    labels: Labels = Labels()
    reasons: tuple[Reason, ...] = ()
    shadow: tuple[Reason, ...] = ()
    coverage: Coverage = Coverage()
    findings: tuple[Finding, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    timing: Timing = Timing()
    run: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return (self.tenant, self.exchange_id, self.stage, self.path, self.content_hash)


class DecisionRecord(Judged, frozen=True, omit_defaults=True, tag_field="schema", tag="tidegate.decision.v1"):
    """``tidegate.decision.v1``: one decision on one path, for (tenant, exchange_id, stage, path, content_hash).

    A record is the native answer without ``messages``, plus labels, path, time, content hash and all scores. ``time``
    is the event's, so that a decision that is made again is the same record, ``timing`` aside. ``run`` names a replay.
    """


class Amendment(Judged, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema", tag="tidegate.amendment.v1"):
    """``tidegate.amendment.v1``: what slow guards say of an exchange that was decided before: a revision, not a second
    decision.

    It amends the decision with the same tenant, exchange_id, stage, path and content_hash. ``decision`` is what the
    policy makes of the slow guards' findings and failures alone; what holds of both is the stricter. ``time`` is when
    it was made, ``event_time`` the exchange's. ``revision`` counts from 1; there is one for a decision.
    """

    event_time: str
    revision: int


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag="tidegate.dead_letter.v1"):
    """``tidegate.dead_letter.v1``: where a record lies that could not be processed, and why. No text of it."""

    code: str
    detail: str
    topic: str
    partition: int
    offset: int
    hash: str
    length_bytes: int
    time: str
    run: str = ""


class Alert(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag="tidegate.alert.v1"):
    """``tidegate.alert.v1``: a rule that fires or has resolved, under a stable key.

    ``starts_at`` is the event time at which the rule began to hold; firing and resolved notices of one episode share
    ``key`` and ``starts_at``. ``value`` is in the rule's unit. ``count`` counts what a grouped alert stands for.
    """

    key: str
    rule: str
    status: Literal["firing", "resolved"]
    severity: Literal["info", "warning", "critical"]
    labels: dict[str, str]
    summary: str
    value: float
    threshold: float
    starts_at: str
    time: str
    ends_at: str | None = None
    count: int | None = None
    run: str = ""


class PolicyVersion(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag="tidegate.policy.v1"):
    """``tidegate.policy.v1``: one version of a policy, under the key ``<name>@<version>``; never changed."""

    name: str
    version: str
    source: str
    time: str
    author: str = ""
    comment: str = ""


class PolicyPointer(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag="tidegate.policy_pointer.v1"
):
    """``tidegate.policy_pointer.v1``: which version is in force, under the key ``<name>``."""

    name: str
    version: str
    time: str
    author: str = ""


class TopicsLife(msgspec.Struct, frozen=True, tag_field="schema", tag="tidegate.topics_life.v1"):
    """``tidegate.topics_life.v1``: names this life of the topics, under the key ``life/<id>``; the first one counts."""

    id: str
    time: str


def decision_record(
    decision: Decision,
    event: Event,
    *,
    path: Path,
    labels: Labels,
    content_hash: str,
    time_ms: int,
    hasher: Hasher,
    request: RequestEvent | None = None,
    run: str = "",
) -> DecisionRecord:
    """Turn the engine's answer into what is published."""
    return DecisionRecord(
        exchange_id=event.exchange_id,
        conversation_id=event.conversation_id or event.exchange_id,
        tenant=event.tenant,
        stage=decision.stage,
        path=path,
        content_hash=content_hash,
        time=iso(time_ms),
        decision=decision.decision.value,
        policy=decision.policy,
        labels=labels,
        reasons=decision.reasons,
        shadow=decision.shadow,
        coverage=decision.coverage,
        findings=decision.findings,
        evidence=_evidence(decision, event, request, hasher),
        timing=decision.timing,
        run=run,
    )


def amendment_of(record: DecisionRecord, time_ms: int) -> Amendment:
    """The decision of the slow guards, made at ``time_ms``, as the amendment of the decision that the others made."""
    fields = {name: getattr(record, name) for name in Judged.__struct_fields__}
    return Amendment(**{**fields, "time": iso(time_ms)}, event_time=record.time, revision=1)


def _evidence(decision: Decision, event: Event, request: RequestEvent | None, hasher: Hasher) -> tuple[Evidence, ...]:
    spans: list[tuple[str, Span]] = [(reason.guard, span) for reason in decision.reasons for span in reason.spans]
    if not spans:
        return ()
    texts = {text.location: text.text for text in texts_of(exchange_of(event, request), decision.stage)}
    return tuple(
        Evidence(guard, span.kind, hasher.hash(event.tenant, _slice(texts, span)), span.end - span.start)
        for guard, span in _distinct(spans)
    )


def _slice(texts: dict[Location, str], span: Span) -> bytes:
    return texts[span.location][span.start : span.end].encode("utf-8", "surrogatepass")


def _distinct(spans: Sequence[tuple[str, Span]]) -> list[tuple[str, Span]]:
    return list(dict.fromkeys(spans))
