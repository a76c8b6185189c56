"""Toxicity: a linear model over words (alt-profanity-check), or Detoxify's transformers (the standard extra).

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from guards.errors import ConfigError, ModelMissingError
from guards.guard import Needs, NoOptions, Result
from guards.policy import options_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["Backend", "Profile", "ToxicityGuard", "build"]

MAX_CHARS: Final = 131_072
"""Longer texts are refused: some 30,000 tokens, which take the linear model 0.1 s and Detoxify tens of seconds."""

MIN_PART_CHARS: Final = 24
"""Shorter sentences are joined, so that 128 KB of `a. a. a.` are 5,000 parts and not 40,000."""

MAX_PART_CHARS: Final = 80
"""Longer sentences are cut here (at a space): one insult must not be diluted by more than a dozen words."""

MAX_LOOKS: Final = 20
"""From so many parts on, the correction for looking often no longer grows: an insult is found in a long answer too."""

DETOXIFY_OVERLAP_TOKENS: Final = 64  # a sentence or two: what is cut by one window is whole in the next
DETOXIFY_BATCH: Final = 16  # windows per forward pass: 16 x 512 tokens are some 400 MB of activations

_REQUEST_ROLES: Final = frozenset({"user", "tool"})
_ENDS: Final = re.compile(r"[.!?…。！？؟।]+\s*|\n\s*")


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
        self.score(["the first text is not slower than the next"])

    def score(self, texts: Sequence[str]) -> Sequence[tuple[Hit, ...]]:
        if not texts:
            return []
        owners: list[int] = []
        windows: list[Range] = []
        inputs: list[dict[str, list[int]]] = []
        for number, text in enumerate(texts):
            for window, encoded in self._windows(text):
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
    "alt-profanity-check": lambda profile: LinearBackend(),
    "detoxify": DetoxifyBackend,
}


def build(options: Mapping[str, Any], models: ModelStore) -> ToxicityGuard:
    """The guard with the profile's backend, loaded and warm. Blocks for seconds.

    Raises `ModelMissingError` when a package or a checkpoint is missing, `ConfigError` for a bad option.
    """
    profile = options_of(Profile, options, "guards.toxicity")
    assert isinstance(profile, Profile)
    return ToxicityGuard(_BACKENDS[profile.backend](profile))
