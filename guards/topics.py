"""Topics that should not come up, told by a description and examples: likeness in the shared encoder.

A text is looked at in passages of a few sentences, so that one aside in a long text is seen, and where it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.policy import options_of
from guards.sentences import Sentence, passages
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit
from guards.words import english_share, words

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["MAX_CHARS", "Options", "Topic", "TopicsGuard", "build"]


PASSAGE_CHARS: Final = 200  # a sentence or two: more would dilute the one that matters
RANGE_FROM: Final = 0.5  # passages at this score or more are marked

# Risk is a logistic of the likeness, fitted to 800 pairs of a topic and a text (docs/guards/topics.md), so that 0.5
# means: as likely on the topic as not, where one text in five is on it. The encoder is English: in other languages all
# texts are alike, so the middle moves where both the topic's words and the text's are foreign.
MIDDLE: Final = 0.25
SCALE: Final = 0.037
FOREIGN_SHIFT: Final = 0.22


class Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``description``: a sentence on what it is about; ``examples``: texts that are on it. One of the two is needed."""

    name: str
    description: str = ""
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: a topic needs one, it is the kind of its findings")
        if not any(text.strip() for text in (self.description, *self.examples)):
            raise ValueError("a topic needs a description or examples")
        for number, text in enumerate(self.examples):
            if not text.strip():
                raise ValueError(f"examples.{number}: is empty")

    @property
    def prototypes(self) -> tuple[str, ...]:
        """The texts that stand for it."""
        return (self.description, *self.examples) if self.description.strip() else self.examples


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """``guards.topics.options``. Texts of ``skip_roles`` are not looked at."""

    topics: tuple[Topic, ...] = ()
    skip_roles: tuple[str, ...] = ("system", "developer")

    def __post_init__(self) -> None:
        names = [topic.name for topic in self.topics]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"topics: two are named {name!r}")


class TopicsGuard:
    """Kinds are the names of the topics; a hit of each for every text with a word in it, however low the score."""

    name = "topics"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "text"
    options_type: type[msgspec.Struct] = Options

    def __init__(self, encoder_version: str) -> None:
        self.version = f"1+{encoder_version}"

    def applies(self, unit: Unit, options: Options) -> bool:
        return bool(options.topics) and unit.texts[0].role not in options.skip_roles

    def needs(self, unit: Unit, options: Options) -> Needs:
        """Embeddings of the text's passages and of what stands for the topics; these stay in the cache."""
        found = _passages(unit)
        if not found:
            return Needs()
        prototypes = (text for topic in options.topics for text in topic.prototypes)
        return Needs(embed=tuple(dict.fromkeys((*(passage.text for passage in found), *prototypes))))

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """Per text a hit for each topic, with the passages that are on it, or ``INPUT_TOO_LARGE``."""
        return [_check(unit, options, artifacts) for unit in units]


def _check(unit: Unit, options: Options, artifacts: Artifacts) -> Result:
    if len(unit.texts[0].text) > MAX_CHARS:
        return Failure(FailureCode.INPUT_TOO_LARGE)
    found = _passages(unit)
    if not found:
        return ()
    vectors = np.stack([artifacts.embedding(passage.text) for passage in found])
    hits: list[Hit] = []
    for topic in options.topics:
        prototypes = np.stack([artifacts.embedding(text) for text in topic.prototypes])
        middle = prototypes.mean(axis=0)
        middle /= np.linalg.norm(middle) or 1.0
        # The closest prototype and the middle of all, half and half: one odd example decides less.
        likeness = ((vectors @ prototypes.T).max(axis=1) + vectors @ middle) / 2
        foreign = max(map(_foreign_share, topic.prototypes))
        scores = [
            _score(float(value) - FOREIGN_SHIFT * min(foreign, _foreign_share(passage.text)))
            for value, passage in zip(likeness, found, strict=True)
        ]
        places = tuple(
            Range(passage.start, passage.end)
            for passage, score in zip(found, scores, strict=True)
            if score >= RANGE_FROM
        )
        hits.append(Hit(topic.name, max(scores), places))
    return hits


def _score(likeness: float) -> float:
    return round(1 / (1 + math.exp((MIDDLE - likeness) / SCALE)), 3)


@lru_cache(maxsize=4_096)  # prototypes, and passages once for each topic
def _foreign_share(text: str) -> float:
    return 1 - english_share(words(text))


def _passages(unit: Unit) -> tuple[Sentence, ...]:
    text = unit.texts[0].text
    return _cut(text) if len(text) <= MAX_CHARS else ()


@lru_cache(maxsize=64)  # `needs` and `check` ask for the same text; 64 of the longest hold about 20 MB
def _cut(text: str) -> tuple[Sentence, ...]:
    return tuple(passages(text, PASSAGE_CHARS))


def build(options: Mapping[str, Any], models: ModelStore) -> TopicsGuard:
    """The guard, its encoder loaded. Raises `ConfigError` for an option, `ModelMissingError` without the encoder."""
    options_of(NoOptions, options, "guards.topics")
    return TopicsGuard(models.encoder().version)
