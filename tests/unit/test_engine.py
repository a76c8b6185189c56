"""The engine's promises, on guards small enough to see through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from guards.artifacts import Artifacts
from guards.engine import Engine, Item
from guards.errors import ConfigError
from guards.guard import Needs, NoOptions, Result
from guards.policy import GuardRule, GuardSettings, Policy, PolicyDocument
from guards.types import Action, Document, Exchange, Failure, FailureCode, Hit, Message, Range, Stage, Unit


class WordGuard:
    """Finds one word. ``before`` runs at each check: to count, to wait, to raise."""

    version = "1"
    stages: frozenset[Stage] = frozenset({"request", "response"})
    options_type: type[msgspec.Struct] = NoOptions

    def __init__(
        self, name: str, word: str, unit: Any = "text", before: Callable[[Sequence[Unit]], None] | None = None
    ):
        self.name = name
        self.word = word
        self.unit = unit
        self.before = before
        self.asked: list[str] = []

    def applies(self, unit: Unit, options: Any) -> bool:
        return bool(unit.texts)

    def needs(self, unit: Unit, options: Any) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Any, artifacts: Artifacts) -> Sequence[Result]:
        if self.before is not None:
            self.before(units)
        results: list[Result] = []
        for unit in units:
            hits = []
            for number, text in enumerate(unit.texts):
                self.asked.append(text.text)
                at = text.text.find(self.word)
                if at >= 0:
                    hits.append(Hit("word", 0.9, (Range(at, at + len(self.word), number),)))
            results.append(hits)
        return results


def make_engine(*guards: WordGuard, action: Action = Action.BLOCK, **settings: Any) -> Engine:
    document = PolicyDocument(
        name="test",
        guards={guard.name: GuardSettings(**settings) for guard in guards},
        rules=tuple(GuardRule(name=f"rule-{guard.name}", guard=guard.name, action=action) for guard in guards),
    )
    return Engine(Policy(document), guards={guard.name: guard for guard in guards})


def asking(*texts: str, **rest: Any) -> Exchange:
    return Exchange(messages=[Message("user", text) for text in texts], **rest)


def test_a_finding_becomes_a_decision_with_its_place() -> None:
    engine = make_engine(WordGuard("words", "bad"))
    decision = engine.check(asking("fine", "a bad word"), "request")
    assert decision.decision is Action.BLOCK
    (reason,) = decision.reasons
    (span,) = reason.spans
    assert (span.message, span.start, span.end) == (1, 2, 5)
    assert decision.coverage.scanned == ("words",)


def test_places_in_parts_tool_calls_and_documents() -> None:
    engine = make_engine(WordGuard("words", "bad"))
    exchange = msgspec.convert(
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "bad"}]},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "bad"}'}}]},
            ],
            "documents": [{"text": "not"}, {"text": "bad"}],
        },
        Exchange,
    )
    (reason,) = engine.check(exchange, "request").reasons
    places = [(s.message, s.part, s.tool_call, s.document, s.start) for s in reason.spans]
    assert places == [(0, 1, None, None, 0), (1, None, 0, None, 7), (None, None, None, 1, 0)]


def test_identical_texts_are_judged_once() -> None:
    guard = WordGuard("words", "bad")
    engine = make_engine(guard)
    engine.check_batch([Item(asking("same", "same"), "request"), Item(asking("same"), "request")])
    engine.check(asking("same"), "request")
    assert guard.asked == ["same"]


def test_exchanges_are_never_judged_by_the_text_alone() -> None:
    guard = WordGuard("words", "bad", unit="exchange")
    engine = make_engine(guard)
    items = [Item(asking("same", documents=[Document(word)]), "request") for word in ("bad", "good")]
    assert [d.decision for d in engine.check_batch(items)] == [Action.BLOCK, Action.ALLOW]


def test_one_bad_text_does_not_spoil_the_batch() -> None:
    def explode(units: Sequence[Unit]) -> None:
        if any("boom" in text.text for unit in units for text in unit.texts):
            raise ValueError("boom")

    told: list[str] = []
    engine = make_engine(WordGuard("words", "bad", before=explode), on_failure="block")
    engine.on_error = lambda guard, error: told.append(f"{guard}:{type(error).__name__}")
    decisions = engine.check_batch([Item(asking(text), "request") for text in ("bad", "boom", "fine")])
    assert [d.decision for d in decisions] == [Action.BLOCK, Action.BLOCK, Action.ALLOW]
    assert [f.code for f in decisions[1].coverage.failed] == [FailureCode.ERROR]
    assert decisions[1].coverage.scanned == ()
    assert told == ["words:ValueError"]


def test_a_failure_is_not_remembered() -> None:
    broken = [True]

    def fail_once(_: Sequence[Unit]) -> None:
        if broken:
            broken.pop()
            raise OSError

    engine = make_engine(WordGuard("words", "bad", before=fail_once))
    assert engine.check(asking("bad"), "request").coverage.failed
    assert engine.check(asking("bad"), "request").decision is Action.BLOCK


def test_what_was_seen_beside_a_failure_still_counts() -> None:
    class Half(WordGuard):
        def check(self, units: Sequence[Unit], options: Any, artifacts: Artifacts) -> Sequence[Result]:
            return [
                Failure(FailureCode.INPUT_TOO_LARGE) if unit.texts[0].text == "huge" else [Hit("word", 0.9)]
                for unit in units
            ]

    decision = make_engine(Half("words", "bad")).check(asking("huge", "bad"), "request")
    assert decision.decision is Action.BLOCK
    assert [f.code for f in decision.coverage.failed] == [FailureCode.INPUT_TOO_LARGE]


def test_a_deadline_leaves_failures_not_clean_results() -> None:
    gate = threading.Event()
    slow = WordGuard("slow", "bad", before=lambda _: (gate.wait(5), None)[1])
    late = WordGuard("late", "bad")
    engine = make_engine(WordGuard("quick", "bad"), slow, late)
    scan = engine.scan([Item(asking("fine"), "request")])
    thread = threading.Thread(target=scan.run)
    thread.start()
    deadline = time.monotonic() + 5
    while not engine.guards["quick"].asked and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.005)
    time.sleep(0.02)
    scan.cancel()
    (decision,) = scan.decisions()
    gate.set()
    thread.join()
    assert decision.coverage.scanned == ("quick",)
    assert {(f.guard, f.code) for f in decision.coverage.failed} == {
        ("slow", FailureCode.TIMEOUT),
        ("late", FailureCode.TIMEOUT),
    }
    assert late.asked == []


def test_a_deadline_that_has_passed_asks_nobody() -> None:
    guard = WordGuard("words", "bad")
    engine = make_engine(guard, on_failure={"request": "block"})
    scan = engine.scan([Item(asking("fine"), "request")], deadline=time.perf_counter() - 1)
    scan.run()
    assert scan.decisions()[0].decision is Action.BLOCK
    assert guard.asked == []


def test_guards_that_are_not_inline_are_skipped_inline() -> None:
    engine = make_engine(WordGuard("words", "bad"), inline=False)
    decision = engine.check(asking("bad"), "request", inline_only=True)
    assert decision.coverage.skipped == ("words",)
    assert decision.decision is Action.ALLOW


def test_a_wrong_number_of_results_is_an_error_not_a_shift() -> None:
    class Short(WordGuard):
        def check(self, units: Sequence[Unit], options: Any, artifacts: Artifacts) -> Sequence[Result]:
            return super().check(units, options, artifacts)[1:]

    decision = make_engine(Short("words", "bad")).check(asking("fine", "bad"), "request")
    assert decision.coverage.failed


def test_low_scores_are_kept_once_a_kind() -> None:
    class Low(WordGuard):
        def check(self, units: Sequence[Unit], options: Any, artifacts: Artifacts) -> Sequence[Result]:
            return [[Hit("word", len(unit.texts[0].text) / 100)] for unit in units]

    decision = make_engine(Low("words", "")).check(asking("a", "abc", "ab", "x" * 30), "request")
    assert [f.score for f in decision.findings] == [0.3]
    decision = make_engine(Low("words", "")).check(asking("a", "abc", "ab"), "request")
    assert [f.score for f in decision.findings] == [0.03]


def test_adopting_a_policy_with_an_unknown_guard_keeps_the_one_before() -> None:
    engine = make_engine(WordGuard("words", "bad"))
    before = engine.policy
    other = Policy(PolicyDocument(name="test", guards={"nobody": GuardSettings()}))
    with pytest.raises(ConfigError, match="nobody"):
        engine.adopt(other)
    assert engine.policy is before


def test_unknown_guard_options_are_named() -> None:
    engine = make_engine(WordGuard("words", "bad"))
    other = Policy(PolicyDocument(name="test", guards={"words": GuardSettings(options={"colour": 1})}))
    with pytest.raises(ConfigError, match=r"guards\.words\.options\.colour"):
        engine.adopt(other)
