"""Toxicity: words (alt-profanity-check) and a head on the shared embedding, or Detoxify (the standard extra).

The profile chooses the backend by name, and none ever stands in for the other. English only, but for Detoxify's
multilingual checkpoint. Texts of users and tools are judged at the request stage, answers at the response stage: an
assistant turn in the history was judged when it was the answer.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from guards.errors import ConfigError, ModelMissingError
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.heads import Head, load_head, logistic
from guards.policy import options_of
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

DETOXIFY_OVERLAP_TOKENS: Final = 64  # a sentence or two: what is cut by one window is whole in the next
DETOXIFY_BATCH: Final = 16  # windows per forward pass: 16 x 512 tokens are some 400 MB of activations

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
    """``guards.toxicity`` in a profile; the four last are for ``backend: detoxify``.

    ``checkpoint``: a file in Detoxify's format; ``config``: a folder with the configuration and tokenizer files of the
    model that the checkpoint was trained from (its ``config.json`` has as many labels); ``sha256``: the checkpoint's.
    A checkpoint is a pickle, and a pickle can run code when it is read: without its pin it is never opened.
    ``window_tokens`` is the longest input of one forward pass; default: the model's own limit.
    """

    backend: Literal["alt-profanity-check", "detoxify"] = "alt-profanity-check"
    checkpoint: str | None = None
    config: str | None = None
    sha256: str | None = None
    window_tokens: int | None = None


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
        """The text's opening for the head of the default backend; nothing for Detoxify."""
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

    def __init__(self, head: Head) -> None:
        self._lexical = Lexical()
        self._direction = head.tensors["direction"]
        self._mix: tuple[float, ...] = tuple(float(value) for value in head.tensors["mix"])
        self.version = f"alt-profanity-check-{importlib.metadata.version('alt-profanity-check')}-{head.digest}"
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


class DetoxifyBackend:
    """Detoxify's transformers from a pinned checkpoint, offline; its labels are the kinds.

    `toxicity`, `severe_toxicity`, `obscene`, `threat`, `insult`, `identity_attack` (and `sexual_explicit` for the
    unbiased checkpoint). Long texts go through in overlapping windows: nothing is cut off. Loads through Detoxify's own
    `get_model_and_tokenizer`; its class `Detoxify` asks a hub for the base model's configuration even when it is given
    a folder, so it cannot be used offline. Loading takes seconds; raises `ModelMissingError`, `ConfigError`.
    """

    def __init__(self, profile: Profile) -> None:
        try:
            import torch
            from detoxify.detoxify import get_model_and_tokenizer
        except ImportError as error:
            raise ModelMissingError(
                f"guards.toxicity: the backend detoxify needs {error.name}: pip install 'tidegate[standard]'"
            ) from error
        checkpoint, config, sha256 = _pinned(profile)
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=False)
        try:
            arguments = dict(loaded["config"]["arch"]["args"])
            labels = [_LABELS.get(name, name) for name in loaded["config"]["dataset"]["args"]["classes"]]
            weights = loaded["state_dict"]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"guards.toxicity.checkpoint: {checkpoint} is not in Detoxify's format") from error
        arguments |= {"model_type": str(config), "state_dict": weights, "huggingface_config_path": str(config)}
        try:
            self._model, self._tokenizer = get_model_and_tokenizer(**arguments)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"guards.toxicity.config: the files in {config} do not fit the checkpoint ({type(error).__name__})"
            ) from error
        absent = [name for name, _ in self._model.named_parameters() if name not in weights]
        if absent or self._model.config.num_labels != len(labels):
            raise ConfigError(
                f"guards.toxicity.config: {config} is of another model; the checkpoint lacks {absent[:3]}"
            )
        if not self._tokenizer.is_fast:
            raise ConfigError(
                f"guards.toxicity.config: {config} has no fast tokenizer (tokenizer.json or a vocabulary)"
            )
        self._torch = torch
        self._model.eval()
        self._labels = labels
        limit = min(self._tokenizer.model_max_length, _positions(self._model.config))
        self._window_tokens = min(profile.window_tokens or limit, limit)
        self._overlap_tokens = min(DETOXIFY_OVERLAP_TOKENS, self._window_tokens // 4)
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps the truncation of the last call as its state
        self.version = f"detoxify-{importlib.metadata.version('detoxify')}-{sha256[:12]}-{self._window_tokens}"
        self.score([Text("the first text is not slower than the next", "user")], None)

    def needs(self, text: Text) -> tuple[str, ...]:
        return ()

    def score(self, texts: Sequence[Text], artifacts: Artifacts | None) -> Sequence[tuple[Hit, ...]]:
        if not texts:
            return []
        owners: list[int] = []
        windows: list[Range] = []
        inputs: list[dict[str, list[int]]] = []
        for number, text in enumerate(texts):
            for window, encoded in self._windows(text.text):
                owners.append(number)
                windows.append(window)
                inputs.append(encoded)
        risks = self._risks(inputs)
        best: list[list[int]] = [[] for _ in texts]
        for index, owner in enumerate(owners):
            best[owner].append(index)
        return [
            tuple(self._hit(label, kind, mine, risks, windows) for label, kind in enumerate(self._labels))
            for mine in best
        ]

    def _hit(
        self, label: int, kind: str, mine: Sequence[int], risks: npt.NDArray[np.float64], windows: Sequence[Range]
    ) -> Hit:
        worst = max(mine, key=lambda index: float(risks[index, label]))
        where = (windows[worst],) if windows[worst].end > windows[worst].start else ()
        return Hit(kind, round(float(risks[worst, label]), 3), where)

    def _windows(self, text: str) -> Iterator[tuple[Range, dict[str, list[int]]]]:
        """Overlapping windows of a text: where each lies, and its token ids."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates become one `?` each
        with self._tokenizing:
            encoded = self._tokenizer(
                text,
                truncation=True,
                max_length=self._window_tokens,
                stride=self._overlap_tokens,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
        for ids, mask, offsets in zip(
            encoded["input_ids"], encoded["attention_mask"], encoded["offset_mapping"], strict=True
        ):
            real = [place for place in offsets if place[1] > place[0]]
            where = Range(real[0][0], real[-1][1]) if real else Range(0, 0)
            yield where, {"input_ids": ids, "attention_mask": mask}

    def _risks(self, inputs: Sequence[dict[str, list[int]]]) -> npt.NDArray[np.float64]:
        """Windows → risks, shape (n, labels). Windows of like length share a batch: padding is wasted work."""
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]["input_ids"]))
        risks = np.zeros((len(inputs), len(self._labels)))
        with self._torch.no_grad():
            for begin in range(0, len(order), DETOXIFY_BATCH):
                chosen = order[begin : begin + DETOXIFY_BATCH]
                with self._tokenizing:
                    batch = self._tokenizer.pad([inputs[index] for index in chosen], return_tensors="pt")
                logits = self._model(**batch)[0]
                risks[chosen] = self._torch.sigmoid(logits).double().numpy()
        return risks


_LABELS: Final[Mapping[str, str]] = {
    "toxic": "toxicity",
    "severe_toxic": "severe_toxicity",
    "identity_hate": "identity_attack",
}
"""Detoxify's checkpoints name three labels in two ways; these are the later names."""


_FETCH_HINT: Final = (
    "fetch the checkpoint with `curl -LO https://github.com/unitaryai/detoxify/releases/download/v0.1-alpha/"
    "toxic_original-c1212f89.ckpt` and the configuration with `hf download unitary/toxic-bert --local-dir toxic-bert`"
)


def _positions(config: Any) -> int:
    """Tokens that the model can number; RoBERTa's start after the padding token's own number."""
    shift = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return int(config.max_position_embeddings) - shift


def _pinned(profile: Profile) -> tuple[Path, Path, str]:
    """The checkpoint, its hash checked, and the folder of its configuration."""
    missing = [name for name in ("checkpoint", "config", "sha256") if getattr(profile, name) is None]
    if missing:
        raise ModelMissingError(
            f"guards.toxicity: the backend detoxify needs {', '.join(missing)} in the profile; {_FETCH_HINT}"
        )
    checkpoint, config = Path(str(profile.checkpoint)), Path(str(profile.config))
    for path in (checkpoint, config / "config.json"):
        if not path.is_file():
            raise ModelMissingError(f"guards.toxicity: {path} is not there; {_FETCH_HINT}")
    with checkpoint.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != str(profile.sha256).lower():
        raise ConfigError(f"guards.toxicity.sha256: {checkpoint} has the hash {found}, the profile pins another")
    return checkpoint, config, found


_BACKENDS: Final[Mapping[str, Callable[[Profile], Backend]]] = {
    "alt-profanity-check": lambda profile: LinearBackend(load_head("toxicity")),
    "detoxify": DetoxifyBackend,
}


def build(options: Mapping[str, Any], models: ModelStore) -> ToxicityGuard:
    """The guard with the profile's backend, loaded and warm. Blocks for seconds.

    Raises `ModelMissingError` when a package or a checkpoint is missing, `ConfigError` for a bad option.
    """
    profile = options_of(Profile, options, "guards.toxicity")
    assert isinstance(profile, Profile)
    if profile.backend == "alt-profanity-check":
        models.encoder()
    return ToxicityGuard(_BACKENDS[profile.backend](profile))
