"""Prompt injection and jailbreaks: patterns in a dozen languages, and the likeness to known attacks.

Every text of a user, a tool result, a document and the arguments of a tool call is looked at, each by itself; system
and assistant messages are the application's own. Patterns read the whole text. The likeness reads those passages that
hold a word which attacks use, in users' and tools' texts only: documents are long and many, and get patterns alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from guards.artifacts import Artifacts, Encoder, Vector
from guards.guard import Needs, NoOptions, Result
from guards.injection_signs import Kind, Sign, Signs, load_signs
from guards.models import ModelStore
from guards.policy import options_of
from guards.sentences import passages
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

__all__ = ["MAX_CHARS", "InjectionGuard", "build"]

MAX_CHARS: Final = 131_072  # a longer text is refused: patterns take about 0.1 s at this length
PASSAGE_CHARS: Final = 600  # about 130 tokens: an attack within a longer passage would be averaged away
MAX_RANGES: Final = 32  # places per finding; more say nothing new
MIN_RANGE_WEIGHT: Final = 0.4  # weaker signs count, but their places would mark ordinary words

# The likeness of a passage is a logistic of its margin: cosine to the nearest attack minus to the nearest harmless one.
# Measured on public attacks and on ordinary chat: margins of ordinary passages are below 0.1 in 99 of 100.
MARGIN_MIDDLE: Final = 0.1
MARGIN_SCALE: Final = 0.035
MAX_LIKENESS: Final = 0.9  # by itself it can block, but a pattern or a second sign says more

KINDS: Final[tuple[Kind, ...]] = ("prompt_injection", "jailbreak")
_UNTRUSTED: Final = frozenset({"tool", "function", "document"})
_COMPARED: Final = frozenset({"user", "tool", "function"})


class InjectionGuard:
    """Kinds `prompt_injection` and `jailbreak`, one hit of each for every text, however low the score."""

    name = "injection"
    version = "1"
    stages: frozenset[Stage] = frozenset({"request"})
    unit: Literal["text"] = "text"
    options_type = NoOptions

    def __init__(self, signs: Signs, encoder: Encoder) -> None:
        self._signs = signs
        self._harmless = encoder.encode(list(signs.prototypes["benign"]))
        self._attacks = {kind: encoder.encode(list(signs.prototypes[kind])) for kind in KINDS}

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """True for texts that come from outside: user, tool and document texts, and arguments of tool calls."""
        text = unit.texts[0]
        return text.role in _UNTRUSTED or text.role in _COMPARED or text.location.tool_call is not None

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Embeddings of the passages with a suspicious word; of most texts none."""
        return Needs(embed=self._passages(unit))

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Per text a hit for each kind: independent signs combined (noisy or), with the places of the stronger ones."""
        return [self._check(unit, artifacts) for unit in units]

    def _check(self, unit: Unit, artifacts: Artifacts) -> Result:
        text = unit.texts[0]
        if len(text.text) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        signs = self._signs.find(text.text, untrusted=text.role in _UNTRUSTED)
        vectors = [artifacts.embedding(passage) for passage in self._passages(unit)]
        return [self._hit(kind, [sign for sign in signs if sign.kind == kind], vectors) for kind in KINDS]

    def _passages(self, unit: Unit) -> tuple[str, ...]:
        text = unit.texts[0]
        if text.role not in _COMPARED or len(text.text) > MAX_CHARS or not self._signs.has_cue(text.text):
            return ()
        if len(text.text) <= PASSAGE_CHARS:
            return (text.text,)  # as it is: other guards embed the whole text too
        return tuple(p.text for p in passages(text.text, PASSAGE_CHARS) if self._signs.has_cue(p.text))

    def _hit(self, kind: Kind, signs: Sequence[Sign], vectors: Iterable[Vector]) -> Hit:
        likeness = max((self._likeness(kind, vector) for vector in vectors), default=0.0)
        clean = math.prod(1 - sign.weight for sign in signs) * (1 - likeness)
        places = sorted({Range(s.start, s.end) for s in signs if s.weight >= MIN_RANGE_WEIGHT}, key=lambda r: r.start)
        return Hit(kind, round(1 - clean, 3), tuple(places[:MAX_RANGES]))

    def _likeness(self, kind: Kind, vector: Vector) -> float:
        margin = float(np.max(self._attacks[kind] @ vector)) - float(np.max(self._harmless @ vector))
        return MAX_LIKENESS / (1 + math.exp((MARGIN_MIDDLE - margin) / MARGIN_SCALE))


def build(options: Mapping[str, Any], models: ModelStore) -> InjectionGuard:
    """Make the guard; compiles the patterns and embeds the prototypes (about two seconds).

    The profile can set nothing. Raises `ConfigError` for an option, `ModelMissingError` without the encoder.
    """
    options_of(NoOptions, options, "guards.injection")
    return InjectionGuard(load_signs(), models.encoder())
