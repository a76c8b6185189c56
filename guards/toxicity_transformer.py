"""Toxicity by a transformer (``backend: detoxify | hf-classifier``): a classifier whose labels are the kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from guards.artifacts import Artifacts
from guards.labels import columns_of, hits_of
from guards.types import Hit, Text

if TYPE_CHECKING:
    from guards.models.transformer import Classifier

__all__ = ["TransformerBackend"]


class TransformerBackend:
    """Detoxify's labels as they are, or any text classifier's under the kinds that ``labels`` names.

    Detoxify: `toxicity`, `severe_toxicity`, `obscene`, `threat`, `insult`, `identity_attack` (and `sexual_explicit` for
    the unbiased and multilingual checkpoints). Long texts go through in overlapping windows: nothing is cut off; the
    range of a hit is the worst window. Raises `ConfigError` for a label that the model does not have.
    """

    def __init__(self, classifier: Classifier, labels: Mapping[str, str]) -> None:
        self._classifier = classifier
        self._columns = columns_of(classifier, labels, "guards.toxicity")
        self.version = "-".join([classifier.version, *(f"{k}:{v}" for k, v in sorted(labels.items()))])
        self._classifier.score(["the first text is not slower than the next"])

    def needs(self, text: Text) -> tuple[str, ...]:
        return ()

    def score(self, texts: Sequence[Text], artifacts: Artifacts) -> Sequence[tuple[Hit, ...]]:
        return [hits_of(scored, self._columns) for scored in self._classifier.score([text.text for text in texts])]
