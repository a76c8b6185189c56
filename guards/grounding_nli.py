"""Support by natural language inference (``backend: nli``): does a passage of the documents entail the sentence?"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from guards.labels import column_of
from guards.support import source
from guards.words import content_stems, words

if TYPE_CHECKING:
    from guards.models.transformer import Classifier

__all__ = ["Entailment"]

PASSAGES_EACH: Final = 3  # compared with each sentence: those that share most content words with it
MAX_JUDGED: Final = 16  # sentences of an answer: each takes tens of milliseconds for each of its passages


class Entailment:
    """A classifier of pairs of texts, one of whose labels is `entailment` (``labels``: where its name is another).

    Raises `ConfigError` when it is not told which.
    """

    def __init__(self, classifier: Classifier, labels: Mapping[str, str]) -> None:
        self._classifier = classifier
        self._column = column_of(classifier, "entailment", labels, "guards.hallucination")
        self.version = f"{classifier.version}-{self._column}"

    def risks(self, claims: Sequence[str], documents: Sequence[str]) -> list[float]:
        """The first `MAX_JUDGED` sentences → 1 - how far a passage entails the least entailed part of each."""
        known = [passage for document in documents for passage in source(document).passages]
        judged = claims[:MAX_JUDGED] if known else ()
        closest = [_closest(claim, known) for claim in judged]
        pairs = [(passage, claim) for claim, found in zip(judged, closest, strict=True) for passage in found]
        scored = iter(self._classifier.score_pairs(pairs))
        risks: list[float] = []
        for found in closest:
            entailed = [next(scored).risks[:, self._column] for _ in found]  # by passage, then by part of the sentence
            risks.append(1 - float(np.max(entailed, axis=0).min()))
        return risks


def _closest(claim: str, known: Sequence[tuple[str, frozenset[str]]]) -> list[str]:
    wanted = frozenset(content_stems(words(claim)))
    best = heapq.nlargest(PASSAGES_EACH, known, key=lambda passage: len(wanted & passage[1]))
    return [text for text, _ in best]
