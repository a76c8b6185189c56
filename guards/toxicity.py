"""Toxicity: words (alt-profanity-check) and a head on the shared embedding, Detoxify or another text classifier.

The profile chooses the backend by name, and none ever stands in for the other. English only, but for Detoxify's
multilingual checkpoint. Texts of users and tools are judged at the request stage, answers at the response stage: an
assistant turn in the history was judged when it was the answer.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from guards.errors import ModelMissingError
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.heads import Head, load_head, logistic
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.toxicity_transformer import TransformerBackend
from guards.types import Failure, FailureCode, Hit, Range, Stage, Text, Unit
from guards.words import english_share, words

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["Backend", "Lexical", "LinearBackend", "Profile", "ToxicityGuard", "build", "combined"]


MIN_PART_CHARS: Final = 24
"""Shorter sentences are joined, so that 128 KB of `a. a. a.` are 5,000 parts and not 40,000."""

MAX_PART_CHARS: Final = 80
"""Longer sentences are cut here (at a space): one insult must not be diluted by more than a dozen words."""

MAX_LOOKS: Final = 20
"""From so many parts on, the correction for looking often no longer grows: an insult is found in a long answer too."""

PART_PENALTY: Final = 1.0
"""Log odds that a part has less than the same words alone: what it is a part of speaks for it."""

OPENING_CHARS: Final = 4_000
"""What the head reads of a text: as much as the relevance guard, which thus shares the embedding."""

_REQUEST_ROLES: Final = frozenset({"user", "tool"})
_READ_BY_HEAD: Final = frozenset({"user", "assistant"})  # a tool's output is long, and no other guard embeds it whole
_ENDS: Final = re.compile(r"[.!?…。！？؟।]+\s*|\n\s*")
_GROUPS: Final = re.compile(
    r"\b(?:gays?|homosexual(?:s|ity)?|queers?|lesbians?|bisexuals?|trans(?:gender(?:ed)?|sexuals?)?|heterosexuals?"
    r"|nonbinary|intersex|lgbtq?|jews?|jewish|judaism|muslims?|islam(?:ic)?|christians?|catholics?|hindus?|sikhs?"
    r"|buddhists?|atheists?|blacks?|whites?|asians?|africans?|arabs?|latin[oax]s?|hispanics?|mexicans?|indians?"
    r"|immigrants?|migrants?|refugees?|wom[ae]n|girls?|females?|males?|men|blind|deaf|disabled|autistic|elderly|roma"
    r"|indigenous)\b",
    re.IGNORECASE,
)


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

    def needs(self, text: Text) -> tuple[str, ...]:
        """What `score` will ask the shared encoder for; cheap, pure."""

    def score(self, texts: Sequence[Text], artifacts: Artifacts) -> Sequence[tuple[Hit, ...]]:
        """Texts → one hit per label with its score, however low. May be called from several threads at once."""


class ToxicityGuard:
    """Scores how toxic a text is. Every text gets a score; the range is the worst part of it."""

    name = "toxicity"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "text"
    options_type: type[msgspec.Struct] = NoOptions

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.version = f"2+{backend.version}"

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        (text,) = unit.texts
        return text.role in _REQUEST_ROLES if unit.stage == "request" else text.role == "assistant"

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """The text's opening for the head of the default backend; nothing for a transformer."""
        (text,) = unit.texts
        return Needs(embed=self._backend.needs(text)) if len(text.text) <= MAX_CHARS else Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> Sequence[Result]:
        """One result per unit: a hit for each of the model's labels, or ``INPUT_TOO_LARGE``."""
        texts = [unit.texts[0] for unit in units]
        scored = iter(self._backend.score([text for text in texts if len(text.text) <= MAX_CHARS], artifacts))
        return [next(scored) if len(text.text) <= MAX_CHARS else Failure(FailureCode.INPUT_TOO_LARGE) for text in texts]


class Lexical:
    """alt-profanity-check: tf-idf of words and a calibrated linear support vector machine, as log odds.

    Its training data are comments of a time when naming a minority mostly meant to insult it, so "I am homosexual"
    looks toxic to it. Words for groups of people therefore count half: the odds are the mean of those with and without.
    """

    def __init__(self) -> None:
        from profanity_check import profanity_check

        vectorizer, folds = profanity_check.vectorizer, profanity_check.model.calibrated_classifiers_
        self._words = vectorizer.build_analyzer()
        self._vocabulary: Mapping[str, int] = vectorizer.vocabulary_
        self._idf = np.asarray(vectorizer.idf_)
        self._weights = np.stack([fold.estimator.coef_.ravel() for fold in folds], axis=1)
        self._intercepts = np.array([fold.estimator.intercept_[0] for fold in folds])
        self._slopes = np.array([fold.calibrators[0].a_ for fold in folds])
        self._offsets = np.array([fold.calibrators[0].b_ for fold in folds])

    def log_odds(self, pieces: Sequence[str]) -> npt.NDArray[np.float64]:
        """Texts → log odds of being toxic, shape (n,), within ±20."""
        pieces = [_plain(piece) for piece in pieces]
        naming = [index for index, piece in enumerate(pieces) if _GROUPS.search(piece)]
        # One call for all: the library takes milliseconds for each, however few the texts.
        both = self._raw([*pieces, *(_GROUPS.sub(" ", pieces[index]) for index in naming)])
        odds = both[: len(pieces)]
        odds[naming] = (odds[naming] + both[len(pieces) :]) / 2
        return odds

    def _raw(self, pieces: Sequence[str]) -> npt.NDArray[np.float64]:
        # What the package's `predict_prob` does, without its checks: these take 5 ms a call, this takes 0.05 ms.
        margins = np.array([self._margins(piece) for piece in pieces]).reshape(len(pieces), len(self._slopes))
        risk = np.mean(1 / (1 + np.exp(self._slopes * margins + self._offsets)), axis=1)
        risk = np.clip(np.asarray(risk, dtype=np.float64), 2e-9, 1 - 2e-9)
        return np.asarray(np.log(risk) - np.log1p(-risk))

    def _margins(self, piece: str) -> npt.NDArray[np.float64]:
        """One text → the distance to each fold's hyperplane, shape (folds,)."""
        known = Counter(index for word in self._words(piece) if (index := self._vocabulary.get(word)) is not None)
        if not known:
            return self._intercepts
        indices = np.fromiter(known, dtype=np.intp, count=len(known))
        weights = np.fromiter(known.values(), dtype=np.float64, count=len(known)) * self._idf[indices]
        return np.asarray(weights / np.linalg.norm(weights) @ self._weights[indices] + self._intercepts)


class LinearBackend:
    """alt-profanity-check and a linear head on the shared embedding (docs/models/toxicity.md).

    Kinds `toxicity`, and `severe_toxicity` where words and head are sure both, as an insult or a threat makes them.

    The head reads the opening of users' texts and answers and sees what has no swear word in it; words alone judge
    tools' texts. Both dilute: in a long text one insult disappears, and so each sentence is looked at by its words too.
    Who looks at n sentences meets n chances of a false alarm: the odds of the worst one are divided by n² (n up to
    `MAX_LOOKS`).
    """

    def __init__(self, head: Head, encoder_version: str) -> None:
        self._lexical = Lexical()
        self._direction = head.tensors["direction"]
        self._mix: tuple[float, ...] = tuple(float(value) for value in head.tensors["mix"])
        words_version = importlib.metadata.version("alt-profanity-check")
        self.version = f"alt-profanity-check-{words_version}-{head.digest}+{encoder_version}"
        self._lexical.log_odds(["the first text is not slower than the next. so says the guard."])

    def needs(self, text: Text) -> tuple[str, ...]:
        opening = text.text[:OPENING_CHARS]
        return (opening,) if text.role in _READ_BY_HEAD and any(map(str.isalnum, opening)) else ()

    def score(self, texts: Sequence[Text], artifacts: Artifacts) -> Sequence[tuple[Hit, ...]]:
        # Per text the whole first, then its parts where there are several.
        ranges: list[list[Range]] = []
        pieces: list[str] = []
        for text in texts:
            parts = list(_parts(text.text))
            looks = [Range(0, len(text.text)), *(parts if len(parts) > 1 else ())]
            ranges.append(looks)
            pieces.extend(text.text[look.start : look.end] for look in looks)
        if not pieces:
            return []
        odds = self._lexical.log_odds(pieces)
        hits: list[tuple[Hit, ...]] = []
        offset = 0
        for text, looks in zip(texts, ranges, strict=True):
            mine = odds[offset : offset + len(looks)].copy()
            offset += len(looks)
            mine[1:] -= 2 * math.log(min(max(len(looks) - 1, 1), MAX_LOOKS)) + PART_PENALTY
            # The place is where the words are worst; the head knows no place.
            worst = int(mine.argmax())
            where = (looks[worst],) if looks[worst].end else ()
            severe = -math.inf
            if opening := self.needs(text):
                seen = float(self._direction @ artifacts.embedding(opening[0]))
                severe = min(float(mine.max()), severe_odds(seen + self._mix[3]))
                mine[0] = combined(float(mine[0]), seen, english_share(words(opening[0])), self._mix)
            scores = {"toxicity": float(mine.max()), "severe_toxicity": min(severe, float(mine.max()))}
            hits.append(tuple(Hit(kind, round(logistic(odds), 3), where) for kind, odds in scores.items()))
        return hits


def severe_odds(seen: float) -> float:
    """Log odds that a text is hostile through and through, from the head's log odds: words alone cannot tell an insult
    from a curse. Rude words at a build give -6, "shut up" 0.4, slurs and wishes of death 1.5 to 5."""
    return 2 * seen - 4


def combined(lexical: float, seen: float, english: float, mix: Sequence[float]) -> float:
    """Log odds from the words' log odds, the head's view of the embedding, and the share of English words.

    ``mix``: weights of the words in English, of the head, of the head in English, the head's constant, and the mix's.
    """
    return mix[0] * lexical * english + (mix[1] + mix[2] * english) * (seen + mix[3]) + mix[4]


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


def build(options: Mapping[str, Any], models: ModelStore) -> ToxicityGuard:
    """The guard with the profile's backend, loaded and warm. Blocks for seconds.

    Raises `ModelMissingError` when a model is not in the store, `ConfigError` for a bad option.
    """
    profile = options_of(Profile, options, "guards.toxicity")
    assert isinstance(profile, Profile)
    if profile.backend == "alt-profanity-check":
        encoder = models.encoder()
        return ToxicityGuard(LinearBackend(load_head("toxicity", encoder), encoder.version))
    if profile.model is None:
        raise ModelMissingError(
            f"guards.toxicity: the backend {profile.backend} needs a model in the profile, such as "
            "`model: {source: detoxify:original}`; then run `tidegate models pull`"
        )
    classifier = models.classifier(spec_of(profile.model, "guards.toxicity.model"))
    return ToxicityGuard(TransformerBackend(classifier, profile.labels))
