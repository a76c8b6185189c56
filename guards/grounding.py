"""Whether an answer rests on the request's documents: words first, a model only where words do not decide.

Per sentence of the answer: the share of its content words that the documents have, and of its word pairs, which a
wrong combination of right words lacks. A sentence in between is compared with the passage that is closest in words.
This measures support by the documents, not truth; documents in another language than the answer support little.

With ``backend: nli`` a classifier of entailment judges each sentence instead, with the passages closest in words.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from guards.answers import answer_texts, is_pleasantry, is_refusal, turns
from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.folding import fold
from guards.guard import Needs, NoOptions, Result
from guards.labels import column_of
from guards.models import ModelStore
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.sentences import Sentence, passages, sentences
from guards.text import texts_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit
from guards.words import content_stems, names, numbers, stem, words

if TYPE_CHECKING:
    from guards.models.transformer import Classifier

__all__ = ["MAX_CHARS", "GroundingGuard", "Profile", "build"]

MAX_CHARS: Final = 131_072
PASSAGE_CHARS: Final = 400  # two or three sentences of a document
PAIR_WEIGHT: Final = 0.2  # of word pairs in the support; the rest is single words
DECIDED_BELOW: Final = 0.15  # hardly a word in common: no likeness mends that
DECIDED_ABOVE: Final = 0.85
LIKENESS_WEIGHT: Final = 0.2  # of the embeddings where words do not decide
MAX_COMPARED: Final = 16  # undecided sentences that are embedded (0.3 s at most); those after it go by words alone
NLI_PASSAGES: Final = 3  # compared with each sentence by the classifier of entailment
RANGE_FROM: Final = 0.5  # a sentence at this risk or more is marked
REFUSAL_WORDS: Final = 10  # "I don't know, but it was built in 1889 by …" claims something
NUMBER_RISK: Final = 0.9  # a number that neither documents nor conversation have
NAME_RISK: Final = 0.7  # names are told by their capital letters alone, which nouns have too in German


class _Source(NamedTuple):
    """A document in words, made once per text."""

    stems: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    all_stems: frozenset[str]  # function words too: for names
    numbers: frozenset[str]
    passages: tuple[tuple[str, frozenset[str]], ...]


class _Claim(NamedTuple):
    """A sentence of the answer that says something: its place, its support by words, and what to compare it with."""

    sentence: Sentence
    text_index: int
    support: float
    compare: tuple[str, ...]  # the closest passages; empty where words decide


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.hallucination`` in a profile; the two last are for ``nli``, a classifier of pairs of texts.

    ``labels``: which of its labels is `entailment`, where its own name for it is another.
    """

    backend: Literal["words", "nli"] = "words"
    model: dict[str, Any] | None = None
    labels: dict[str, Literal["entailment"]] = {}


class _Nli(NamedTuple):
    classifier: Classifier
    entailment: int  # the label's column


class GroundingGuard:
    """Kinds `unsupported`, `unsupported_number` and `unsupported_name`, a hit of each for every exchange.

    The score of `unsupported` is that of the worst sentence, 1 - its support.
    """

    name = "hallucination"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["exchange"] = "exchange"
    options_type = NoOptions

    def __init__(self, model_version: str, nli: _Nli | None = None) -> None:
        self.version = f"1+{model_version}"
        self._nli = nli

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """False without an answer in words, or when the request has no documents."""
        if not answer_texts(unit):
            return False
        return unit.exchange.messages is None or any(document.text.strip() for document in unit.exchange.documents)

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Embeddings of the sentences that words do not decide, and of one passage for each."""
        if self._nli is not None or unit.exchange.messages is None or _too_large(unit):
            return Needs()
        compared = [claim for claim in _claims(unit, 1) if claim.compare]
        return Needs(embed=tuple(itertools.chain.from_iterable((c.sentence.text, *c.compare) for c in compared)))

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Per exchange three hits, or ``Failure(REQUEST_MISSING)`` where request and documents are unknown."""
        return [self._check(unit, artifacts) for unit in units]

    def _check(self, unit: Unit, artifacts: Artifacts) -> Result:
        if unit.exchange.messages is None:
            return Failure(FailureCode.REQUEST_MISSING)
        if _too_large(unit):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        claims = _claims(unit, 1 if self._nli is None else NLI_PASSAGES)
        supports = (
            [_support(claim, artifacts) for claim in claims] if self._nli is None else _entailed(claims, self._nli)
        )
        risks = [(claim, round(1 - support, 3)) for claim, support in zip(claims, supports, strict=True)]
        places = [
            Range(claim.sentence.start, claim.sentence.end, claim.text_index)
            for claim, risk in risks
            if risk >= RANGE_FROM
        ]
        unsupported = Hit("unsupported", max((risk for _, risk in risks), default=0.0), tuple(places))
        return [unsupported, *_details(unit, [claim for claim, _ in risks])]


def _support(claim: _Claim, artifacts: Artifacts) -> float:
    if not claim.compare:
        return claim.support
    cosine = float(artifacts.embedding(claim.sentence.text) @ artifacts.embedding(claim.compare[0]))
    return (1 - LIKENESS_WEIGHT) * claim.support + LIKENESS_WEIGHT * min(max(cosine, 0.0), 1.0)


def _entailed(claims: Sequence[_Claim], nli: _Nli) -> list[float]:
    """The support of each claim: how far a passage entails the least entailed part of it."""
    pairs = [(passage, claim.sentence.text) for claim in claims for passage in claim.compare]
    scored = iter(nli.classifier.score_pairs(pairs))
    supports: list[float] = []
    for claim in claims:
        parts = [next(scored).risks[:, nli.entailment] for _ in claim.compare]
        supports.append(float(np.max(parts, axis=0).min()) if parts else claim.support)
    return supports


def _too_large(unit: Unit) -> bool:
    answers = (text.text for _, text in answer_texts(unit))
    documents = (document.text for document in unit.exchange.documents)
    return any(len(text) > MAX_CHARS for text in (*answers, *documents))


def _claims(unit: Unit, passages_each: int) -> list[_Claim]:
    """``passages_each``: of one passage only those claims are compared that words leave open, of more every claim."""
    sources = [_source(document.text) for document in unit.exchange.documents if document.text.strip()]
    known = frozenset(itertools.chain.from_iterable(source.stems for source in sources))
    claims: list[_Claim] = []
    compared = 0
    for index, text in answer_texts(unit):
        found = sentences(text.text)
        for sentence in found:
            if not _is_claim(sentence.text, alone=len(found) == 1):
                continue
            stems = content_stems(words(sentence.text))
            if not stems:
                continue
            support = _lexical_support(stems, known, sources)
            undecided = passages_each > 1 or DECIDED_BELOW < support < DECIDED_ABOVE
            closest = _closest(stems, sources, passages_each) if undecided and compared < MAX_COMPARED else ()
            compared += bool(closest)
            claims.append(_Claim(sentence, index, support, closest))
    return claims


def _is_claim(sentence: str, *, alone: bool) -> bool:
    """Questions, short refusals and pleasantries claim nothing; a single word does only if it is the whole answer."""
    count = len(words(sentence))
    if sentence.endswith(("?", "？")) or is_pleasantry(sentence) or (count <= REFUSAL_WORDS and is_refusal(sentence)):
        return False
    return alone or count > 1


def _lexical_support(stems: Sequence[str], known: frozenset[str], sources: Sequence[_Source]) -> float:
    single = sum(stem in known for stem in stems) / len(stems)
    pairs = list(itertools.pairwise(stems))
    if not pairs:
        return single
    double = sum(any(pair in source.pairs for source in sources) for pair in pairs) / len(pairs)
    return (1 - PAIR_WEIGHT) * single + PAIR_WEIGHT * double


def _closest(stems: Sequence[str], sources: Sequence[_Source], count: int) -> tuple[str, ...]:
    wanted = frozenset(stems)
    candidates = itertools.chain.from_iterable(source.passages for source in sources)
    best = heapq.nlargest(count, candidates, key=lambda passage: len(wanted & passage[1]))
    return tuple(text for text, _ in best)


def _details(unit: Unit, claims: Sequence[_Claim]) -> list[Hit]:
    """Numbers and names in the claims that neither the documents nor the conversation have."""
    texts = [document.text for document in unit.exchange.documents] + [text for _, text in turns(unit.exchange)]
    texts += [text.text for text in texts_of(unit.exchange, "request") if text.role in ("system", "tool")]
    sources = [_source(text) for text in texts if text.strip() and len(text) <= MAX_CHARS]
    known_numbers = frozenset(itertools.chain.from_iterable(source.numbers for source in sources))
    known_stems = frozenset(itertools.chain.from_iterable(source.all_stems for source in sources))
    new_numbers: list[Range] = []
    new_names: list[Range] = []
    for claim in claims:
        text = claim.sentence.text
        # Numbers of one digit are often the writer's own count: "the 3 of them".
        unseen = (m for m in numbers(text) if len(m.group()) > 1 and _number(m.group()) not in known_numbers)
        new_numbers.extend(_range(claim, match) for match in unseen)
        new_names.extend(_range(claim, m) for m in names(text) if stem(fold(m.group()).text) not in known_stems)
    return [
        Hit("unsupported_number", NUMBER_RISK if new_numbers else 0.0, tuple(new_numbers)),
        Hit("unsupported_name", NAME_RISK if new_names else 0.0, tuple(new_names)),
    ]


def _range(claim: _Claim, match: re.Match[str]) -> Range:
    start = claim.sentence.start
    return Range(start + match.start(), start + match.end(), claim.text_index)


def _number(text: str) -> str:
    """1,000.50 and 1.000,50 alike: the digits alone."""
    return text.replace(",", "").replace(".", "")


@lru_cache(maxsize=512)  # documents come again and again; 512 of 2,000 characters hold about 50 MB
def _source(text: str) -> _Source:
    found = words(text)
    stems = content_stems(found)
    return _Source(
        stems=frozenset(stems),
        pairs=frozenset(itertools.pairwise(stems)),
        all_stems=frozenset(stem(word.text) for word in found),
        numbers=frozenset(_number(match.group()) for match in numbers(text)),
        passages=tuple(
            (passage.text, frozenset(content_stems(words(passage.text)))) for passage in passages(text, PASSAGE_CHARS)
        ),
    )


def build(options: Mapping[str, Any], models: ModelStore) -> GroundingGuard:
    """The guard, its model loaded. Raises `ConfigError` for an option, `ModelMissingError` without the model."""
    profile = options_of(Profile, options, "guards.hallucination")
    assert isinstance(profile, Profile)
    if profile.backend == "words":
        return GroundingGuard(models.encoder().version)
    if profile.model is None:
        raise ConfigError("guards.hallucination: the backend nli needs `model`")
    classifier = models.classifier(spec_of(profile.model, "guards.hallucination.model"))
    column = column_of(classifier, "entailment", profile.labels, "guards.hallucination")
    return GroundingGuard(f"{classifier.version}-{column}", _Nli(classifier, column))
