"""Relevance by a cross-encoder (``backend: cross-encoder``): a model that reads question and answer together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from guards.artifacts import Artifacts
from guards.errors import ConfigError

if TYPE_CHECKING:
    from guards.models.transformer import Classifier

__all__ = ["CrossEncoder"]


class CrossEncoder:
    """A model with one output, high when two texts belong together. Raises `ConfigError` for one with more."""

    def __init__(self, model: Classifier) -> None:
        if len(model.labels) != 1:
            raise ConfigError(
                f"guards.relevance.model: a cross-encoder has one output, this has {', '.join(model.labels)}"
            )
        self._model = model
        self.version = model.version

    def needs(self, asked: Sequence[str], answer: str) -> tuple[str, ...]:
        return ()

    def risk(self, asked: Sequence[str], answer: str, artifacts: Artifacts) -> float:
        """1 - the highest score of a window of the answer with what was asked."""
        return 1 - max(float(scored.risks.max()) for scored in self._model.score_pairs([(a, answer) for a in asked]))
