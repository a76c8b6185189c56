"""Readability: plain and heavy prose, what is no prose, languages, and that nothing is fetched."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.errors import ConfigError
from guards.models import ModelStore
from guards.policy import options_of
from guards.readability import LANGUAGES, ReadabilityGuard, ReadabilityOptions, build
from guards.types import Exchange, Failure, Hit, Location, Stage, Text, Unit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PLAIN = (
    "The cat sat on the mat. It was warm in the sun. A dog came by and said hello. The cat did not like the dog. "
    "It got up and went home. There was milk in the bowl. The cat drank it all. Then it went to sleep again."
)
HEAVY = (
    "Notwithstanding the aforementioned considerations regarding contractual indemnification, the counterparty's "
    "obligations pertaining to confidentiality, representations and warranties shall survive the termination or "
    "expiration of this agreement, provided that any modification of the limitations of liability hereunder "
    "necessitates unambiguous documentation executed by authorised representatives of the respective organisations."
)
SCHWER = (
    "Ungeachtet der vorstehenden Ausführungen zur vertraglichen Haftungsfreistellung bleiben die Verpflichtungen der "
    "Vertragspartei hinsichtlich der Vertraulichkeit, der Zusicherungen und der Gewährleistungen über die Beendigung "
    "der vorliegenden Vereinbarung hinaus bestehen, sofern nicht eine Abänderung der Haftungsbeschränkungen durch "
    "bevollmächtigte Vertreter der jeweiligen Organisationen unmissverständlich dokumentiert worden ist."
)


@pytest.fixture(scope="module")
def guard() -> ReadabilityGuard:
    return build({}, ModelStore())


def _unit(text: str, role: str = "assistant", stage: Stage = "response") -> Unit:
    return Unit((Text(text, role),), Exchange(), stage)


def _hits(guard: ReadabilityGuard, text: str, **options: Any) -> list[Hit]:
    (result,) = guard.check([_unit(text)], ReadabilityOptions(**options), None)  # type: ignore[arg-type]
    assert not isinstance(result, Failure)
    return list(result)


def _score(guard: ReadabilityGuard, text: str, **options: Any) -> float:
    (hit,) = _hits(guard, text, **options)
    assert hit.kind == "hard_to_read"
    assert bool(hit.ranges) == (hit.score > 0)
    return hit.score


def test_plain_prose_is_no_risk_and_heavy_prose_is_one(guard: ReadabilityGuard) -> None:
    assert _score(guard, PLAIN) == 0.0
    assert _score(guard, HEAVY) > 0.9


def test_the_limit_moves_the_risk(guard: ReadabilityGuard) -> None:
    grade = guard.grade(HEAVY, "en")
    limits = [grade - 20, grade - 6, grade - 2]
    scores = [_score(guard, HEAVY, max_grade=limit) for limit in limits if 0 <= limit <= 30]
    assert len(scores) >= 2
    assert scores == sorted(set(scores), reverse=True)


def test_german_is_judged_by_its_own_formula(guard: ReadabilityGuard) -> None:
    easy = "Die Katze lag in der Sonne. Es war warm. Ein Hund kam vorbei. Die Katze mag ihn nicht. Sie ging ins Haus. "
    assert _score(guard, easy * 2) == 0.0
    assert _score(guard, SCHWER) > 0.5


def test_code_tables_and_links_are_no_prose(guard: ReadabilityGuard) -> None:
    code = "```python\n" + "configuration_manager.initialise_infrastructure(parameters, environment)\n" * 40 + "```\n"
    table = "| responsibility | internationalisation | standardisation |\n" * 20
    link = "https://example.com/internationalisation/standardisation/responsibilities " * 10
    assert _score(guard, f"{PLAIN}\n\n{code}\n{table}\n{link}") == 0.0


def test_items_of_a_list_are_sentences(guard: ReadabilityGuard) -> None:
    items = "\n".join(f"- put the {name} in the bowl and stir" for name in ["milk", "flour", "salt", "egg", "oil"] * 6)
    assert _score(guard, f"How to make it\n\n{items}") == 0.0


def test_abbreviations_end_no_sentence(guard: ReadabilityGuard) -> None:
    dotted = HEAVY.replace(", ", ", e.g. ")
    assert abs(_score(guard, dotted) - _score(guard, HEAVY)) < 0.1


def test_short_texts_give_no_finding(guard: ReadabilityGuard) -> None:
    assert _hits(guard, "Notwithstanding the aforementioned considerations.") == []
    assert _hits(guard, HEAVY, min_words=200) == []


@pytest.mark.parametrize(
    "text", ["Paczka została wysłana dziś rano i dotrze w piątek. " * 6, "荷物は今朝発送され 金曜日に届きます。 " * 20]
)
def test_a_language_without_a_formula_is_skipped(guard: ReadabilityGuard, text: str) -> None:
    assert not guard.applies(_unit(text), ReadabilityOptions())


def test_only_users_and_answers_are_judged(guard: ReadabilityGuard) -> None:
    options = ReadabilityOptions()
    assert guard.applies(_unit(HEAVY), options)
    assert guard.applies(_unit(HEAVY, "user", "request"), options)
    for role in ("system", "tool", "document", "assistant"):
        assert not guard.applies(_unit(HEAVY, role, "request"), options)
    call = Unit((Text(HEAVY, "assistant", Location(message=0, tool_call=0)),), Exchange(), "response")
    assert not guard.applies(call, options)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("it asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    made = build({}, ModelStore())
    for code in LANGUAGES:
        assert made.grade("Xyzzy is no word that any dictionary has but a formula needs none.", code) > 0


@given(st.text(max_size=400))
def test_any_text_has_a_score(guard: ReadabilityGuard, text: str) -> None:
    for hit in _hits(guard, text + " and so on and on we go to the end of it", min_words=10):
        assert 0.0 <= hit.score <= 1.0


@pytest.mark.parametrize(("key", "value"), [("max_grade", -1), ("max_grade", 90), ("min_words", 0)])
def test_options_name_the_fault(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=key):
        options_of(ReadabilityOptions, {key: value}, "guards.readability.options")


# ---------------------------------------------------------------- measured


def test_measured_on_paragraphs_in_three_languages(guard: ReadabilityGuard, capsys: pytest.CaptureFixture[str]) -> None:
    """The same 240 encyclopedia paragraphs in each: a formula of one's own should make them about equally hard."""
    means: dict[str, float] = {}
    for code in ("en", "de", "es"):
        path = DATA / "relevance" / f"xquad_{code}.jsonl"
        if not path.is_file():
            pytest.skip(f"{path} is not there")
        texts = dict.fromkeys(json.loads(line)["context"] for line in path.read_text().splitlines())
        grades = [guard.grade(text, code) for text in texts]
        scores = [hit.score for text in texts for hit in _hits(guard, text)]
        means[code] = fmean(grades)
        share = sum(score >= 0.5 for score in scores) / len(scores)
        with capsys.disabled():
            print(
                f"\nxquad {code}: {len(texts)} paragraphs, grade {means[code]:.1f}, hard_to_read at 0.5: {share:.1%}",
                end="",
            )
    assert max(means.values()) - min(means.values()) < 5


def test_measured_on_chats(guard: ReadabilityGuard, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "traffic" / "exchanges.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        events = [json.loads(line) for line in lines]
    answers = [event["messages"][0]["content"] for event in events if "response" in event["schema"]]
    judged = [
        hit.score for text in answers if guard.applies(_unit(text), ReadabilityOptions()) for hit in _hits(guard, text)
    ]
    share = sum(score >= 0.5 for score in judged) / len(judged)
    with capsys.disabled():
        print(f"\n{len(judged)} of {len(answers)} chat answers judged, hard_to_read at 0.5: {share:.1%}", end="")
    assert share < 0.05
