"""Prompt injection and jailbreaks: patterns in a dozen languages, and the likeness to known attacks.

Every text of a user, a tool result, a document and the arguments of a tool call is looked at, each by itself; system
and assistant messages are the application's own. Patterns read the whole text. The likeness reads those passages that
hold a word which attacks use, in users' and tools' texts only: documents are long and many, and get patterns alone.
A profile can put a classifier (``backend: hf-classifier``) in the likeness's place; it reads those texts whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from guards.artifacts import Artifacts, Encoder, Vector
from guards.errors import ConfigError
from guards.guard import Needs, NoOptions, Result
from guards.injection_signs import Kind, Sign, Signs, load_signs
from guards.labels import columns_of, hits_of
from guards.models import ModelStore
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.sentences import passages
from guards.types import Failure, FailureCode, Hit, Range, Stage, Text, Unit

if TYPE_CHECKING:
    from guards.models.transformer import Classifier

__all__ = ["MAX_CHARS", "ClassifierGuard", "InjectionGuard", "Profile", "build"]

MAX_CHARS: Final = 131_072  # a longer text is refused: patterns take about 0.1 s at this length
PASSAGE_CHARS: Final = 600  # about 130 tokens: an attack within a longer passage would be averaged away
MAX_RANGES: Final = 32  # places per finding; more say nothing new
MIN_RANGE_WEIGHT: Final = 0.4  # weaker signs count, but their places would mark ordinary words

# The likeness of a passage is a logistic of its margin: cosine to the nearest attack minus to the nearest harmless one.
# Measured on public attacks and on ordinary chat: margins of ordinary passages are below 0.1 in 99 of 100.
MARGIN_MIDDLE: Final = 0.1
MARGIN_SCALE: Final = 0.035
MAX_LIKENESS: Final = 0.9  # by itself it can block, but a pattern or a second sign says more

CLASSIFIER_RANGE_FROM: Final = 0.5  # a window that the classifier finds this risky or more is marked

KINDS: Final[tuple[Kind, ...]] = ("prompt_injection", "jailbreak")
_UNTRUSTED: Final = frozenset({"tool", "function", "document"})
_COMPARED: Final = frozenset({"user", "tool", "function"})


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.injection`` in a profile; all but ``backend`` are for ``hf-classifier``.

    ``labels``: the model's label → `prompt_injection` or `jailbreak`. ``documents``: whether the classifier reads
    documents too, which takes tens of milliseconds for each 500 tokens.
    """

    backend: Literal["likeness", "hf-classifier"] = "likeness"
    model: dict[str, Any] | None = None
    labels: dict[str, Kind] = {}
    documents: bool = False


class InjectionGuard:
    """Kinds `prompt_injection` and `jailbreak`, one hit of each for every text, however low the score."""

    name = "injection"
    stages: frozenset[Stage] = frozenset({"request"})
    unit: Literal["text"] = "text"
    options_type = NoOptions

    def __init__(self, signs: Signs, encoder: Encoder) -> None:
        self._signs = signs
        self.version = f"1+{encoder.version}"
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


class ClassifierGuard:
    """As `InjectionGuard`, with a classifier in the likeness's place."""

    name = "injection"
    stages: frozenset[Stage] = frozenset({"request"})
    unit: Literal["text"] = "text"
    options_type = NoOptions

    def __init__(self, signs: Signs, classifier: Classifier, profile: Profile) -> None:
        self._signs = signs
        self._classifier = classifier
        self._columns = columns_of(classifier, profile.labels, "guards.injection")
        self._read = _COMPARED | {"document"} if profile.documents else _COMPARED
        self.version = f"1+{classifier.version}+{'-'.join(f'{k}:{v}' for k, v in sorted(profile.labels.items()))}"
        classifier.score(["the first text is not slower than the next"])

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """As `InjectionGuard.applies`."""
        text = unit.texts[0]
        return text.role in _UNTRUSTED or text.role in _COMPARED or text.location.tool_call is not None

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
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
        signs = self._signs.find(text.text, untrusted=text.role in _UNTRUSTED)
        return [self._hit(kind, signs, [hit for hit in found if hit.kind == kind]) for kind in KINDS]

    def _hit(self, kind: Kind, signs: Sequence[Sign], found: Sequence[Hit]) -> Hit:
        mine = [sign for sign in signs if sign.kind == kind]
        clean = math.prod(1 - sign.weight for sign in mine) * math.prod(1 - hit.score for hit in found)
        places = {Range(s.start, s.end) for s in mine if s.weight >= MIN_RANGE_WEIGHT}
        places |= {part for hit in found if hit.score >= CLASSIFIER_RANGE_FROM for part in hit.ranges}
        return Hit(kind, round(1 - clean, 3), tuple(sorted(places, key=lambda r: (r.start, r.end))[:MAX_RANGES]))


def build(options: Mapping[str, Any], models: ModelStore) -> InjectionGuard | ClassifierGuard:
    """Make the guard; compiles the patterns and embeds the prototypes, or loads the classifier (about two seconds).

    Raises `ConfigError` for an option, `ModelMissingError` without its model.
    """
    profile = options_of(Profile, options, "guards.injection")
    assert isinstance(profile, Profile)
    if profile.backend == "likeness":
        return InjectionGuard(load_signs(), models.encoder())
    if profile.model is None or not profile.labels:
        raise ConfigError(
            "guards.injection: the backend hf-classifier needs `model` and `labels`, such as "
            "`labels: {INJECTION: prompt_injection}`"
        )
    return ClassifierGuard(load_signs(), models.classifier(spec_of(profile.model, "guards.injection.model")), profile)
