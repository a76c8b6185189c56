"""Citations: their forms, sources that are not there, sources that do not say it, claims without any."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.citations import CitationsGuard, CitationsOptions, build
from guards.models import ModelStore
from guards.text import texts_of
from guards.types import Document, Exchange, Failure, FailureCode, Hit, Message, Unit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BRIDGE = "The Old Bridge was built between 1472 and 1480 by the mason Hans Brenner. It has 14 arches of red sandstone."
FLOOD = "In the flood of 1643 two arches of the Old Bridge were destroyed; they were rebuilt in wood two years later."
TOWN = "Rotenburg lies on the river Fulda. Its market is held on Saturdays in front of the town hall."
DOCUMENTS = (Document(BRIDGE, "kb-7"), Document(FLOOD, "kb-8"), Document(TOWN, "town.pdf"))
CLAIM = "The bridge was built by the mason Hans Brenner"

Hits = Callable[..., dict[str, Hit]]


@pytest.fixture(scope="module")
def guard(store: ModelStore) -> CitationsGuard:
    return build({}, store)


@pytest.fixture(scope="module")
def hits(guard: CitationsGuard, store: ModelStore) -> Hits:
    artifacts = Artifacts(store.encoder, None)

    def check(answer: str, documents: tuple[Document, ...] = DOCUMENTS, **options: Any) -> dict[str, Hit]:
        (result,) = guard.check([_unit(answer, documents)], CitationsOptions(**options), artifacts)
        assert not isinstance(result, Failure)
        return {hit.kind: hit for hit in result}

    return check


def _unit(answer: str, documents: tuple[Document, ...] = DOCUMENTS) -> Unit:
    exchange = Exchange(
        messages=[Message("user", "Who built the bridge?")],
        response=[Message("assistant", answer)],
        documents=documents,
    )
    return Unit(texts_of(exchange, "response"), exchange, "response")


KNOWN = [
    "[1]", "[1, 2]", "[1-3]", "[1–2]", "[1][2]", "【1†source】", "【4:1†kb-7】", "(doc: kb-7)", "[kb-7]",
    "(Source: kb-7)", "[KB-7]", "[doc 1]", "[source: kb-7]", "[^1]", "source: kb-7", "[the handbook](kb-7)",
    "[kb-7](https://example.com/x)",
    "[map](https://example.com/files/kb-7)", "(docs: kb-7, kb-8)",
]  # fmt: skip
UNKNOWN = [
    "[4]", "[1, 9]", "[2-5]", "[0]", "【7†source】", "(doc: kb-9)", "[kb-12]", "[^5]", "source: kb-99", "[doc 8]",
    "[source: faq2]",
]  # fmt: skip
NO_CITATION = [
    "[sic]",
    "[x]",
    "[ ]",
    "[2024]",
    "[…]",
    "`a[9]`",
    "[see below](https://example.com)",
    "in this document: none",
]


@pytest.mark.parametrize("mark", KNOWN)
def test_a_known_source_that_says_so_is_fine(hits: Hits, mark: str) -> None:
    found = hits(f"{CLAIM} {mark}.", require=True)
    assert set(found) == {"unknown_source", "unsupported_citation", "uncited"}
    assert found["unknown_source"].score == 0.0
    assert found["unsupported_citation"].score < 0.4
    assert found["uncited"].score == 0.0


@pytest.mark.parametrize("mark", UNKNOWN)
def test_a_source_that_is_not_there(hits: Hits, mark: str) -> None:
    answer = f"{CLAIM} {mark}."
    hit = hits(answer)["unknown_source"]
    assert hit.score > 0.8
    (place,) = hit.ranges
    assert mark.strip("()") in answer[place.start : place.end] or answer[place.start : place.end] in mark


@pytest.mark.parametrize("mark", NO_CITATION)
def test_other_brackets_cite_nothing(hits: Hits, mark: str) -> None:
    found = hits(f"{CLAIM} {mark} in eight years.", require=True)
    assert found["unknown_source"].score == 0.0
    assert found["uncited"].score == 1.0


def test_ids_come_before_positions(hits: Hits) -> None:
    documents = (Document(TOWN, "2"), Document(BRIDGE, "1"))
    assert hits(f"{CLAIM} [1].", documents)["unsupported_citation"].score < 0.4
    assert hits(f"{CLAIM} [2].", documents)["unsupported_citation"].score > 0.5


@pytest.mark.parametrize("mark", ["[3]", "[town.pdf]", "【3†source】", "(doc: town.pdf)", "[^3]"])
def test_a_source_that_does_not_say_so(hits: Hits, mark: str) -> None:
    answer = f"Good question! {CLAIM} {mark}. The market is held on Saturdays [3]."
    hit = hits(answer)["unsupported_citation"]
    assert hit.score > 0.5
    (place,) = hit.ranges
    assert answer[place.start :].startswith(CLAIM)


def test_documents_that_are_cited_together_are_read_together(hits: Hits) -> None:
    both = "The mason Hans Brenner built it and the flood of 1643 destroyed two arches"
    assert hits(f"{both} [1][2].")["unsupported_citation"].score < hits(f"{both} [1].")["unsupported_citation"].score


@pytest.mark.parametrize(
    "answer",
    [
        f"{CLAIM}. [1] The market is held on Saturdays. [3]",
        f"{CLAIM}.[1] The market is held on Saturdays.[3]",
        f"{CLAIM} [1]. The market is held on Saturdays [3].",
    ],
)
def test_a_mark_after_the_full_stop_belongs_to_what_it_follows(hits: Hits, answer: str) -> None:
    found = hits(answer, require=True)
    assert found["unsupported_citation"].score < 0.4
    assert found["uncited"].score == 0.0


def test_lists_of_sources_are_no_claims(hits: Hits) -> None:
    answer = f"{CLAIM} [^a].\n\n[^a]: kb-7, the chronicle of the town"
    assert hits(answer, require=True) == {
        "unknown_source": Hit("unknown_source", 0.0),
        "unsupported_citation": hits(f"{CLAIM} [1].")["unsupported_citation"],
        "uncited": Hit("uncited", 0.0),
    }
    answer = f"{CLAIM} [1].\n\nSources:\n[1] Chronicle of a completely different name\n[7] Handbook"
    found = hits(answer, require=True)
    assert found["unsupported_citation"].score < 0.4
    assert found["uncited"].score == 0.0
    assert found["unknown_source"].score > 0.8, "the list names a seventh source, and there are three"


def test_claims_without_a_citation_are_counted_on_demand(hits: Hits) -> None:
    answer = f"{CLAIM} [1]. It has 14 arches of red sandstone. The market is held on Saturdays. Anything else?"
    assert "uncited" not in hits(answer)
    hit = hits(answer, require=True)["uncited"]
    assert hit.score == pytest.approx(2 / 3, abs=0.001)
    assert len(hit.ranges) == 2
    assert hits("I'm sorry, I don't know.", require=True)["uncited"].score == 0.0
    assert hits(answer, (), require=True)["uncited"].score == 0.0, "without documents there is nothing to cite"


def test_without_documents_every_source_is_unknown(hits: Hits) -> None:
    assert hits(f"{CLAIM} [1].", ())["unknown_source"].score > 0.8
    assert hits(f"{CLAIM}.", ())["unknown_source"].score == 0.0


@given(st.text(alphabet="[]()【】†^-–,.: 0123456789ab\nkdoc", max_size=200))
def test_any_brackets_are_read(guard: CitationsGuard, answer: str) -> None:
    unit = _unit(answer)
    if guard.applies(unit, CitationsOptions()):
        for text in guard.needs(unit, CitationsOptions()).embed:
            assert text


def test_failures(guard: CitationsGuard, store: ModelStore) -> None:
    alone = Exchange(messages=None, response=[Message("assistant", f"{CLAIM} [1].")])
    unit = Unit(texts_of(alone, "response"), alone, "response")
    artifacts = Artifacts(store.encoder, None)
    assert guard.check([unit], CitationsOptions(), artifacts) == [Failure(FailureCode.REQUEST_MISSING)]
    large = _unit("a" * 131_073)
    assert guard.check([large], CitationsOptions(), artifacts) == [Failure(FailureCode.INPUT_TOO_LARGE)]


# ---------------------------------------------------------------- measured


@pytest.mark.parametrize("language", ["en", "de", "es"])
def test_measured_on_right_and_wrong_sources(hits: Hits, language: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence of a paragraph cites that paragraph, or the next one of the encyclopedia, as a rule of one article."""
    path = DATA / "relevance" / f"xquad_{language}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = {row["context"]: row for row in map(json.loads, path.read_text().splitlines())}
    right: list[float] = []
    wrong: list[float] = []
    for row, other in itertools.pairwise(rows.values()):
        documents = (Document(row["context"]), Document(other["context"]))
        for number, scores in ((1, right), (2, wrong)):
            scores.append(
                hits(f"{row['answer_sentence'].rstrip('.')} [{number}].", documents)["unsupported_citation"].score
            )
    found = sum(score >= 0.5 for score in wrong) / len(wrong)
    false = sum(score >= 0.5 for score in right) / len(right)
    with capsys.disabled():
        print(
            f"\n{language}: {len(right)} pairs, at 0.5 wrong sources found {found:.1%}, right ones flagged {false:.1%}",
            end="",
        )
    assert found >= 0.9
    assert false <= 0.02


def test_measured_on_chats_without_documents(hits: Hits, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "traffic" / "exchanges.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        events = [json.loads(line) for line in lines]
    answers = [event["messages"][0]["content"] for event in events if "response" in event["schema"]]
    flagged = sum(hits(text, ())["unknown_source"].score > 0 for text in answers if text)
    with capsys.disabled():
        print(f"\n{len(answers)} chat answers, {flagged} with an unknown source", end="")
    assert flagged <= 0.005 * len(answers)
