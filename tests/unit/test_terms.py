"""The terms guard: exact places of listed terms, however they are written, and none inside other words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.models import ModelStore
from guards.policy import options_of
from guards.terms import MAX_CHARS, MAX_PLACES, Options, TermList, build
from guards.types import Exchange, Failure, FailureCode, Hit, Text, Unit

GUARD = build({}, ModelStore())


def unit(text: str, role: str = "user") -> Unit:
    return Unit((Text(text, role),), Exchange(), "request")


def hits(text: str, *lists: TermList) -> list[Hit]:
    (result,) = GUARD.check([unit(text)], Options(lists), Artifacts(None, None))
    assert not isinstance(result, Failure)
    return list(result)


def found(text: str, *terms: str, **settings: Any) -> list[str]:
    return [
        text[part.start : part.end] for hit in hits(text, TermList("list", terms, **settings)) for part in hit.ranges
    ]


@pytest.mark.parametrize(
    ("text", "term", "expected"),
    [
        ("I would buy from Acme instead.", "acme", ["Acme"]),
        ("ACME, acme; Acme!", "Acme", ["ACME", "acme", "Acme"]),
        ("acme", "acme", ["acme"]),
        ("the pacmen of acmeville", "acme", []),
        ("Acme  \n Corp is a rival", "acme corp", ["Acme  \n Corp"]),
        ("Straße, STRASSE und strasse", "straße", ["Straße", "STRASSE", "strasse"]),
        ("the Café and the cafe", "cafe", ["Café", "cafe"]),
        ("a\u200bc\u200bm\u200be here", "acme", ["a\u200bc\u200bm\u200be"]),
        ("say аcme to me", "acme", ["аcme"]),  # the first letter is Cyrillic
        ("🙂🙂 acme 🙂", "acme", ["acme"]),
        ("ﬁnance", "finance", ["ﬁnance"]),
        ("C++, C# and C", "c++", ["C++"]),
        ("use acme_client.py", "acme", ["acme"]),
        ("这是坏词吗", "坏词", ["坏词"]),
        ("这是acme吗", "acme", ["acme"]),
        ("\0acme\0 \ud800acme", "acme", ["acme", "acme"]),
        ("nothing of the kind", "acme", []),
    ],
)
def test_finds_a_term_at_its_place(text: str, term: str, expected: list[str]) -> None:
    assert found(text, term) == expected


def test_parts_of_words_count_where_the_list_says_so() -> None:
    assert found("concatenate the cats", "cat") == []
    assert found("concatenate the cats", "cat", whole_words=False) == ["cat", "cat"]


def test_case_counts_where_the_list_says_so() -> None:
    assert found("the US told us", "US", case_sensitive=True) == ["US"]
    assert found("the US told us", "US") == ["US", "us"]


def test_of_overlapping_terms_the_longest_is_marked() -> None:
    assert found("Acme Corp Ltd and Acme", "acme", "acme corp", "corp ltd") == ["Acme Corp", "Acme"]


def test_lists_are_kinds_and_may_share_a_term() -> None:
    lists = (TermList("rivals", ("acme", "globex")), TermList("clients", ("acme",)), TermList("other", ("initech",)))
    assert [(hit.kind, hit.score) for hit in hits("acme and globex", *lists)] == [("rivals", 1.0), ("clients", 1.0)]


@given(
    before=st.text(st.characters(exclude_categories=["L", "N", "M", "Cs"])),
    after=st.text(st.characters(exclude_categories=["L", "N", "M", "Cs"])),
    term=st.text(st.sampled_from("abcxyzäöß "), min_size=1).filter(lambda term: term.strip()),
)
def test_a_term_between_signs_is_always_found(before: str, after: str, term: str) -> None:
    assert any(place.strip() for place in found(f"{before} {term} {after}", term))


@given(st.text(), st.lists(st.text("abAB ßé", min_size=1).filter(lambda term: term.strip()), min_size=1, max_size=5))
def test_places_are_in_order_and_never_overlap(text: str, terms: list[str]) -> None:
    for hit in hits(text + "ab Ba ßé", TermList("list", tuple(terms), whole_words=False)):
        end = 0
        for part in hit.ranges:
            assert end <= part.start < part.end <= len(text) + 8
            end = part.end


def test_thousands_of_terms_in_one_long_text() -> None:
    terms = tuple(f"term{number}" for number in range(10_000))
    text = " ".join(terms[::100])
    assert found(text, *terms) == list(terms[::100])


def test_places_are_bounded() -> None:
    (hit,) = hits("a " * 50_000, TermList("list", ("a",)))
    assert len(hit.ranges) == MAX_PLACES


def test_a_text_over_the_cap_is_refused() -> None:
    options = Options((TermList("list", ("acme",)),))
    results = GUARD.check([unit("acme " * MAX_CHARS), unit("acme")], options, Artifacts(None, None))
    assert results[0] == Failure(FailureCode.INPUT_TOO_LARGE)
    assert results[1] == [Hit("list", 1.0, results[1][0].ranges)]  # type: ignore[index]


def test_system_prompts_may_name_what_is_banned() -> None:
    options = Options((TermList("list", ("acme",)),))
    assert not GUARD.applies(unit("never speak of acme", "system"), options)
    assert GUARD.applies(unit("never speak of acme", "tool"), options)
    assert GUARD.applies(unit("acme", "system"), Options(options.lists, skip_roles=()))


def test_without_lists_nothing_is_scanned() -> None:
    assert not GUARD.applies(unit("acme"), Options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lists": [{"name": "a", "terms": ["x", "\u200b "]}]}, r"lists\.0: terms\.1"),
        ({"lists": [{"name": "", "terms": ["x"]}]}, r"lists\.0: name"),
        ({"lists": [{"name": "a", "terms": ["x"]}, {"name": "a", "terms": []}]}, "two are named 'a'"),
        ({"lists": [{"name": "a", "term": ["x"]}]}, r"lists\.0\.term: unknown key; did you mean 'terms'"),
    ],
)
def test_faulty_lists_are_told_with_their_place(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(Options, options, "guards.terms.options")


def test_has_no_options_in_the_profile() -> None:
    with pytest.raises(ConfigError):
        build({"lists": []}, ModelStore())
