"""Whether an answer is about what the user asked: the likeness of the two in the shared encoder, or a cross-encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from guards.answers import answer_texts, is_pleasantry, is_refusal, question, turns
from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.models import ModelStore
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.relevance_cross import CrossEncoder
from guards.types import Failure, FailureCode, Hit, Stage, Unit
from guards.words import content_stems, english_share, words

__all__ = ["MAX_CHARS", "Backend", "Likeness", "Profile", "RelevanceGuard", "build"]

OPENING_CHARS: Final = 4_000  # an answer's subject shows in its opening; a whole long one would cost seconds
CONTEXT_CHARS: Final = 1_000  # of the turns before a short question
SHORT_QUESTION_WORDS: Final = 12  # "And how so?" is about what was said before

# Risk is a logistic of cosine and shared words: 0.97 at 0, 0.5 at the middle, steep above it and gentle below, where it
# still ranks answers (0.1 at 0.55). In English unrelated pairs lie below 0.2 and answers above 0.35 by cosine alone (95
# in 100 each, XQuAD); the encoder is English, and in other languages unrelated texts lie higher: the middle moves by up
# to FOREIGN_SHIFT.
MIDDLE: Final = 0.22
SCALE: Final = 0.06
SAFE_SCALE: Final = 0.15
FOREIGN_SHIFT: Final = 0.12
OVERLAP_WEIGHT: Final = 0.5  # added to the cosine when the answer repeats all content words of the question

# "Teeth" may be the right answer to a question that shares no word with it: few words cannot show that an answer is
# off the subject, so the risk grows with them.
FULL_ANSWER_WORDS: Final = 8
FULL_QUESTION_WORDS: Final = 4
CLARIFYING_WORDS: Final = 25  # an answer that only asks back is half as risky


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.relevance`` in a profile; ``model`` is for ``cross-encoder``: one output, high when the texts belong
    together, such as those trained on MS MARCO."""

    backend: Literal["encoder", "cross-encoder"] = "encoder"
    model: dict[str, Any] | None = None


class Backend(Protocol):
    """What compares an answer with what was asked."""

    @property
    def version(self) -> str:
        """The model's."""

    def needs(self, asked: Sequence[str], answer: str) -> tuple[str, ...]:
        """What `risk` will ask the shared encoder for; cheap, pure."""

    def risk(self, asked: Sequence[str], answer: str, artifacts: Artifacts) -> float:
        """How unlikely, 0..1, it is that the answer is about any of what may have been asked."""


class Likeness:
    """The shared encoder's cosine and the words that both have."""

    def __init__(self, encoder_version: str) -> None:
        self.version = encoder_version

    def needs(self, asked: Sequence[str], answer: str) -> tuple[str, ...]:
        return (answer, *asked)

    def risk(self, asked: Sequence[str], answer: str, artifacts: Artifacts) -> float:
        vector = artifacts.embedding(answer)
        return min(_risk(text, answer, float(artifacts.embedding(text) @ vector)) for text in asked)


class RelevanceGuard:
    """Kind `irrelevant`, one hit for every exchange, however low the score."""

    name = "relevance"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["exchange"] = "exchange"
    options_type = NoOptions

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.version = f"2+{backend.version}"

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """False without an answer in words (tool calls alone) or without a question of the user."""
        if not answer_texts(unit):
            return False
        return unit.exchange.messages is None or bool(question(unit.exchange).strip())

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Embeddings of the question, of the turns before it if it is short, and of the answer's opening; of these
        nothing for a cross-encoder."""
        if unit.exchange.messages is None or _too_large(unit):
            return Needs()
        answer = _answer(unit)
        return Needs() if _needs_no_look(answer) else Needs(embed=self._backend.needs(_asked(unit), answer))

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Per exchange one hit, or ``Failure(REQUEST_MISSING)``. A refusal is an answer: its risk is 0."""
        return [self._check(unit, artifacts) for unit in units]

    def _check(self, unit: Unit, artifacts: Artifacts) -> Result:
        if unit.exchange.messages is None:
            return Failure(FailureCode.REQUEST_MISSING)
        if _too_large(unit):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        answer = _answer(unit)
        if _needs_no_look(answer):
            return [Hit("irrelevant", 0.0)]
        risk = self._backend.risk(_asked(unit), answer, artifacts)
        return [Hit("irrelevant", round(risk * _certainty(unit, answer), 3))]


def _answer(unit: Unit) -> str:
    return "\n".join(text.text for _, text in answer_texts(unit))[:OPENING_CHARS]


def _asked(unit: Unit) -> list[str]:
    """What the answer may be about: the last user message and, if that is short, the turns up to it."""
    last = question(unit.exchange)
    if len(words(last)) > SHORT_QUESTION_WORDS:
        return [last]
    before = "\n".join(text for _, text in turns(unit.exchange)[-3:])
    return [last] if before == last else [last, before[-CONTEXT_CHARS:]]


def _too_large(unit: Unit) -> bool:
    return len(question(unit.exchange)) > MAX_CHARS or any(len(text.text) > MAX_CHARS for _, text in answer_texts(unit))


def _needs_no_look(answer: str) -> bool:
    return is_refusal(answer) or is_pleasantry(answer)


def _risk(asked: str, answer: str, cosine: float) -> float:
    question_words, answer_words = words(asked), words(answer)
    stems = set(content_stems(question_words))
    overlap = len(stems & set(content_stems(answer_words))) / len(stems) if stems else 0.0
    middle = MIDDLE + FOREIGN_SHIFT * (1 - english_share([*question_words, *answer_words]))
    margin = cosine + OVERLAP_WEIGHT * overlap - middle
    return 1 / (1 + math.exp(margin / (SAFE_SCALE if margin > 0 else SCALE)))


def _certainty(unit: Unit, answer: str) -> float:
    """How much the words can tell, 0..1."""
    count = len(words(answer))
    certainty = min(1.0, count / FULL_ANSWER_WORDS, len(words(question(unit.exchange))) / FULL_QUESTION_WORDS)
    asks_back = answer.rstrip().endswith("?") and count <= CLARIFYING_WORDS
    return certainty / 2 if asks_back else certainty


def build(options: Mapping[str, Any], models: ModelStore) -> RelevanceGuard:
    """The guard, its model loaded. Raises `ConfigError` for an option, `ModelMissingError` without the model."""
    profile = options_of(Profile, options, "guards.relevance")
    assert isinstance(profile, Profile)
    if profile.backend == "encoder":
        return RelevanceGuard(Likeness(models.encoder().version))
    if profile.model is None:
        raise ConfigError("guards.relevance: the backend cross-encoder needs `model`")
    return RelevanceGuard(CrossEncoder(models.classifier(spec_of(profile.model, "guards.relevance.model"))))
