"""How much documents support a sentence: words first, the likeness of embeddings where words do not decide.

What the guards of answers from documents share: `guards.grounding` asks whether any document supports a sentence,
`guards.citations` whether the one does that the sentence names.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from guards.answers import is_pleasantry, is_refusal
from guards.sentences import passages
from guards.words import content_stems, numbers, stem, words

if TYPE_CHECKING:
    from guards.artifacts import Vector

__all__ = ["Source", "closest", "is_claim", "is_undecided", "lexical_support", "number", "source", "with_likeness"]

PASSAGE_CHARS: Final = 400  # two or three sentences of a document
PAIR_WEIGHT: Final = 0.2  # of word pairs in the support; the rest is single words
DECIDED_BELOW: Final = 0.15  # hardly a word in common: no likeness mends that
DECIDED_ABOVE: Final = 0.85
LIKENESS_WEIGHT: Final = 0.2  # of the embeddings where words do not decide
QUESTION_WORDS: Final = 3  # a question this short presupposes nothing
REFUSAL_WORDS: Final = 10  # "I don't know, but it was built in 1889 by …" claims something


class Source(NamedTuple):
    """A document in words, made once per text."""

    stems: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    all_stems: frozenset[str]  # function words too: for names
    numbers: frozenset[str]
    passages: tuple[tuple[str, frozenset[str]], ...]


def is_claim(sentence: str, *, alone: bool) -> bool:
    """Short refusals, questions and pleasantries claim nothing; a single word does only if it is the whole answer."""
    count = len(words(sentence))
    if is_pleasantry(sentence) or (count <= REFUSAL_WORDS and is_refusal(sentence)):
        return False
    if sentence.endswith(("?", "？")):
        return count > QUESTION_WORDS
    return alone or count > 1


def lexical_support(stems: Sequence[str], known: frozenset[str], sources: Sequence[Source]) -> float:
    """The share 0..1 of content words that are ``known``, and of word pairs that one of the sources has."""
    single = sum(stem in known for stem in stems) / len(stems)
    pairs = list(itertools.pairwise(stems))
    if not pairs:
        return single
    double = sum(any(pair in source.pairs for source in sources) for pair in pairs) / len(pairs)
    return (1 - PAIR_WEIGHT) * single + PAIR_WEIGHT * double


def closest(stems: Sequence[str], sources: Sequence[Source]) -> str:
    """The passage that shares most content words with a sentence; empty without documents."""
    wanted = frozenset(stems)
    candidates = itertools.chain.from_iterable(source.passages for source in sources)
    return max(candidates, key=lambda passage: len(wanted & passage[1]), default=("", frozenset()))[0]


def is_undecided(support: float) -> bool:
    """Whether words alone leave it open."""
    return DECIDED_BELOW < support < DECIDED_ABOVE


def with_likeness(support: float, sentence: Vector, passage: Vector) -> float:
    """The support by words together with the likeness to the closest passage; both vectors of length 1."""
    cosine = float(sentence @ passage)
    return (1 - LIKENESS_WEIGHT) * support + LIKENESS_WEIGHT * min(max(cosine, 0.0), 1.0)


def number(text: str) -> str:
    """1,000.50 and 1.000,50 alike: the digits alone."""
    return text.replace(",", "").replace(".", "")


@lru_cache(maxsize=512)  # documents come again and again; 512 of 2,000 characters hold about 50 MB
def source(text: str) -> Source:
    """A document in words."""
    found = words(text)
    stems = content_stems(found)
    return Source(
        stems=frozenset(stems),
        pairs=frozenset(itertools.pairwise(stems)),
        all_stems=frozenset(stem(word.text) for word in found),
        numbers=frozenset(number(match.group()) for match in numbers(text)),
        passages=tuple(
            (passage.text, frozenset(content_stems(words(passage.text)))) for passage in passages(text, PASSAGE_CHARS)
        ),
    )
