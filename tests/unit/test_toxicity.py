"""The toxicity guard on its linear backend: what it scores, where, and which backend stands behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.errors import ConfigError, ModelMissingError
from guards.guard import NoOptions
from guards.models import ModelStore
from guards.toxicity import MAX_PART_CHARS, OPENING_CHARS, Lexical, ToxicityGuard, build
from guards.types import Exchange, Failure, Hit, Stage, Text, Unit

INSULT = "You are a stupid idiot."
FILLER = "The meeting starts at ten, and the weather is nice today. Please read the report before we discuss it. "


@pytest.fixture(scope="module")
def guard() -> ToxicityGuard:
    return build({}, ModelStore())


ARTIFACTS = Artifacts(ModelStore().encoder, None)


def unit(text: str, role: str = "user") -> Unit:
    return Unit((Text(text, role),), Exchange(), "request")


def hit(guard: ToxicityGuard, text: str, role: str = "user", kind: str = "toxicity") -> Hit:
    (result,) = guard.check([unit(text, role)], NoOptions(), ARTIFACTS)
    assert not isinstance(result, Failure)
    assert [hit.kind for hit in result] == ["toxicity", "severe_toxicity"]
    return next(hit for hit in result if hit.kind == kind)


def test_every_text_gets_a_score(guard: ToxicityGuard) -> None:
    assert hit(guard, INSULT).score > 0.9
    assert hit(guard, "Thank you, that was very helpful!").score < 0.1
    assert hit(guard, "").score < 0.1
    assert hit(guard, "").kind == "toxicity"


@pytest.mark.parametrize(
    "text", ["People like you should not be allowed to live.", "Nobody wants you here, crawl back under your rock."]
)
def test_what_is_hostile_without_a_swear_word_is_seen(guard: ToxicityGuard, text: str) -> None:
    assert hit(guard, text).score > 2 * hit(guard, text, "tool").score


def test_an_insult_is_severe_and_a_curse_is_not(guard: ToxicityGuard) -> None:
    for text in ("You are a worthless piece of shit, go kill yourself.", "You fucking moron, I hate you."):
        assert hit(guard, text, kind="severe_toxicity").score > 0.9
    for text in ("Fuck this, the build is broken.", "What the hell is going on?", "This is stupid."):
        severe = hit(guard, text, kind="severe_toxicity").score
        assert severe < 0.7 < hit(guard, text).score


@given(st.text(max_size=80) | st.sampled_from([INSULT, "shut up", "go die"]))
def test_severe_is_never_more_than_toxic(guard: ToxicityGuard, text: str) -> None:
    assert hit(guard, text, kind="severe_toxicity").score <= hit(guard, text).score


@pytest.mark.parametrize("term", ["gay", "homosexual", "Muslim", "Jewish", "Black", "transgender", "blind"])
def test_naming_a_group_is_not_toxic(guard: ToxicityGuard, term: str) -> None:
    assert hit(guard, f"My colleague is a {term} woman and explained the project to me.").score < 0.3
    assert hit(guard, f"All {term} people are filthy scum and should be shot.").score > 0.7


def test_the_head_reads_the_opening_that_is_announced(guard: ToxicityGuard) -> None:
    long = FILLER * 100
    assert guard.needs(unit(long), NoOptions()).embed == (long[:OPENING_CHARS],)
    assert guard.needs(unit(long, "tool"), NoOptions()).embed == ()


def test_the_range_of_a_short_text_is_the_whole(guard: ToxicityGuard) -> None:
    (part,) = hit(guard, INSULT).ranges
    assert (part.start, part.end) == (0, len(INSULT))


@pytest.mark.parametrize("sentences", [1, 10, 100])
def test_one_insult_in_a_long_answer_is_found_and_placed(guard: ToxicityGuard, sentences: int) -> None:
    text = FILLER * sentences + INSULT + " " + FILLER * sentences
    found = hit(guard, text)
    assert found.score > 0.9
    (part,) = found.ranges
    assert "idiot" in text[part.start : part.end]
    assert part.end - part.start < 100


def test_an_insult_in_a_text_without_full_stops_is_found(guard: ToxicityGuard) -> None:
    words = "and the report was sent to the office in the morning "
    found = hit(guard, words * 100 + "you fucking bitch " + words * 100)
    assert found.score > 0.9
    assert all(part.end - part.start <= MAX_PART_CHARS for part in found.ranges)


def test_a_long_harmless_text_stays_harmless(guard: ToxicityGuard) -> None:
    assert hit(guard, FILLER * 200).score < 0.2


def test_styled_letters_and_invisible_characters_hide_nothing(guard: ToxicityGuard) -> None:
    assert hit(guard, "𝒀𝒐𝒖 𝒂𝒓𝒆 𝒂 𝒔𝒕𝒖𝒑𝒊𝒅 𝒊𝒅𝒊𝒐𝒕").score > 0.9
    assert hit(guard, "You are a stu\u200bpid id\u200diot").score > 0.9


@pytest.mark.parametrize(
    ("role", "stage", "applies"),
    [
        ("user", "request", True),
        ("tool", "request", True),
        ("assistant", "response", True),
        ("assistant", "request", False),  # judged when it was the answer
        ("system", "request", False),
        ("document", "request", False),
    ],
)
def test_roles(guard: ToxicityGuard, role: str, stage: Stage, applies: bool) -> None:
    assert guard.applies(Unit((Text(INSULT, role),), Exchange(), stage), NoOptions()) is applies


@pytest.mark.parametrize("options", [{}, {"model": {"source": "detoxify:original"}}])
def test_detoxify_never_falls_back(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="tidegate models pull"):
        build({"backend": "detoxify", **options}, ModelStore(tmp_path))


def test_unknown_options_and_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"guards\.toxicity"):
        build({"backend": "perspective"}, ModelStore())
    with pytest.raises(ConfigError, match="backend"):
        build({"backnd": "detoxify"}, ModelStore())


@given(st.lists(st.text(max_size=60) | st.sampled_from(["you idiot", "what the hell", "a kind person"]), max_size=4))
def test_the_words_weigh_what_the_package_says(texts: list[str]) -> None:
    from profanity_check import predict_prob

    odds = Lexical()._raw(texts)
    expected = predict_prob(texts) if texts else []
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(expected, abs=1e-8)
