"""What Tidegate writes: keyed hashes, and no text."""

from __future__ import annotations

import pytest

from guards.types import Action, Decision, Message, PolicyRef, Reason, Span
from streams.events import Labels, RequestEvent, ResponseEvent
from streams.records import Hasher, decision_record, encode
from streams.store import key

HASHER = Hasher(b"0123456789abcdef")


def test_hashes_differ_by_tenant_and_by_key() -> None:
    other = Hasher(b"fedcba9876543210")
    assert HASHER.hash("a", b"4111") == HASHER.hash("a", b"4111")
    assert len({HASHER.hash("a", b"4111"), HASHER.hash("b", b"4111"), other.hash("a", b"4111")}) == 3
    assert HASHER.key_id != other.key_id


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Hasher(b"short")


def test_other_content_is_another_decision() -> None:
    one = RequestEvent(exchange_id="x", messages=[Message("user", "a")])
    two = RequestEvent(exchange_id="x", messages=[Message("user", "b")])
    again = RequestEvent(exchange_id="x", messages=[Message("user", "a")], time=None, user="somebody")
    assert HASHER.content(one) != HASHER.content(two)
    assert HASHER.content(one) == HASHER.content(again)


def test_another_reference_or_sureness_is_another_decision() -> None:
    made = [
        ResponseEvent(exchange_id="x", messages=[Message("assistant", "a")], reference=reference, logprobs=logprobs)
        for reference in (None, "b")
        for logprobs in (None, {"content": [{"logprob": -0.5}]})
    ]
    assert len({HASHER.content(event) for event in made}) == 4


def test_a_record_holds_hash_and_length_of_what_was_found_and_no_text() -> None:
    event = ResponseEvent(exchange_id="x", messages=[Message("assistant", "card 4111 1111 1111 1111")])
    span = Span(start=5, end=24, kind="CREDIT_CARD", message=0)
    reason = Reason("pii", "CREDIT_CARD", "r", 1.0, 0.5, Action.REDACT, (span,))
    record = decision_record(
        Decision(Action.REDACT, "response", PolicyRef("p", "1"), (reason,)),
        event,
        path="stream",
        labels=Labels(),
        content_hash="h",
        time_ms=0,
        hasher=HASHER,
    )
    (evidence,) = record.evidence
    assert evidence.length_chars == 19
    assert evidence.hash == HASHER.hash("default", b"4111 1111 1111 1111")
    assert b"4111" not in encode(record).replace(evidence.hash.encode(), b"")


def test_parts_of_keys_cannot_forge_other_keys() -> None:
    assert key("request", "a:b", "c") != key("request", "a", "b:c")
    assert key("x", "%3A") != key("x", ":")
