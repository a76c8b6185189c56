"""The guard of limits: sizes of requests and answers at and over the limit, and what an estimate of tokens is worth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.limits import Options, build, estimated_tokens
from guards.models import ModelStore
from guards.policy import options_of
from guards.text import redact, texts_of
from guards.types import Document, Exchange, Failure, Function, Hit, Message, Redaction, Stage, ToolCall, Unit

GUARD = build({}, ModelStore())


def check(exchange: Exchange, stage: Stage, **options: Any) -> list[Hit]:
    unit = Unit(texts_of(exchange, stage), exchange, stage)
    typed = options_of(Options, options, "options")
    assert GUARD.applies(unit, typed)
    (result,) = GUARD.check([unit], typed, Artifacts(None, None))
    assert not isinstance(result, Failure)
    return list(result)


def request_kinds(text: str, **limits: int) -> list[str]:
    return [hit.kind for hit in check(Exchange(messages=[Message("user", text)]), "request", request=limits)]


def answer_kinds(*messages: Message, **limits: int) -> list[str]:
    return [hit.kind for hit in check(Exchange(response=messages), "response", response=limits)]


@pytest.mark.parametrize(
    ("limit", "at", "over", "kind"),
    [
        ({"max_chars": 10}, "🙂" * 10, "a" * 11, "too_long"),
        ({"min_chars": 3}, "abc", "ab", "too_short"),
        ({"max_words": 3}, "one, two — three!", "one two three 4", "too_many_words"),
        ({"max_chars": 0}, "", "a", "too_long"),
    ],
)
def test_a_limit_may_be_reached_and_not_passed(limit: dict[str, int], at: str, over: str, kind: str) -> None:
    assert request_kinds(at, **limit) == []
    assert request_kinds(over, **limit) == [kind]
    assert answer_kinds(Message("assistant", at), **limit) == []
    assert answer_kinds(Message("assistant", over), **limit) == [kind]


@given(st.text(), st.integers(0, 60))
def test_tokens_are_limited_by_their_estimate(text: str, limit: int) -> None:
    weight = estimated_tokens(text)
    if weight != limit:  # at the limit itself the halves of a token decide
        assert bool(request_kinds(text, max_tokens=limit)) is (weight > limit)


def test_messages_and_documents_are_counted() -> None:
    exchange = Exchange(messages=[Message("user", "a")] * 3, documents=[Document("d")] * 2)
    assert [hit.kind for hit in check(exchange, "request", request={"max_messages": 2, "max_documents": 1})] == [
        "too_many_messages",
        "too_many_documents",
    ]
    assert check(exchange, "request", request={"max_messages": 3, "max_documents": 2}) == []


def test_a_request_is_measured_as_a_whole() -> None:
    exchange = Exchange(
        messages=[Message("system", "s" * 50), Message("user", [{"type": "text", "text": "u" * 5}] * 2)],
        documents=[Document("d" * 30)],
    )
    assert check(exchange, "request", request={"max_chars": 90}) == []
    assert [hit.kind for hit in check(exchange, "request", request={"max_chars": 89})] == ["too_long"]
    assert check(exchange, "request", request={"max_chars": 10}, skip_roles=["system", "document"]) == []


def test_every_message_of_a_response_is_measured_for_itself() -> None:
    choices = (Message("assistant", "a" * 10), Message("assistant", "b" * 12), Message("assistant", None))
    assert answer_kinds(*choices, max_chars=11, min_chars=1) == ["too_long", "too_short"]


def test_a_message_that_calls_a_tool_need_not_say_anything() -> None:
    call = Message("assistant", None, tool_calls=[ToolCall(function=Function("f", '{"a": 1}'))])
    assert answer_kinds(call, min_chars=100) == []
    assert answer_kinds(call, max_chars=7) == ["too_long"]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.integers(0, 30))
def test_what_is_over_the_limit_is_what_is_marked(parts: list[str], limit: int) -> None:
    message = Message("assistant", [{"type": "text", "text": part} for part in parts])
    exchange = Exchange(response=[message])
    texts = texts_of(exchange, "response")
    cuts = [
        Redaction(texts[place.text].location, place.start, place.end, "")
        for hit in check(exchange, "response", response={"max_chars": limit})
        for place in hit.ranges
    ]
    (cut,) = redact([{"role": "assistant", "content": message.content}], cuts)
    assert "".join(part["text"] for part in cut["content"]) == "".join(parts)[:limit]


def test_no_text_is_too_long_to_be_measured() -> None:
    assert request_kinds("a b " * 500_000, max_chars=10, max_words=10, max_tokens=10) == [
        "too_long",
        "too_many_words",
        "too_many_tokens",
    ]


# Counted once with tiktoken's tables o200k_base and cl100k_base.
@pytest.mark.parametrize(
    ("text", "o200k", "cl100k"),
    [
        ("The quick brown fox jumps over the lazy dog, and the dog does not mind.", 17, 17),
        ("def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n", 22, 22),
        ("Die Geschwindigkeitsbegrenzung gilt für alle Straßen außerhalb der Ortschaften.", 17, 23),
        ("Привет! Это короткий текст на русском языке.", 11, 21),
        ("这是一个用来估计长度的中文句子。", 12, 16),
        ('{"id": 4711, "items": [{"name": "screw", "price": 0.05}]}', 26, 26),
    ],
)
def test_the_estimate_lies_near_what_tokenizers_count(text: str, o200k: int, cl100k: int) -> None:
    assert 0.7 * min(o200k, cl100k) <= estimated_tokens(text) <= 1.4 * max(o200k, cl100k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request": {"max_chars": -1}}, r"options\.request: max_chars: -1 is less than nothing"),
        ({"response": {"min_chars": 5, "max_chars": 4}}, r"options\.response: min_chars"),
        ({"response": {"max_documents": 4}}, r"options\.response\.max_documents: unknown key"),
        ({"max_chars": 4}, r"options\.max_chars: unknown key"),
    ],
)
def test_faulty_limits_are_told_with_their_place(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(Options, options, "options")
