"""Prompt injection by a text classifier (``backend: hf-classifier``), with the patterns beside it.

It stands in the place of the heads: it reads users' texts and tool results in full, documents only when told, each text
by itself. A pattern that matched counts as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from guards.artifacts import Artifacts
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.injection_signs import KINDS, MAX_RANGES, UNTRUSTED, Kind, Sign, Signs, from_outside, places_of
from guards.labels import columns_of, hits_of
from guards.types import Failure, FailureCode, Hit, Stage, Text, Unit

if TYPE_CHECKING:
    from guards.models.transformer import Classifier

__all__ = ["ClassifierGuard"]

RANGE_FROM: Final = 0.5  # a window that the classifier finds this risky or more is marked
_READ: Final = frozenset({"user", "tool", "function"})


class ClassifierGuard:
    """Kinds `prompt_injection` and `jailbreak`, a hit of each for every text, however low the score.

    ``labels``: the classifier's label → kind. Raises `ConfigError` for a label that it does not have.
    """

    name = "injection"
    stages: frozenset[Stage] = frozenset({"request"})
    unit: Literal["text"] = "text"
    options_type = NoOptions

    def __init__(self, signs: Signs, classifier: Classifier, labels: Mapping[str, Kind], *, documents: bool) -> None:
        self._signs = signs
        self._classifier = classifier
        self._columns = columns_of(classifier, labels, "guards.injection")
        self._read = _READ | {"document"} if documents else _READ
        kinds = "-".join(f"{label}:{kind}" for label, kind in sorted(labels.items()))
        self.version = f"2+{classifier.version}+{kinds}+{'all' if documents else 'short'}"
        classifier.score(["the first text is not slower than the next"])

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """True for texts that come from outside: user, tool and document texts, and arguments of tool calls."""
        return from_outside(unit.texts[0])

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Nothing: the classifier reads the text itself."""
        return Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Per text a hit for each kind: the patterns' signs and the classifier's worst window (noisy or)."""
        texts = [unit.texts[0] for unit in units]
        read = [i for i, text in enumerate(texts) if text.role in self._read and len(text.text) <= MAX_CHARS]
        scored = self._classifier.score([texts[i].text for i in read])
        found = {i: hits_of(item, self._columns) for i, item in zip(read, scored, strict=True)}
        return [self._result(text, found.get(i, ())) for i, text in enumerate(texts)]

    def _result(self, text: Text, found: Sequence[Hit]) -> Result:
        if len(text.text) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        signs = self._signs.find(text.text, untrusted=text.role in UNTRUSTED)
        return [_hit(kind, signs, [hit for hit in found if hit.kind == kind]) for kind in KINDS]


def _hit(kind: Kind, signs: Sequence[Sign], found: Sequence[Hit]) -> Hit:
    mine = [sign for sign in signs if sign.kind == kind]
    clean = math.prod(1 - sign.weight for sign in mine) * math.prod(1 - hit.score for hit in found)
    places = {*places_of([(sign, 0) for sign in mine])}
    places.update(part for hit in found if hit.score >= RANGE_FROM for part in hit.ranges)
    return Hit(kind, round(1 - clean, 3), tuple(sorted(places, key=lambda r: (r.start, r.end))[:MAX_RANGES]))
