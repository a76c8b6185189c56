"""Toxicity: a linear model over words (alt-profanity-check), Detoxify's transformers or another text classifier.

The profile chooses the backend by name, and none ever stands in for the other. English only, but for Detoxify's
multilingual checkpoint. Texts of users and tools are judged at the request stage, answers at the response stage: an
assistant turn in the history was judged when it was the answer.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from guards.errors import ModelMissingError
from guards.guard import Needs, NoOptions, Result
from guards.labels import columns_of, hits_of
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore
    from guards.models.transformer import Classifier

__all__ = ["Backend", "Profile", "ToxicityGuard", "build"]

MAX_CHARS: Final = 131_072
"""Longer texts are refused: some 30,000 tokens, which take the linear model 0.1 s and Detoxify tens of seconds."""

MIN_PART_CHARS: Final = 24
"""Shorter sentences are joined, so that 128 KB of `a. a. a.` are 5,000 parts and not 40,000."""

MAX_PART_CHARS: Final = 80
"""Longer sentences are cut here (at a space): one insult must not be diluted by more than a dozen words."""

MAX_LOOKS: Final = 20
"""From so many parts on, the correction for looking often no longer grows: an insult is found in a long answer too."""

_REQUEST_ROLES: Final = frozenset({"user", "tool"})
_ENDS: Final = re.compile(r"[.!?…。！？؟।]+\s*|\n\s*")


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.toxicity`` in a profile; the two last are for the transformers.

    ``model``: see `guards.models.ModelSpec`. ``labels``: the model's label → kind; labels without one are ignored, and
    without ``labels`` every label is a kind by its own name.
    """

    backend: Literal["alt-profanity-check", "detoxify", "hf-classifier"] = "alt-profanity-check"
    model: dict[str, Any] | None = None
    labels: dict[str, str] = {}


class Backend(Protocol):
    """A model, loaded and warm."""

    @property
    def version(self) -> str:
        """Model and library versions."""

    def score(self, texts: Sequence[str]) -> Sequence[tuple[Hit, ...]]:
        """Texts → one hit per label with its score, however low. May be called from several threads at once."""


class ToxicityGuard:
    """Scores how toxic a text is. Every text gets a score; the range is the worst part of it."""

    name = "toxicity"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "text"
    options_type: type[msgspec.Struct] = NoOptions

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.version = f"1+{backend.version}"

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        (text,) = unit.texts
        return text.role in _REQUEST_ROLES if unit.stage == "request" else text.role == "assistant"

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> Sequence[Result]:
        """One result per unit: a hit for each of the model's labels, or ``INPUT_TOO_LARGE``."""
        texts = [unit.texts[0].text for unit in units]
        scored = iter(self._backend.score([text for text in texts if len(text) <= MAX_CHARS]))
        return [next(scored) if len(text) <= MAX_CHARS else Failure(FailureCode.INPUT_TOO_LARGE) for text in texts]


class LinearBackend:
    """alt-profanity-check: tf-idf of words and a calibrated linear support vector machine; one kind, `toxicity`.

    A bag of words dilutes: in a long text one insult disappears, and
    so each sentence is looked at as well as the whole. Who looks at n sentences meets n chances of a false alarm: the
    odds of the worst one are divided by n² (n up to `MAX_LOOKS`). On 1,492 Wikipedia comments that keeps the ROC AUC
    (0.986; whole texts alone 0.988; the plain maximum 0.961).
    """

    def __init__(self) -> None:
        from profanity_check import profanity_check

        self._vectorizer = profanity_check.vectorizer
        self._model = profanity_check.model
        self.version = f"alt-profanity-check-{importlib.metadata.version('alt-profanity-check')}"
        self.score(["the first text is not slower than the next. so says the guard."])

    def score(self, texts: Sequence[str]) -> Sequence[tuple[Hit, ...]]:
        # Per text the whole first, then its parts where there are several.
        ranges: list[list[Range]] = []
        pieces: list[str] = []
        for text in texts:
            parts = list(_parts(text))
            looks = [Range(0, len(text)), *(parts if len(parts) > 1 else ())]
            ranges.append(looks)
            pieces.extend(_plain(text[look.start : look.end]) for look in looks)
        if not pieces:
            return []
        odds = self._log_odds(pieces)
        hits: list[tuple[Hit, ...]] = []
        offset = 0
        for looks in ranges:
            mine = odds[offset : offset + len(looks)].copy()
            offset += len(looks)
            mine[1:] -= 2 * math.log(min(max(len(looks) - 1, 1), MAX_LOOKS))
            worst = int(mine.argmax())
            score = round(1 / (1 + math.exp(-float(mine[worst]))), 3)
            where = (looks[worst],) if looks[worst].end else ()
            hits.append((Hit("toxicity", score, where),))
        return hits

    def _log_odds(self, pieces: Sequence[str]) -> npt.NDArray[np.float64]:
        """Texts → log odds of being toxic, shape (n,), within ±20."""
        risk = self._model.predict_proba(self._vectorizer.transform(pieces))[:, 1]
        risk = np.clip(np.asarray(risk, dtype=np.float64), 2e-9, 1 - 2e-9)
        return np.asarray(np.log(risk) - np.log1p(-risk))


def _plain(text: str) -> str:
    """Without the tricks that hide a word from a bag of words: styled letters and invisible characters."""
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")


def _parts(text: str) -> Iterator[Range]:
    """Sentences, joined up to `MIN_PART_CHARS` and cut from `MAX_PART_CHARS` on; together they are the text."""
    start = 0
    for end in (*(match.end() for match in _ENDS.finditer(text)), len(text)):
        while end - start > MAX_PART_CHARS:
            cut = text.rfind(" ", start + MIN_PART_CHARS, start + MAX_PART_CHARS) + 1 or start + MAX_PART_CHARS
            yield Range(start, cut)
            start = cut
        if end - start >= MIN_PART_CHARS or (end == len(text) and end > start):
            yield Range(start, end)
            start = end


class TransformerBackend:
    """A transformer whose labels are kinds: Detoxify's, or any text classifier's under the names of ``labels``.

    Detoxify: `toxicity`, `severe_toxicity`, `obscene`, `threat`, `insult`, `identity_attack` (and `sexual_explicit` for
    the unbiased and multilingual checkpoints). Long texts go through in overlapping windows: nothing is cut off; the
    range of a hit is the worst window.
    """

    def __init__(self, classifier: Classifier, labels: Mapping[str, str]) -> None:
        self._classifier = classifier
        self._columns = columns_of(classifier, labels, "guards.toxicity")
        self.version = classifier.version
        self.score(["the first text is not slower than the next"])

    def score(self, texts: Sequence[str]) -> Sequence[tuple[Hit, ...]]:
        return [hits_of(scored, self._columns) for scored in self._classifier.score(texts)]


def _transformer(profile: Profile, models: ModelStore) -> Backend:
    if profile.model is None:
        raise ModelMissingError(
            f"guards.toxicity: the backend {profile.backend} needs a model in the profile, such as "
            "`model: {source: detoxify:original}`; then run `tidegate models pull`"
        )
    return TransformerBackend(models.classifier(spec_of(profile.model, "guards.toxicity.model")), profile.labels)


_BACKENDS: Final[Mapping[str, Callable[[Profile, ModelStore], Backend]]] = {
    "alt-profanity-check": lambda profile, models: LinearBackend(),
    "detoxify": _transformer,
    "hf-classifier": _transformer,
}


def build(options: Mapping[str, Any], models: ModelStore) -> ToxicityGuard:
    """The guard with the profile's backend, loaded and warm. Blocks for seconds.

    Raises `ModelMissingError` when a model is not in the store, `ConfigError` for a bad option.
    """
    profile = options_of(Profile, options, "guards.toxicity")
    assert isinstance(profile, Profile)
    return ToxicityGuard(_BACKENDS[profile.backend](profile, models))
