"""The topics guard: likeness to what stands for a topic, in which passage, and what a policy may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from guards.artifacts import Artifacts
from guards.errors import ConfigError, ModelMissingError
from guards.guard import Result
from guards.models import ModelStore
from guards.policy import options_of
from guards.topics import MAX_CHARS, Options, Topic, TopicsGuard, build
from guards.types import Exchange, Failure, FailureCode, Hit, Text, Unit

WORDS = ("casino", "poker", "doctor", "fever", "weather", "bread")


class WordEncoder:
    """Texts are alike as far as they share words."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = np.array([[text.lower().count(word) for word in WORDS] for text in texts], dtype=np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)  # type: ignore[no-any-return]


GUARD = TopicsGuard("words")
GAMBLING = Topic("gambling", "Casino and poker.", ("the casino", "a game of poker"))
HEALTH = Topic("health", "A doctor on fever.")


def unit(text: str, role: str = "user") -> Unit:
    return Unit((Text(text, role),), Exchange(), "request")


def check(text: str, *topics: Topic) -> Result:
    artifacts = Artifacts(WordEncoder, None)
    options = Options(topics)
    artifacts.prepare(GUARD.needs(unit(text), options).embed, ())
    (result,) = GUARD.check([unit(text)], options, artifacts)
    return result


def hits(text: str, *topics: Topic) -> list[Hit]:
    result = check(text, *topics)
    assert not isinstance(result, Failure)
    return list(result)


def test_every_topic_gets_a_score_of_its_own() -> None:
    gambling, health = hits("Where is the casino with poker?", GAMBLING, HEALTH)
    assert (gambling.kind, health.kind) == ("gambling", "health")
    assert gambling.score > 0.9
    assert health.score < 0.1


def test_a_text_about_something_else_scores_low() -> None:
    assert [hit.score < 0.1 for hit in hits("The weather is fine and the bread is good.", GAMBLING, HEALTH)] == [
        True
    ] * 2


def test_an_aside_in_a_long_text_is_seen_and_marked() -> None:
    filler = "Then they spoke of something else for a while. " * 12
    text = f"🙂 {filler}We met in the casino for a game of poker. {filler}"
    (hit,) = hits(text, GAMBLING)
    assert hit.score > 0.5
    marked = "".join(text[part.start : part.end] for part in hit.ranges)
    assert "casino" in marked
    assert len(marked) < len(text) / 2


def test_a_text_without_words_is_on_no_topic() -> None:
    assert hits("", GAMBLING) == hits(" \n…!", GAMBLING) == []


def test_a_topic_may_have_examples_alone_or_a_description_alone() -> None:
    (only_examples,) = hits("poker", Topic("a", examples=("poker",)))
    (only_description,) = hits("poker", Topic("a", "poker"))
    assert only_examples.score == only_description.score > 0.9


def test_a_text_over_the_cap_is_refused() -> None:
    assert check("poker " * MAX_CHARS, GAMBLING) == Failure(FailureCode.INPUT_TOO_LARGE)


def test_nothing_is_scanned_without_topics_or_for_a_skipped_role() -> None:
    assert not GUARD.applies(unit("poker"), Options())
    assert not GUARD.applies(unit("never speak of poker", "system"), Options((GAMBLING,)))
    assert GUARD.applies(unit("poker", "document"), Options((GAMBLING,)))


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ([{"name": "a"}], r"topics\.0: a topic needs a description or examples"),
        ([{"name": "", "description": "x"}], r"topics\.0: name"),
        ([{"name": "a", "examples": ["x", " "]}], r"topics\.0: examples\.1: is empty"),
        ([{"name": "a", "description": "x"}, {"name": "a", "description": "y"}], "two are named 'a'"),
        ([{"name": "a", "exampels": ["x"]}], r"topics\.0\.exampels: unknown key; did you mean 'examples'"),
    ],
)
def test_faulty_topics_are_told_with_their_place(topics: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(Options, {"topics": topics}, "guards.topics.options")


def test_the_shared_encoder_tells_topics_apart() -> None:
    store = ModelStore()
    try:
        guard = build({}, store)
    except ModelMissingError as error:
        pytest.skip(str(error))
    options = Options(
        (
            Topic("gambling", "Betting, casinos, lotteries and poker.", ("How do I win at roulette?",)),
            Topic("medicine", "Diagnosis, treatment, medicines.", ("What should I take for a headache?",)),
        )
    )
    texts = ["He lost all his money in the casino.", "What are the side effects of aspirin?", "How do I boil an egg?"]
    results = guard.check([unit(text) for text in texts], options, Artifacts(store.encoder, None))
    scores = [[hit.score for hit in result] for result in results]  # type: ignore[union-attr]
    assert scores[0][0] > 0.5 > scores[0][1]
    assert scores[1][1] > 0.5 > scores[1][0]
    assert max(scores[2]) < 0.5


def test_texts_are_found_on_their_own_topic_and_seldom_on_another() -> None:
    store = ModelStore()
    try:
        guard = build({}, store)
    except ModelMissingError as error:
        pytest.skip(str(error))
    sample = yaml.safe_load((Path(__file__).parent / "data" / "topics.yaml").read_text(encoding="utf-8"))
    options = Options(tuple(Topic(one["name"], one["description"], tuple(one["examples"])) for one in sample))
    artifacts = Artifacts(store.encoder, None)
    own: list[float] = []
    other: list[float] = []
    for one in sample:
        for result in guard.check([unit(text) for text in one["texts"]], options, artifacts):
            for hit in result:  # type: ignore[union-attr]
                (own if hit.kind == one["name"] else other).append(hit.score)
    assert sum(score >= 0.5 for score in own) >= 0.8 * len(own)
    assert sum(score >= 0.5 for score in other) <= 0.06 * len(other)
