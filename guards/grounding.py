"""Whether an answer rests on the request's documents, by sentence and as a whole: a few counts of words, weighed.

What no document says shows in words: some are new, pairs of known words are new, no single sentence of a document
covers the claim, numbers come from nowhere, the writer speaks of himself. This measures support by the documents, not
truth; documents in another language than the answer support little. No embeddings: they added nothing to these counts.
A profile can have each sentence judged by a model instead: `guards.grounding_nli`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import msgspec

from guards.answers import answer_texts, turns
from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.folding import fold
from guards.grounding_nli import Entailment
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.heads import logistic
from guards.models import ModelStore
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.sentences import Sentence, sentences
from guards.support import is_claim, number
from guards.text import texts_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit
from guards.words import content_stems, names, numbers, stem, words

__all__ = ["MAX_CHARS", "GroundingGuard", "Profile", "build"]

RANGE_FROM: Final = 0.5  # a sentence at this risk or more is marked
MAX_COVERED: Final = 64  # claims that are held against each sentence of the documents; later ones against all at once
NUMBER_RISK: Final = 0.9  # a number that neither documents nor conversation have
NAME_RISK: Final = 0.7  # names are told by their capital letters alone, which nouns have too in German

# Log odds of no support, by docs/models/hallucination.md. Each count weighs about as much as any other when measured in
# its standard deviations, new words twice; fitted weights were better on the set they knew and worse on the others.
NEW_WORDS_WEIGHT: Final = 2.2  # of ln(1 + words that no document has), function words too
NEW_PAIRS_WEIGHT: Final = 1.85  # of the share of word pairs that no document has
NEW_CONTENT_WEIGHT: Final = 2.3  # of the share of content words that no document has
COVER_WEIGHT: Final = -2.15  # of the share of content words that one sentence of a document has
FIRST_PERSON_WEIGHT: Final = 1.9
NEW_NUMBER_WEIGHT: Final = 1.4
NEGATION_WEIGHT: Final = 0.8  # negated here and not in the sentence that covers it, or the other way round
CONSTANT: Final = -1.8

_FIRST_PERSON: Final = frozenset({"i", "me", "my", "i'm", "i've", "i’m", "i’ve"})
_NEGATIONS: Final = frozenset(
    re.findall(
        r"\S+",
        """not no never none nobody nothing neither nor without cannot don't doesn't didn't isn't wasn't aren't weren't
        won't can't nicht kein keine nie niemals ohne ne pas jamais sans nunca ningun sin non mai senza nao sem""",
    )
)


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.hallucination`` in a profile; the two last are for ``nli``, a classifier of pairs of texts.

    ``labels``: which of its labels is `entailment`, where its own name for it is another.
    """

    backend: Literal["counts", "nli"] = "counts"
    model: dict[str, Any] | None = None
    labels: dict[str, Literal["entailment"]] = {}


class _Source(NamedTuple):
    """A document in words, made once per text."""

    stems: frozenset[str]  # of all words, function words too
    pairs: frozenset[tuple[str, str]]
    numbers: frozenset[str]
    words: frozenset[str]
    sentences: tuple[tuple[frozenset[str], bool], ...]  # content stems, and whether it is negated


class _Claim(NamedTuple):
    """A sentence of the answer that says something: its place and its counts."""

    sentence: Sentence
    text_index: int
    new: frozenset[str]
    pairs: int
    new_pairs: int
    content: int
    new_content: int
    covered: float  # content words that one sentence of a document has
    first_person: bool
    new_number: bool
    negation: bool


class GroundingGuard:
    """Kinds `unsupported`, `unsupported_number` and `unsupported_name`, a hit of each for every exchange.

    The score of `unsupported` is that of the worst sentence or of the answer as a whole, whichever is higher; with
    ``entailment``, which judges sentences alone, that of the worst sentence.
    """

    name = "hallucination"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["exchange"] = "exchange"
    options_type = NoOptions

    def __init__(self, entailment: Entailment | None = None) -> None:
        self._entailment = entailment
        self.version = "2" if entailment is None else f"2+{entailment.version}"

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """False without an answer in words, or when the request has no documents."""
        if not answer_texts(unit):
            return False
        return unit.exchange.messages is None or any(document.text.strip() for document in unit.exchange.documents)

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Nothing: words decide, or a model of pairs, which has no use for embeddings."""
        return Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Per exchange three hits, or ``Failure(REQUEST_MISSING)`` where request and documents are unknown."""
        return [self._check(unit) for unit in units]

    def _check(self, unit: Unit) -> Result:
        if unit.exchange.messages is None:
            return Failure(FailureCode.REQUEST_MISSING)
        if _too_large(unit):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        known_numbers, known_stems = _given(unit)
        claims = _claims(unit, known_numbers)
        risks = [_risk([claim]) for claim in claims]
        whole = _risk(claims) if claims else 0.0
        if self._entailment is not None:
            documents = [document.text for document in unit.exchange.documents if document.text.strip()]
            judged = self._entailment.risks([claim.sentence.text for claim in claims], documents)
            risks[: len(judged)] = judged  # the counts stand in for what it leaves out
            whole = 0.0
        places = [_place(claim) for claim, risk in zip(claims, risks, strict=True) if round(risk, 3) >= RANGE_FROM]
        unsupported = Hit("unsupported", round(max(whole, *risks, 0.0), 3), tuple(places))
        return [unsupported, *_details(claims, known_numbers, known_stems)]


def _place(claim: _Claim) -> Range:
    return Range(claim.sentence.start, claim.sentence.end, claim.text_index)


def _too_large(unit: Unit) -> bool:
    answers = (text.text for _, text in answer_texts(unit))
    documents = (document.text for document in unit.exchange.documents)
    return any(len(text) > MAX_CHARS for text in (*answers, *documents))


def _risk(claims: Sequence[_Claim]) -> float:
    """The risk of claims taken together, 0..1."""
    content = sum(claim.content for claim in claims)
    pairs = sum(claim.pairs for claim in claims)
    new = frozenset(itertools.chain.from_iterable(claim.new for claim in claims))
    new_pairs = sum(claim.new_pairs for claim in claims) / pairs if pairs else float(bool(new))
    return logistic(
        NEW_WORDS_WEIGHT * math.log1p(len(new))
        + NEW_PAIRS_WEIGHT * new_pairs
        + NEW_CONTENT_WEIGHT * sum(claim.new_content for claim in claims) / content
        + COVER_WEIGHT * sum(claim.covered for claim in claims) / content
        + FIRST_PERSON_WEIGHT * any(claim.first_person for claim in claims)
        + NEW_NUMBER_WEIGHT * any(claim.new_number for claim in claims)
        + NEGATION_WEIGHT * any(claim.negation for claim in claims)
        + CONSTANT
    )


def _claims(unit: Unit, known_numbers: frozenset[str]) -> list[_Claim]:
    sources = [_source(document.text) for document in unit.exchange.documents if document.text.strip()]
    stems = frozenset[str]().union(*(source.stems for source in sources))
    pairs = frozenset[tuple[str, str]]().union(*(source.pairs for source in sources))
    known_words = frozenset[str]().union(*(source.words for source in sources))
    claims: list[_Claim] = []
    for index, text in answer_texts(unit):
        found = sentences(text.text)
        for sentence in found:
            if not is_claim(sentence.text, alone=len(found) == 1):
                continue
            said = words(sentence.text)
            low = [word.text.lower() for word in said]
            content = content_stems(said)
            if not content:
                continue
            negated = not _NEGATIONS.isdisjoint(low)
            cover, negation = (
                _cover(frozenset(content), negated, sources)
                if len(claims) < MAX_COVERED
                else (sum(word in stems for word in set(content)) / len(set(content)), False)
            )
            claims.append(
                _Claim(
                    sentence=sentence,
                    text_index=index,
                    new=frozenset(stem(word) for word in low) - stems,
                    pairs=len(low) - 1,
                    new_pairs=sum(pair not in pairs for pair in itertools.pairwise(low)),
                    content=len(content),
                    new_content=sum(word not in stems for word in content),
                    covered=cover * len(content),
                    first_person=any(word in _FIRST_PERSON and word not in known_words for word in low),
                    new_number=any(_new_numbers(sentence.text, known_numbers)),
                    negation=negation,
                )
            )
    return claims


def _cover(content: frozenset[str], negated: bool, sources: Iterable[_Source]) -> tuple[float, bool]:
    """How much of the claim the one sentence that has most of it has, and whether only one of the two is negated."""
    best, unlike = 0, False
    for source in sources:
        for stems, denies in source.sentences:
            shared = len(content & stems)
            if shared > best:
                best, unlike = shared, denies != negated
    return best / len(content), unlike or (best == 0 and negated)


def _given(unit: Unit) -> tuple[frozenset[str], frozenset[str]]:
    """Numbers and stems of the documents, the conversation and what the system and tools said."""
    texts = [document.text for document in unit.exchange.documents] + [text for _, text in turns(unit.exchange)]
    texts += [text.text for text in texts_of(unit.exchange, "request") if text.role in ("system", "tool")]
    sources = [_source(text) for text in texts if text.strip() and len(text) <= MAX_CHARS]
    given_numbers = frozenset[str]().union(*(source.numbers for source in sources))
    return given_numbers, frozenset[str]().union(*(source.stems for source in sources))


def _new_numbers(text: str, known: frozenset[str]) -> Iterable[re.Match[str]]:
    """Numbers that nobody gave. Those of one digit are often the writer's own count: "the 3 of them"."""
    return (m for m in numbers(text) if len(m.group()) > 1 and number(m.group()) not in known)


def _details(claims: Sequence[_Claim], known_numbers: frozenset[str], known_stems: frozenset[str]) -> list[Hit]:
    """Numbers and names in the claims that neither the documents nor the conversation have."""
    new_numbers: list[Range] = []
    new_names: list[Range] = []
    for claim in claims:
        text = claim.sentence.text
        new_numbers.extend(_range(claim, match) for match in _new_numbers(text, known_numbers))
        new_names.extend(_range(claim, m) for m in names(text) if stem(fold(m.group()).text) not in known_stems)
    return [
        Hit("unsupported_number", NUMBER_RISK if new_numbers else 0.0, tuple(new_numbers)),
        Hit("unsupported_name", NAME_RISK if new_names else 0.0, tuple(new_names)),
    ]


def _range(claim: _Claim, match: re.Match[str]) -> Range:
    start = claim.sentence.start
    return Range(start + match.start(), start + match.end(), claim.text_index)


@lru_cache(maxsize=512)  # documents come again and again; 512 of 2,000 characters hold about 50 MB
def _source(text: str) -> _Source:
    found = words(text)
    low = [word.text.lower() for word in found]
    parts = [words(sentence.text) for sentence in sentences(text)]
    return _Source(
        stems=frozenset(map(stem, low)),
        pairs=frozenset(itertools.pairwise(low)),
        numbers=frozenset(number(match.group()) for match in numbers(text)),
        words=frozenset(low),
        sentences=tuple(
            (frozenset(content_stems(part)), not _NEGATIONS.isdisjoint(word.text.lower() for word in part))
            for part in parts
        ),
    )


def build(options: Mapping[str, Any], models: ModelStore) -> GroundingGuard:
    """The guard; only ``nli`` needs a model. Raises `ConfigError` for an option, `ModelMissingError` without it."""
    profile = options_of(Profile, options, "guards.hallucination")
    assert isinstance(profile, Profile)
    if profile.backend == "counts":
        return GroundingGuard()
    if profile.model is None:
        raise ConfigError("guards.hallucination: the backend nli needs `model`")
    classifier = models.classifier(spec_of(profile.model, "guards.hallucination.model"))
    return GroundingGuard(Entailment(classifier, profile.labels))
