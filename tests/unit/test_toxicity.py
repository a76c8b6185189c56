"""The toxicity guard on its linear backend: what it scores, where, and which backend stands behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from guards.artifacts import Artifacts
from guards.errors import ConfigError, ModelMissingError
from guards.guard import NoOptions
from guards.models import ModelStore
from guards.toxicity import MAX_PART_CHARS, ToxicityGuard, build
from guards.types import Exchange, Failure, Hit, Stage, Text, Unit

INSULT = "You are a stupid idiot."
FILLER = "The meeting starts at ten, and the weather is nice today. Please read the report before we discuss it. "


@pytest.fixture(scope="module")
def guard() -> ToxicityGuard:
    return build({}, ModelStore())


def hit(guard: ToxicityGuard, text: str) -> Hit:
    (result,) = guard.check([Unit((Text(text, "user"),), Exchange(), "request")], NoOptions(), Artifacts(None, None))
    assert not isinstance(result, Failure)
    (only,) = result
    return only


def test_every_text_gets_a_score(guard: ToxicityGuard) -> None:
    assert hit(guard, INSULT).score > 0.9
    assert hit(guard, "Thank you, that was very helpful!").score < 0.1
    assert hit(guard, "").score < 0.1
    assert hit(guard, "").kind == "toxicity"


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
