"""Whether an answer rests on the request's documents: words first, embeddings only where words do not decide.

Per sentence of the answer: the share of its content words that the documents have, and of its word pairs, which a
wrong combination of right words lacks. A sentence in between is compared with the passage that is closest in words.
This measures support by the documents, not truth; documents in another language than the answer support little.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from guards.answers import answer_texts, turns
from guards.artifacts import Artifacts
from guards.folding import fold
from guards.guard import Needs, NoOptions, Result
from guards.models import ModelStore
from guards.policy import options_of
from guards.sentences import Sentence, sentences
from guards.support import closest, is_claim, is_undecided, lexical_support, number, source, with_likeness
from guards.text import texts_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit
from guards.words import content_stems, names, numbers, stem, words

__all__ = ["MAX_CHARS", "GroundingGuard", "build"]

MAX_CHARS: Final = 131_072
MAX_COMPARED: Final = 16  # undecided sentences that are embedded (0.3 s at most); those after it go by words alone
RANGE_FROM: Final = 0.5  # a sentence at this risk or more is marked
NUMBER_RISK: Final = 0.9  # a number that neither documents nor conversation have
NAME_RISK: Final = 0.7  # names are told by their capital letters alone, which nouns have too in German


class _Claim(NamedTuple):
    """A sentence of the answer that says something: its place, its support by words, and what to compare it with."""

    sentence: Sentence
    text_index: int
    support: float
    compare: str  # the closest passage; empty where words decide


class GroundingGuard:
    """Kinds `unsupported`, `unsupported_number` and `unsupported_name`, a hit of each for every exchange.

    The score of `unsupported` is that of the worst sentence, 1 - its support.
    """

    name = "hallucination"
    version = "1"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["exchange"] = "exchange"
    options_type = NoOptions

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """False without an answer in words, or when the request has no documents."""
        if not answer_texts(unit):
            return False
        return unit.exchange.messages is None or any(document.text.strip() for document in unit.exchange.documents)

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Embeddings of the sentences that words do not decide, and of one passage for each."""
        if unit.exchange.messages is None or _too_large(unit):
            return Needs()
        compared = [claim for claim in _claims(unit) if claim.compare]
        return Needs(embed=tuple(itertools.chain.from_iterable((c.sentence.text, c.compare) for c in compared)))

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Per exchange three hits, or ``Failure(REQUEST_MISSING)`` where request and documents are unknown."""
        return [self._check(unit, artifacts) for unit in units]

    def _check(self, unit: Unit, artifacts: Artifacts) -> Result:
        if unit.exchange.messages is None:
            return Failure(FailureCode.REQUEST_MISSING)
        if _too_large(unit):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        risks = [(claim, round(1 - _support(claim, artifacts), 3)) for claim in _claims(unit)]
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
    return with_likeness(claim.support, artifacts.embedding(claim.sentence.text), artifacts.embedding(claim.compare))


def _too_large(unit: Unit) -> bool:
    answers = (text.text for _, text in answer_texts(unit))
    documents = (document.text for document in unit.exchange.documents)
    return any(len(text) > MAX_CHARS for text in (*answers, *documents))


def _claims(unit: Unit) -> list[_Claim]:
    sources = [source(document.text) for document in unit.exchange.documents if document.text.strip()]
    known = frozenset(itertools.chain.from_iterable(source.stems for source in sources))
    claims: list[_Claim] = []
    compared = 0
    for index, text in answer_texts(unit):
        found = sentences(text.text)
        for sentence in found:
            if not is_claim(sentence.text, alone=len(found) == 1):
                continue
            stems = content_stems(words(sentence.text))
            if not stems:
                continue
            support = lexical_support(stems, known, sources)
            undecided = is_undecided(support) and compared < MAX_COMPARED
            compared += undecided
            claims.append(_Claim(sentence, index, support, closest(stems, sources) if undecided else ""))
    return claims


def _details(unit: Unit, claims: Sequence[_Claim]) -> list[Hit]:
    """Numbers and names in the claims that neither the documents nor the conversation have."""
    texts = [document.text for document in unit.exchange.documents] + [text for _, text in turns(unit.exchange)]
    texts += [text.text for text in texts_of(unit.exchange, "request") if text.role in ("system", "tool")]
    sources = [source(text) for text in texts if text.strip() and len(text) <= MAX_CHARS]
    known_numbers = frozenset(itertools.chain.from_iterable(source.numbers for source in sources))
    known_stems = frozenset(itertools.chain.from_iterable(source.all_stems for source in sources))
    new_numbers: list[Range] = []
    new_names: list[Range] = []
    for claim in claims:
        text = claim.sentence.text
        # Numbers of one digit are often the writer's own count: "the 3 of them".
        unseen = (m for m in numbers(text) if len(m.group()) > 1 and number(m.group()) not in known_numbers)
        new_numbers.extend(_range(claim, match) for match in unseen)
        new_names.extend(_range(claim, m) for m in names(text) if stem(fold(m.group()).text) not in known_stems)
    return [
        Hit("unsupported_number", NUMBER_RISK if new_numbers else 0.0, tuple(new_numbers)),
        Hit("unsupported_name", NAME_RISK if new_names else 0.0, tuple(new_names)),
    ]


def _range(claim: _Claim, match: re.Match[str]) -> Range:
    start = claim.sentence.start
    return Range(start + match.start(), start + match.end(), claim.text_index)


def build(options: Mapping[str, Any], models: ModelStore) -> GroundingGuard:
    """The guard, its encoder loaded. Raises `ConfigError` for an option, `ModelMissingError` without the encoder."""
    options_of(NoOptions, options, "guards.hallucination")
    models.encoder()
    return GroundingGuard()
