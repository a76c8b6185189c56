"""Grounding: what the documents support, what they do not, and what claims nothing."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from guards.artifacts import Artifacts
from guards.grounding import MAX_CHARS, GroundingGuard, build
from guards.guard import NoOptions
from guards.models import ModelStore
from guards.sentences import passages, sentences
from guards.text import texts_of
from guards.types import Document, Exchange, Failure, FailureCode, Hit, Message, Unit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
OPTIONS = NoOptions()
QUESTION = "When was the bridge built, and by whom?"
DOCUMENTS = (
    "The Old Bridge was built between 1472 and 1480 by the mason Hans Brenner. It has 14 arches of red sandstone.",
    "The city of Rotenburg lies on the river Fulda. In the flood of 1643 two of the arches were destroyed.",
)

Hits = Callable[..., dict[str, Hit]]


@pytest.fixture(scope="module")
def guard(store: ModelStore) -> GroundingGuard:
    return build({}, store)


@pytest.fixture(scope="module")
def hits(guard: GroundingGuard, store: ModelStore) -> Hits:
    artifacts = Artifacts(store.encoder, None)

    def check(answer: str, *documents: str, question: str = QUESTION) -> dict[str, Hit]:
        (result,) = guard.check([_unit(answer, *(documents or DOCUMENTS), question=question)], OPTIONS, artifacts)
        assert not isinstance(result, Failure)
        return {hit.kind: hit for hit in result}

    return check


def _unit(answer: str, *documents: str, question: str = QUESTION) -> Unit:
    exchange = Exchange(
        messages=[Message("user", question)],
        response=[Message("assistant", answer)],
        documents=[Document(text) for text in documents],
    )
    return Unit(texts_of(exchange, "response"), exchange, "response")


@pytest.mark.parametrize(
    "answer",
    [
        "The Old Bridge was built between 1472 and 1480 by the mason Hans Brenner.",
        "It was built by Hans Brenner. Two of the arches were destroyed in 1643.",
        "Sure! The bridge has 14 arches of red sandstone. Let me know if you have more questions.",
        "Brenner",
    ],
)
def test_what_the_documents_say_is_supported(hits: Hits, answer: str) -> None:
    found = hits(answer)
    assert set(found) == {"unsupported", "unsupported_number", "unsupported_name"}
    assert found["unsupported"].score < 0.3
    assert found["unsupported"].ranges == ()


def test_an_invented_sentence_is_marked(hits: Hits) -> None:
    answer = "The bridge was built by Hans Brenner. Tourists admire colourful fireworks there every summer evening."
    (place,) = hits(answer)["unsupported"].ranges
    assert hits(answer)["unsupported"].score >= 0.5
    assert answer[place.start : place.end].startswith("Tourists admire")


def test_right_words_in_a_wrong_combination_weigh_more_than_a_quotation(hits: Hits) -> None:
    quoted = hits("In the flood of 1643 two of the arches were destroyed.")["unsupported"].score
    mixed = hits("Hans Brenner destroyed red arches in 1480 by flood of sandstone.")["unsupported"].score
    assert quoted < 0.05 < mixed


def test_numbers_and_names_that_nobody_gave(hits: Hits) -> None:
    answer = "The bridge was built in 1502 by the mason Peter Brenner, after the flood of 1643."
    found = hits(answer)
    number, name = found["unsupported_number"], found["unsupported_name"]
    assert [answer[place.start : place.end] for place in number.ranges] == ["1502"]
    assert [answer[place.start : place.end] for place in name.ranges] == ["Peter"]
    assert number.score > name.score > 0
    asked = hits("In 1502 it stood, as Peter knows.", question="Peter asks: did it stand in 1502?")
    assert asked["unsupported_number"].score == asked["unsupported_name"].score == 0


def test_numbers_are_compared_by_their_digits(hits: Hits) -> None:
    assert hits("It cost 1.250.000 marks.", "The price was 1,250,000 marks.")["unsupported_number"].score == 0


@pytest.mark.parametrize(
    "answer",
    ["I don't know.", "The documents do not say.", "Thank you!", "Which bridge do you mean?", "\x00", "?!", "👍"],
)
def test_what_claims_nothing_has_no_risk(hits: Hits, answer: str) -> None:
    assert all(hit.score == 0 for hit in hits(answer).values())


def test_where_it_applies(guard: GroundingGuard) -> None:
    assert guard.applies(_unit("Yes.", *DOCUMENTS), OPTIONS)
    assert not guard.applies(_unit("Yes."), OPTIONS)
    assert not guard.applies(_unit("Yes.", " "), OPTIONS)
    assert not guard.applies(_unit("", *DOCUMENTS), OPTIONS)


def test_a_missing_request_and_a_too_large_text_are_failures(guard: GroundingGuard, store: ModelStore) -> None:
    alone = Exchange(messages=None, response=[Message("assistant", "Built in 1480.")])
    unit = Unit(texts_of(alone, "response"), alone, "response")
    large = [_unit("a" * (MAX_CHARS + 1), *DOCUMENTS), _unit("Built in 1480.", "a" * (MAX_CHARS + 1))]
    assert guard.applies(unit, OPTIONS)
    assert guard.check([unit, *large], OPTIONS, Artifacts(store.encoder, None)) == [
        Failure(FailureCode.REQUEST_MISSING),
        Failure(FailureCode.INPUT_TOO_LARGE),
        Failure(FailureCode.INPUT_TOO_LARGE),
    ]


@pytest.mark.parametrize(
    ("copied", "changed"),
    [
        ("The arches were destroyed in the flood.", "The arches were not destroyed in the flood."),
        ("It has 14 arches of red sandstone.", "It has 41 arches of red sandstone."),
        ("The bridge was built by Hans Brenner.", "The city of Hans Brenner was built by the arches."),
        ("It has arches of red sandstone.", "I think that it has arches of red sandstone."),
    ],
)
def test_a_small_change_of_a_quotation_raises_the_risk(hits: Hits, copied: str, changed: str) -> None:
    assert hits(changed)["unsupported"].score > hits(copied)["unsupported"].score + 0.02


def test_the_answer_is_as_risky_as_its_worst_sentence(hits: Hits) -> None:
    good, bad = "The bridge has 14 arches of red sandstone.", "Tourists admire colourful fireworks every summer."
    assert hits(f"{good} {bad}")["unsupported"].score >= hits(bad)["unsupported"].score


def test_an_offer_and_a_question_back_claim_nothing(hits: Hits) -> None:
    answer = "It was built by Hans Brenner. Would you like to know more about the other sights of the city?"
    assert hits(answer)["unsupported"].score < 0.3
    assert hits("Could you tell me which of the bridges you are asking about?")["unsupported"].score == 0


def test_long_answers_and_documents_take_linear_time(guard: GroundingGuard, store: ModelStore) -> None:
    sentence = "The old bridge number {} was built of red sandstone by a mason. "
    text = "".join(sentence.format(number) for number in range(MAX_CHARS // 70))
    (result,) = guard.check([_unit(text, text)], OPTIONS, Artifacts(store.encoder, None))
    assert not isinstance(result, Failure)


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.50 euros. Then he left!", ["Dr. Smith paid 3.50 euros.", "Then he left!"]),
        ("Am 3. Mai kam er, z.B. mit J. Doe. Gut.", ["Am 3. Mai kam er, z.B. mit J. Doe.", "Gut."]),
        ('He said "Stop." She did.', ['He said "Stop."', "She did."]),
        ("One\n\nTwo\n- three\n- four", ["One", "Two", "- three", "- four"]),
        ("你好。世界！", ["你好。", "世界！"]),
        (" \n ?! ", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    found = sentences(text)
    assert [sentence.text for sentence in found] == expected
    assert all(text[sentence.start : sentence.end] == sentence.text for sentence in found)


@pytest.mark.parametrize("text", ["One two. " * 50, "x" * 5000, "a b " * 900, "Short."])
def test_passages_leave_nothing_out(text: str) -> None:
    found = passages(text, 120)
    assert "".join("".join(passage.text for passage in found).split()) == "".join(text.split())
    assert all(len(passage.text) <= 120 for passage in found)


# ---------------------------------------------------------------- public data


def _area(good: list[float], bad: list[float]) -> float:
    return sum((a < b) + (a == b) / 2 for a in good for b in bad) / (len(good) * len(bad))


@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside this checkout")
def test_on_public_groundedness_data(hits: Hits) -> None:
    risks: tuple[list[float], list[float]] = ([], [])
    with (DATA / "groundedness" / "begin_wow_dev.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, itertools.islice(lines, 0, None, 4)):
            found = hits(row["response"], row["context"], question=row["question"])
            risks[row["label"]].append(found["unsupported"].score)
    assert _area(*risks) > 0.92


@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside this checkout")
def test_on_traffic_with_documents(hits: Hits) -> None:
    labels = {
        row["exchange_id"]: row["supported"]
        for row in map(json.loads, (DATA / "traffic" / "rag_labels.jsonl").read_text().splitlines())
    }
    risks: dict[int, list[float]] = {0: [], 1: []}
    requests: dict[str, dict[str, object]] = {}
    with gzip.open(DATA / "traffic" / "rag_exchanges.jsonl.gz", "rt", encoding="utf-8") as events:
        for event in map(json.loads, events):
            name = event["exchange_id"]
            if event["schema"] == "tidegate.request.v1":
                requests[name] = event
            elif labels.get(name) is not None and event["messages"] and event["messages"][0].get("content"):
                documents = [document["text"] for document in requests[name].get("documents", [])]
                found = hits(event["messages"][0]["content"], *documents)
                risks[labels[name]].append(found["unsupported"].score)
            if len(risks[0]) + len(risks[1]) >= 150:
                break
    assert _area(risks[1], risks[0]) > 0.95
