"""How far an answer is from a reference that the event carries, and how unsure the model was of it.

For regression sets, shadow traffic and nightly questions with known answers. Without a reference and without log
probabilities there is nothing to look at. Needs ``pip install 'tidegate[evaluation]'``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from guards.answers import answer_texts
from guards.artifacts import Artifacts
from guards.evaluation.text_metrics import bleu, chrf, perplexity, require_sacrebleu, rouge_l, similarity
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.models import ModelStore
from guards.policy import options_of
from guards.types import Exchange, Failure, FailureCode, Hit, Stage, Unit

__all__ = ["MAX_CHARS", "Options", "ReferenceGuard", "build"]


Kind = Literal["bleu", "chrf", "rouge_l", "similarity", "perplexity"]
KINDS: Final[tuple[Kind, ...]] = ("bleu", "chrf", "rouge_l", "similarity", "perplexity")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.reference.options`` in a policy. ``kinds``: what is computed; `similarity` alone needs the encoder."""

    kinds: tuple[Kind, ...] = KINDS


class ReferenceGuard:
    """Kinds `bleu`, `chrf`, `rouge_l` and `similarity` where there is a reference, with the risk 1 - score, and
    `perplexity` where there are log probabilities, with the risk 1 - 1/perplexity: one less the geometric mean of the
    tokens' probabilities.

    Log probabilities of a shape that is not known are as good as none.
    """

    name = "reference"
    stages: frozenset[Stage] = frozenset({"response"})
    unit: Literal["exchange"] = "exchange"
    options_type = Options

    def __init__(self, encoder_version: str) -> None:
        require_sacrebleu()
        self.version = f"1+sacrebleu-{importlib.metadata.version('sacrebleu')}+{encoder_version}"

    def applies(self, unit: Unit, options: Options) -> bool:
        """True for an answer in words with a reference or log probabilities, or whose request (it may hold the
        reference) is missing."""
        exchange = unit.exchange
        if not answer_texts(unit):
            return False
        return exchange.messages is None or bool(exchange.reference.strip()) or _perplexity(exchange) is not None

    def needs(self, unit: Unit, options: Options) -> Needs:
        """Embeddings of reference and answer."""
        reference = unit.exchange.reference
        if "similarity" not in options.kinds or not reference.strip() or _too_large(unit):
            return Needs()
        return Needs(embed=(reference, _answer(unit)))

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> list[Result]:
        """Per exchange one hit for each kind that could be computed."""
        return [self._check(unit, options, artifacts) for unit in units]

    def _check(self, unit: Unit, options: Options, artifacts: Artifacts) -> Result:
        exchange = unit.exchange
        if exchange.messages is None and not exchange.reference.strip():
            return Failure(FailureCode.REQUEST_MISSING)
        if _too_large(unit):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        hits: list[Hit] = []
        if exchange.reference.strip():
            reference, answer = exchange.reference, _answer(unit)
            for kind in options.kinds:
                if kind == "similarity":
                    hits.append(_hit(kind, similarity(reference, answer, artifacts)))
                elif kind != "perplexity":
                    hits.append(_hit(kind, _MEASURES[kind](reference, answer)))
        sureness = _perplexity(exchange)
        if sureness is not None and "perplexity" in options.kinds:
            hits.append(_hit("perplexity", 1 / sureness))
        return hits


_MEASURES: Final = {"bleu": bleu, "chrf": chrf, "rouge_l": rouge_l}


def _hit(kind: Kind, score: float) -> Hit:
    return Hit(kind, round(min(max(1 - score, 0.0), 1.0), 3))


def _answer(unit: Unit) -> str:
    return "\n".join(text.text for _, text in answer_texts(unit))


def _perplexity(exchange: Exchange) -> float | None:
    if exchange.logprobs is None:
        return None
    try:
        return max(perplexity(exchange.logprobs), 1.0)
    except (ValueError, OverflowError, RecursionError):
        return None


def _too_large(unit: Unit) -> bool:
    return len(unit.exchange.reference) > MAX_CHARS or sum(len(text.text) for _, text in answer_texts(unit)) > MAX_CHARS


def build(options: Mapping[str, Any], models: ModelStore) -> ReferenceGuard:
    """The guard, its encoder loaded. Raises `ConfigError` for an option, `ModelMissingError` without the encoder or the
    extra `evaluation`."""
    options_of(NoOptions, options, "guards.reference")
    return ReferenceGuard(models.encoder().version)
