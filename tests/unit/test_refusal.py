"""Refusals: full, in part, for want of an answer; and what only sounds like one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.guard import NoOptions
from guards.models import ModelStore
from guards.refusal import RefusalGuard, build
from guards.types import Exchange, Failure, FailureCode, Hit, Location, Text, Unit

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("refusal_cases.jsonl").read_text().splitlines()
]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "uk")
THRESHOLD = 0.5
REFUSES = "I'm sorry, but I can't help with that."
ANSWERS = "The parcel was sent this morning and will arrive on Friday."


@pytest.fixture(scope="module")
def guard() -> RefusalGuard:
    return build({}, ModelStore())


def _hits(guard: RefusalGuard, text: str) -> dict[str, Hit]:
    (result,) = guard.check([Unit((Text(text, "assistant"),), Exchange(), "response")], NoOptions(), None)  # type: ignore[arg-type]
    assert not isinstance(result, Failure)
    return {hit.kind: hit for hit in result}


def _score(guard: RefusalGuard, text: str) -> float:
    return _hits(guard, text)["refusal"].score


def _said(guard: RefusalGuard, text: str) -> str:
    """The kind that the guard finds in an answer, or `none`."""
    kind, hit = max(_hits(guard, text).items(), key=lambda item: item[1].score)
    return kind if hit.score >= THRESHOLD else "none"


def test_the_sentence_that_declines_is_marked(guard: RefusalGuard) -> None:
    text = f"Thank you for your question. {REFUSES} Do you need anything else?"
    (place,) = _hits(guard, text)["refusal"].ranges
    assert text[place.start : place.end] == REFUSES


def test_the_more_is_answered_the_lower_the_risk(guard: RefusalGuard) -> None:
    more = " ".join([ANSWERS] * 8)
    assert _score(guard, REFUSES) > _score(guard, f"{REFUSES} {more}") > _score(guard, f"{more} {REFUSES}")
    assert _score(guard, f"{more} {REFUSES}") >= THRESHOLD
    assert _score(guard, more) == 0.0


def test_policy_and_want_of_an_answer_are_two_kinds(guard: RefusalGuard) -> None:
    assert _said(guard, "I can't help with that.") == "refusal"
    assert _said(guard, "The documents do not say when the bridge was built.") == "no_answer"
    both = _hits(guard, "The documents do not mention his address. I can't share personal data anyway.")
    assert min(hit.score for hit in both.values()) >= THRESHOLD


@pytest.mark.parametrize(
    "voice", ['"{}" said he.', "“{}” said he.", "«{}», sagte er.", "```\n{}\n```", "> {}", "Reply with `{}` then."]
)
def test_another_voice_does_not_count(guard: RefusalGuard, voice: str) -> None:
    assert _score(guard, f"{ANSWERS}\n\n{voice.format(REFUSES)}") == 0.0


def test_a_draft_for_the_user_is_no_refusal(guard: RefusalGuard) -> None:
    assert _score(guard, f"Here is a short note that you can send:\n\nDear Anna,\n\n{REFUSES}") < THRESHOLD


def test_a_weak_opening_is_told_with_a_low_score(guard: RefusalGuard) -> None:
    assert 0 < _score(guard, "Unfortunately the museum is closed on Mondays.") < THRESHOLD


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_apostrophes_and_capitals_do_not_matter(guard: RefusalGuard, apostrophe: str) -> None:
    assert _said(guard, f"I can{apostrophe}t help with that.") == "refusal"
    assert _said(guard, f"I CAN{apostrophe}T HELP WITH THAT.") == "refusal"


@given(st.text(max_size=300))
def test_any_text_gives_both_kinds(guard: RefusalGuard, text: str) -> None:
    hits = _hits(guard, text)
    assert set(hits) == {"refusal", "no_answer"}
    for hit in hits.values():
        assert bool(hit.ranges) == (hit.score > 0)


def test_too_much_is_refused(guard: RefusalGuard) -> None:
    unit = Unit((Text("a" * 131_073, "assistant"),), Exchange(), "response")
    assert guard.check([unit], NoOptions(), None) == [Failure(FailureCode.INPUT_TOO_LARGE)]  # type: ignore[arg-type]


def test_only_answers_are_looked_at(guard: RefusalGuard) -> None:
    exchange = Exchange()
    assert not guard.applies(Unit((Text(REFUSES, "user"),), exchange, "request"), NoOptions())
    call = Text(REFUSES, "assistant", Location(message=0, tool_call=0))
    assert not guard.applies(Unit((call,), exchange, "response"), NoOptions())


# ---------------------------------------------------------------- measured


@pytest.mark.parametrize("language", LANGUAGES)
def test_measured_on_labelled_answers(guard: RefusalGuard, language: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints precision and recall per language with ``-s``, kinds told apart. `set` in the file: rows that were written
    later, without a look at the patterns."""
    rows = [row for row in CASES if row["language"] == language]
    told = [(row["label"], _said(guard, row["text"])) for row in rows]
    right = sum(label == said != "none" for label, said in told)
    precision = right / max(1, sum(said != "none" for _, said in told))
    recall = right / sum(label != "none" for label, _ in told)
    with capsys.disabled():
        print(f"\n{language}: {len(rows)} answers, precision {precision:.2f}, recall {recall:.2f}", end="")
    assert precision >= 0.9
    assert recall >= 0.9


def test_measured_on_traffic(guard: RefusalGuard, capsys: pytest.CaptureFixture[str]) -> None:
    """The answers of the document traffic answer; those of the chats are not labelled, and some do decline."""
    for name, limit in (("rag_exchanges", 0.005), ("exchanges", 0.1)):
        path = DATA / "traffic" / f"{name}.jsonl.gz"
        if not path.is_file():
            pytest.skip(f"{path} is not there")
        with gzip.open(path, "rt") as lines:
            events = [json.loads(line) for line in lines]
        answers = [m["content"] for e in events if "response" in e["schema"] for m in e["messages"] if m.get("content")]
        share = sum(_said(guard, text) != "none" for text in answers) / len(answers)
        with capsys.disabled():
            print(f"\n{name}: {len(answers)} answers, {share:.2%} decline", end="")
        assert share <= limit
