"""The regex guard: places in code points, patterns that must be there, and faults told when a policy is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.engine import Engine
from guards.errors import ConfigError
from guards.models import ModelStore
from guards.policy import Policy, options_of
from guards.regex import MAX_CHARS, MAX_PLACES, Options, Pattern, RegexGuard, build
from guards.text import texts_of
from guards.types import Exchange, Failure, FailureCode, Function, Hit, Message, Stage, ToolCall, Unit

GUARD = build({}, ModelStore())


def unit(exchange: Exchange, stage: Stage) -> Unit:
    return Unit(texts_of(exchange, stage), exchange, stage)


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def asked(text: str) -> Unit:
    return unit(Exchange(messages=[Message("user", text)]), "request")


def answered(*messages: Message) -> Unit:
    return unit(Exchange(messages=None, response=messages), "response")


def check(of: Unit, *patterns: Pattern) -> list[Hit]:
    (result,) = GUARD.check([of], Options(patterns), Artifacts(None, None))
    assert not isinstance(result, Failure)
    return list(result)


def found(text: str, pattern: str, group: int | str = 0) -> list[str]:
    return [
        text[part.start : part.end]
        for hit in check(asked(text), Pattern("x", pattern, group=group))
        for part in hit.ranges
    ]


@pytest.mark.parametrize(
    ("text", "pattern", "group", "expected"),
    [
        ("ticket AB-1234, AB-99999", r"\bAB-\d{4,6}\b", 0, ["AB-1234", "AB-99999"]),
        ("👩🏽‍💻🙂 é AB-1234 🎉 AB-5678", r"AB-\d{4}", 0, ["AB-1234", "AB-5678"]),
        ("🙂 order: 77 🙂 order: 78", r"order: (\d+)", 1, ["77", "78"]),
        ("🙂 order: 77", r"order: (?P<number>\d+)", "number", ["77"]),
        ("a\0b\ud800c AB-1234", r"AB-\d{4}", 0, ["AB-1234"]),
        ("Straße", r"(?i)STRASSE|straße", 0, ["Straße"]),
        ("nothing here", r"AB-\d{4}", 0, []),
        ("a b", r"a(c?)", 1, []),
    ],
)
def test_finds_places_in_code_points(text: str, pattern: str, group: int | str, expected: list[str]) -> None:
    assert found(text, pattern, group) == expected


@given(st.text(), st.text())
def test_a_marker_is_found_wherever_it_stands(before: str, after: str) -> None:
    assert "MARK-7" in found(f"{before}MARK-7{after}", r"MARK-\d")


def test_the_name_is_the_kind_and_the_score_is_the_patterns() -> None:
    hits = check(asked("one two"), Pattern("first", "one", score=0.3), Pattern("second", "two"), Pattern("third", "3"))
    assert [(hit.kind, hit.score) for hit in hits] == [("first", 0.3), ("second", 1.0)]


def test_every_text_of_the_exchange_is_searched_but_those_of_the_system() -> None:
    exchange = Exchange(messages=[Message("system", "word"), Message("user", [part("a word")]), Message("tool", "x")])
    (hit,) = check(unit(exchange, "request"), Pattern("w", "word"))
    assert [(part.text, part.start) for part in hit.ranges] == [(1, 2)]


def test_matches_are_bounded() -> None:
    (hit,) = check(asked("ab" * 60_000), Pattern("x", "a"))
    assert len(hit.ranges) == MAX_PLACES


def test_an_exchange_with_a_text_over_the_cap_is_refused() -> None:
    options = Options((Pattern("x", "b"),))
    results = GUARD.check([asked("a" * (MAX_CHARS + 1)), asked("ab")], options, Artifacts(None, None))
    assert results[0] == Failure(FailureCode.INPUT_TOO_LARGE)
    assert len(results[1]) == 1  # type: ignore[arg-type]


def test_a_pattern_that_would_hang_others_is_searched() -> None:
    assert found("a" * 100_000 + "!", r"(a+)+$") == []


# ---------------------------------------------------------------- what must be there

DISCLAIMER = Pattern("no_disclaimer", "(?i)no financial advice", required=True)


@pytest.mark.parametrize(
    ("messages", "missing"),
    [
        ([Message("assistant", "Buy gold. This is no financial advice.")], False),
        ([Message("assistant", "Buy gold.")], True),
        ([Message("assistant", "")], True),
        ([Message("assistant", [part("Buy."), part("No financial advice.")])], False),
        ([Message("assistant", "No financial advice."), Message("assistant", "Buy gold.")], True),
        (
            [
                Message("assistant", "Let me see.", tool_calls=[ToolCall(function=Function("look_up", "{}"))]),
                Message("tool", "1,900"),
                Message("assistant", "Gold is at 1,900. No financial advice."),
            ],
            False,
        ),
    ],
)
def test_a_required_pattern_is_found_where_an_answer_lacks_it(messages: list[Message], missing: bool) -> None:
    assert check(answered(*messages), DISCLAIMER) == ([Hit("no_disclaimer", 1.0)] if missing else [])


def test_nothing_is_required_of_a_request_or_a_mere_tool_call() -> None:
    options = Options((DISCLAIMER,))
    call = Message("assistant", tool_calls=[ToolCall(function=Function("look_up", "{}"))])
    assert not GUARD.applies(asked("buy gold"), options)
    assert not GUARD.applies(answered(call), options)
    assert GUARD.applies(answered(Message("assistant", None)), options)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({"name": "a", "pattern": "(ab"}, r"patterns\.0: pattern: does not compile: missing \): \(ab"),
        ({"name": "a", "pattern": r"(?=a)b"}, r"patterns\.0: pattern: does not compile: invalid perl operator: \(\?="),
        ({"name": "a", "pattern": "a*"}, "would be found everywhere"),
        ({"name": "a", "pattern": "(a)", "group": 2}, "group: the pattern has no group 2"),
        ({"name": "a", "pattern": "(a)", "group": "b"}, "group: the pattern has no group 'b'"),
        ({"name": "a", "pattern": "a", "score": 2}, "score"),
        ({"name": "", "pattern": "a"}, "name"),
        ({"name": "a", "patern": "a"}, r"patterns\.0\.patern: unknown key; did you mean 'pattern'"),
    ],
)
def test_faulty_patterns_are_told_with_their_place(pattern: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(Options, {"patterns": [pattern]}, "guards.regex.options")


def test_a_policy_with_a_faulty_pattern_is_not_adopted() -> None:
    guards = {"regex": RegexGuard()}
    good = Policy.parse("name: a\nguards: {regex: {options: {patterns: [{name: x, pattern: x}]}}}")
    bad = Policy.parse("name: a\nguards: {regex: {options: {patterns: [{name: x, pattern: '('}]}}}")
    engine = Engine(good, guards=guards)
    with pytest.raises(ConfigError, match=r"guards\.regex\.options\.patterns\.0: pattern: does not compile"):
        engine.adopt(bad)
    assert engine.policy is good
