"""Relevance: answers to the question, answers to another, and those that words cannot judge."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from guards.artifacts import Artifacts
from guards.guard import NoOptions
from guards.models import ModelStore
from guards.relevance import MAX_CHARS, RelevanceGuard, build
from guards.text import texts_of
from guards.types import Exchange, Failure, FailureCode, Function, Message, ToolCall, Unit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
OPTIONS = NoOptions()
QUESTION = "How do I change the delivery address of my order?"
ON_TOPIC = "Open your order, choose 'Change address' and enter the new delivery address before the parcel is shipped."
OFF_TOPIC = "The mitochondrion produces most of the chemical energy that a cell needs to live and to divide."

Risk = Callable[..., float]


@pytest.fixture(scope="module")
def guard(store: ModelStore) -> RelevanceGuard:
    return build({}, store)


@pytest.fixture(scope="module")
def risk(guard: RelevanceGuard, store: ModelStore) -> Risk:
    artifacts = Artifacts(store.encoder, None)

    def check(answer: str, *turns: str) -> float:
        (result,) = guard.check([_unit(answer, *turns)], OPTIONS, artifacts)
        assert not isinstance(result, Failure)
        (hit,) = result
        assert hit.kind == "irrelevant"
        return hit.score

    return check


def _unit(answer: str, *turns: str) -> Unit:
    """The answer to the last of the turns, which are the user's and the assistant's in alternation."""
    roles = ["user", "assistant"] * len(turns)
    messages = [Message(role, turn) for role, turn in zip(roles[(len(turns) + 1) % 2 :], turns, strict=False)]
    exchange = Exchange(messages=[Message("system", "Be kind."), *messages], response=[Message("assistant", answer)])
    return Unit(texts_of(exchange, "response"), exchange, "response")


def test_an_answer_to_the_question_is_fine_and_another_is_not(risk: Risk) -> None:
    assert risk(ON_TOPIC, QUESTION) < 0.1
    assert risk(OFF_TOPIC, QUESTION) > 0.9


def test_only_the_last_question_counts(risk: Risk) -> None:
    earlier = ("What does a mitochondrion do for a cell and its energy?", OFF_TOPIC)
    long_question = "Thank you. Now another thing: please tell me how I can change the delivery address of my order."
    assert risk(ON_TOPIC, *earlier, long_question) < 0.1
    assert risk(OFF_TOPIC, *earlier, long_question) > 0.8


def test_a_short_question_is_read_with_the_turns_before_it(risk: Risk) -> None:
    answer = "Because once the carrier has the parcel, the label with the delivery address can no longer be replaced."
    assert risk(answer, QUESTION, ON_TOPIC, "And why only before that?") < 0.3
    assert risk(OFF_TOPIC, QUESTION, ON_TOPIC, "And why only before that?") > 0.8


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but I can't help with that.", "Hello!", "Sure.", "Leider kann ich das nicht beantworten."]
)
def test_refusals_and_greetings_are_answers(risk: Risk, answer: str) -> None:
    assert risk(answer, QUESTION) == 0


def test_a_few_words_cannot_be_judged(risk: Risk) -> None:
    assert risk("Teeth", "Which comedy-horror film did Mitchell Lichtenstein direct?") < 0.3
    assert risk("\x00", QUESTION) == 0


def test_where_it_applies(guard: RelevanceGuard) -> None:
    call = Message("assistant", None, tool_calls=[ToolCall(function=Function("find", '{"order": 17}'))])
    only_call = Exchange(messages=[Message("user", QUESTION)], response=[call])
    assert guard.applies(_unit(ON_TOPIC, QUESTION), OPTIONS)
    assert not guard.applies(Unit(texts_of(only_call, "response"), only_call, "response"), OPTIONS)
    assert not guard.applies(_unit(ON_TOPIC), OPTIONS)
    assert not guard.applies(_unit("", QUESTION), OPTIONS)


def test_a_missing_request_and_a_too_large_answer_are_failures(guard: RelevanceGuard, store: ModelStore) -> None:
    alone = Exchange(messages=None, response=[Message("assistant", ON_TOPIC)])
    unit = Unit(texts_of(alone, "response"), alone, "response")
    large = _unit("word " * (MAX_CHARS // 5 + 1), QUESTION)
    assert guard.applies(unit, OPTIONS)
    assert guard.needs(unit, OPTIONS).embed == guard.needs(large, OPTIONS).embed == ()
    assert guard.check([unit, large], OPTIONS, Artifacts(store.encoder, None)) == [
        Failure(FailureCode.REQUEST_MISSING),
        Failure(FailureCode.INPUT_TOO_LARGE),
    ]


def test_what_is_needed_is_all_that_is_read(guard: RelevanceGuard, store: ModelStore) -> None:
    units = [_unit(ON_TOPIC, QUESTION), _unit(OFF_TOPIC, QUESTION, ON_TOPIC, "Why?"), _unit("Sure.", QUESTION)]
    artifacts = Artifacts(store.encoder, None)
    artifacts.prepare([text for unit in units for text in guard.needs(unit, OPTIONS).embed], [])
    sealed = Artifacts(None, None)
    sealed._embeddings = artifacts._embeddings
    assert len(guard.check(units, OPTIONS, sealed)) == 3


@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside this checkout")
@pytest.mark.parametrize("language", ["en", "de", "es"])
def test_on_public_questions_and_answers(risk: Risk, language: str) -> None:
    with (DATA / "relevance" / f"xquad_{language}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 0, None, 40)]
    right = [risk(row["answer_sentence"], row["question"]) for row in rows]
    wrong = [risk(other["answer_sentence"], row["question"]) for row, other in itertools.pairwise(rows)]
    assert sum(score >= 0.8 for score in right) <= 0.1 * len(right)
    pairs = [(good, bad) for good in right for bad in wrong]
    assert sum((good < bad) + (good == bad) / 2 for good, bad in pairs) / len(pairs) > 0.9  # the area under the curve
