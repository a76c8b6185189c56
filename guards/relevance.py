"""Whether an answer is about what the user asked: the likeness of the two in the shared encoder, or a cross-encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from guards.answers import answer_texts, is_pleasantry, is_refusal, question, turns
from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.guard import Needs, NoOptions, Result
from guards.models import ModelStore
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.types import Failure, FailureCode, Hit, Stage, Unit
from guards.words import content_stems, english_share, words

if TYPE_CHECKING:
    from guards.models.transformer import Classifier

__all__ = ["MAX_CHARS", "Profile", "RelevanceGuard", "build"]

MAX_CHARS: Final = 131_072
OPENING_CHARS: Final = 4_000  # an answer's subject shows in its opening; a whole long one would cost seconds
CONTEXT_CHARS: Final = 1_000  # of the turns before a short question
SHORT_QUESTION_WORDS: Final = 12  # "And how so?" is about what was said before

# Risk is a logistic of the cosine: 0.97 at 0, 0.5 at the middle, 0.01 at 0.5. In English unrelated pairs lie below 0.2
# and answers above 0.35 (95 in 100 each, XQuAD); the encoder is English, and in other languages unrelated texts lie
# higher: the middle moves by up to FOREIGN_SHIFT.
MIDDLE: Final = 0.22
SCALE: Final = 0.06
FOREIGN_SHIFT: Final = 0.12
OVERLAP_WEIGHT: Final = 0.15  # added to the cosine when the answer repeats all content words of the question

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


class RelevanceGuard:
    """Kind `irrelevant`, one hit for every exchange, however low the score.

    With ``pairs`` it asks that cross-encoder, else the shared encoder, whose version is part of its own.
    """

    name = "relevance"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["exchange"] = "exchange"
    options_type = NoOptions

    def __init__(self, model_version: str, pairs: Classifier | None = None) -> None:
        self.version = f"1+{model_version}"
        self._pairs = pairs

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """False without an answer in words (tool calls alone) or without a question of the user."""
        if not answer_texts(unit):
            return False
        return unit.exchange.messages is None or bool(question(unit.exchange).strip())

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Embeddings of the question, of the turns before it if it is short, and of the answer's opening."""
        if self._pairs is not None or unit.exchange.messages is None or _too_large(unit):
            return Needs()
        answer = _answer(unit)
        return Needs(embed=(answer, *_asked(unit))) if not _needs_no_look(answer) else Needs()

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
        risk = self._likeness_risk(unit, answer, artifacts) if self._pairs is None else self._pair_risk(unit, answer)
        return [Hit("irrelevant", round(risk * _certainty(unit, answer), 3))]

    def _likeness_risk(self, unit: Unit, answer: str, artifacts: Artifacts) -> float:
        vector = artifacts.embedding(answer)
        return min(_risk(asked, answer, float(artifacts.embedding(asked) @ vector)) for asked in _asked(unit))

    def _pair_risk(self, unit: Unit, answer: str) -> float:
        """1 - the highest score of a window of the answer with what was asked."""
        assert self._pairs is not None
        scored = self._pairs.score_pairs([(asked, answer) for asked in _asked(unit)])
        return 1 - max(float(item.risks.max()) for item in scored)


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
    return 1 / (1 + math.exp((cosine + OVERLAP_WEIGHT * overlap - middle) / SCALE))


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
        return RelevanceGuard(models.encoder().version)
    if profile.model is None:
        raise ConfigError("guards.relevance: the backend cross-encoder needs `model`")
    pairs = models.classifier(spec_of(profile.model, "guards.relevance.model"))
    if len(pairs.labels) != 1:
        raise ConfigError(f"guards.relevance.model: a cross-encoder has one output, this has {', '.join(pairs.labels)}")
    return RelevanceGuard(pairs.version, pairs)
