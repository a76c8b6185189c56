"""The codec: an event or a `Bad`, never an exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events import (
    MAX_EVENT_BYTES,
    Bad,
    BadCode,
    Labels,
    RequestEvent,
    ResponseEvent,
    decode,
    exchange_of,
    iso,
    labels_of,
    to_ms,
)

REQUEST = {"schema": "tidegate.request.v1", "exchange_id": "x-1", "messages": [{"role": "user", "content": "hello"}]}
RESPONSE = {
    "schema": "tidegate.response.v1",
    "exchange_id": "x-1",
    "messages": [{"role": "assistant", "content": "hi"}],
}


def raw(base: dict[str, object], **changes: object) -> bytes:
    return json.dumps({**base, **changes}).encode()


def test_only_three_fields_are_required() -> None:
    event = decode(raw(REQUEST))
    assert isinstance(event, RequestEvent)
    assert (event.tenant, event.route, event.documents, event.time) == ("default", "", [], None)


def test_unknown_fields_are_ignored() -> None:
    assert isinstance(decode(raw(RESPONSE, novelty={"a": [1]})), ResponseEvent)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, BadCode.EMPTY),
        (b"", BadCode.EMPTY),
        (b"{", BadCode.NOT_JSON),
        (b'{"a": NaN}', BadCode.NOT_JSON),
        (b"\xff\xfe", BadCode.NOT_UTF8),
        (b"[]", BadCode.BAD_VALUE),
        (b"{}", BadCode.MISSING_FIELD),
        (raw(REQUEST, schema="tidegate.request.v9"), BadCode.UNKNOWN_SCHEMA),
        (raw(REQUEST, schema=3), BadCode.UNKNOWN_SCHEMA),
        (b'{"schema": "tidegate.request.v1", "messages": []}', BadCode.MISSING_FIELD),
        (b'{"schema": "tidegate.request.v1", "exchange_id": "a"}', BadCode.MISSING_FIELD),
        (raw(REQUEST, messages="text"), BadCode.BAD_VALUE),
        (raw(REQUEST, messages=[{"content": "no role"}]), BadCode.MISSING_FIELD),
        (raw(REQUEST, exchange_id=""), BadCode.BAD_VALUE),
        (raw(REQUEST, exchange_id=17), BadCode.BAD_VALUE),
        (raw(REQUEST, time="yesterday"), BadCode.BAD_VALUE),
        (raw(REQUEST, time="2026-11-24T10:00:00"), BadCode.BAD_VALUE),
        (raw(RESPONSE, usage={"input_tokens": -1}), BadCode.BAD_VALUE),
        (raw(REQUEST, messages=[{"role": "user", "content": "a\0b"}]), BadCode.NUL),
        (raw(REQUEST, tenant="a\0b"), BadCode.NUL),
        (raw(REQUEST, messages=[{"role": "user", "content": "\ud800"}]), BadCode.LONE_SURROGATE),
        (b'{"schema": "\xed\xa0\x80"}', BadCode.LONE_SURROGATE),
        (b"[" * 100 + b"]" * 100, BadCode.TOO_DEEP),
        (b'{"a":' * 70 + b"1" + b"}" * 70, BadCode.TOO_DEEP),
        (b" " * (MAX_EVENT_BYTES + 1), BadCode.TOO_LARGE),
    ],
)
def test_bad_input_gets_a_code(value: bytes | None, code: BadCode) -> None:
    outcome = decode(value)
    assert isinstance(outcome, Bad)
    assert outcome.code is code


def test_a_bad_never_quotes_the_value() -> None:
    for change in ({"tenant": 5, "exchange_id": "s3cret"}, {"messages": "s3cret"}, {"time": "s3cret"}):
        outcome = decode(raw(REQUEST, **change))
        assert isinstance(outcome, Bad)
        assert "s3cret" not in outcome.detail


def test_brackets_inside_strings_are_no_depth() -> None:
    text = '[{"' * 200 + "\\"
    assert isinstance(decode(raw(REQUEST, messages=[{"role": "user", "content": text}])), RequestEvent)


def test_escaped_backslash_u_is_no_surrogate() -> None:
    event = decode(raw(REQUEST, messages=[{"role": "user", "content": "a \\ud800 written out, and 😀"}]))
    assert isinstance(event, RequestEvent)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_decode_never_raises(value: bytes) -> None:
    decode(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(RequestEvent.__struct_fields__)), json_values, max_size=6))
def test_wrong_types_never_raise(changes: dict[str, object]) -> None:
    decode(json.dumps({**REQUEST, **changes}).encode())


def test_a_response_takes_missing_labels_from_its_request() -> None:
    request = Labels(route="r", model="m", prompt_version="7", user="u")
    response = decode(raw(RESPONSE, model="m2"))
    assert isinstance(response, ResponseEvent)
    labels = labels_of(response, request)
    assert (labels.route, labels.model, labels.prompt_version, labels.user) == ("r", "m2", "7", "u")


def test_a_response_without_its_request_says_so() -> None:
    response = decode(raw(RESPONSE))
    assert isinstance(response, ResponseEvent)
    assert exchange_of(response).messages is None


def test_a_reference_is_the_responses_own_or_that_of_its_request() -> None:
    request = decode(raw(REQUEST, reference="At nine."))
    assert isinstance(request, RequestEvent)
    for own, expected in ((None, "At nine."), ("At ten.", "At ten."), ("", "")):
        response = decode(raw(RESPONSE, reference=own, logprobs={"content": []}))
        assert isinstance(response, ResponseEvent)
        assert exchange_of(response, request).reference == expected
        assert exchange_of(response).reference == (own or "")
        assert exchange_of(response, request).logprobs == {"content": []}


def test_times_survive() -> None:
    event = decode(raw(REQUEST, time="2026-11-24T10:00:00.123Z"))
    assert isinstance(event, RequestEvent)
    assert event.time is not None
    assert iso(to_ms(event.time)) == "2026-11-24T10:00:00.123Z"
