"""Prompt injection and jailbreaks: patterns in a dozen languages, and small heads on the shared embedding.

Texts of users, tool results, documents and arguments of tool calls are looked at; system and assistant messages are the
application's own. Patterns read every text in full. What a user writes is also read by a head that tells attacks from
questions about rules, prompts and roles. In documents and tool results another head reads the sentences that may be
an order to the assistant. The user's last turns are read once more as one text: an attack may be spread over them.
A profile can put a classifier in the heads' place: `guards.injection_classifier`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from guards.artifacts import Artifacts
from guards.errors import ConfigError
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.heads import Head, load_head, logistic
from guards.injection_classifier import ClassifierGuard
from guards.injection_orders import Order, orders
from guards.injection_signs import (
    KINDS,
    MAX_RANGES,
    MIN_RANGE_WEIGHT,
    UNTRUSTED,
    Kind,
    Sign,
    Signs,
    from_outside,
    load_signs,
    places_of,
)
from guards.models import ModelStore
from guards.models.sources import spec_of
from guards.policy import options_of
from guards.sentences import passages, sentences
from guards.types import Failure, FailureCode, Hit, Range, Stage, Text, Unit
from guards.words import english_share, words

__all__ = [
    "ALONE_COSINE",
    "MAX_CHARS",
    "InjectionGuard",
    "Profile",
    "attack_columns",
    "build",
    "evidence",
    "order_columns",
    "passages_of",
]

PASSAGE_CHARS: Final = 600  # about 130 tokens: an attack within a longer passage would be averaged away
ALONE_CHARS: Final = 150  # in longer texts the sentences of strong signs are read by themselves too
STRONG_WEIGHT: Final = 0.5
MAX_STRONG: Final = 3
MARGIN_CHARS: Final = 150
MAX_EVIDENCE: Final = 5.0  # -ln(1 - 0.993): what patterns alone can say at most
LANGUAGE_CHARS: Final = 2_000  # enough to know a text's language
CACHED_CHARS: Final = 8_000  # what was found in texts up to this length is remembered: documents and history come again
CACHED_TEXTS: Final = 4_096  # some 10 MB of typical documents, 130 MB at worst

# The joined turns: an attack is spread over few, and weak signs from a long chat must not add up to one.
JOINED_TURNS: Final = 4
JOINED_CHARS: Final = 4_000

ALONE_COSINE: Final = 0.25  # of an order that is the whole document: neither at home nor a stranger


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guards.injection`` in a profile; all but ``backend`` are for ``hf-classifier``.

    ``labels``: the model's label → `prompt_injection` or `jailbreak`. ``documents``: whether the classifier reads
    documents too, which takes tens of milliseconds for each 500 tokens.
    """

    backend: Literal["heads", "hf-classifier"] = "heads"
    model: dict[str, Any] | None = None
    labels: dict[str, Kind] = {}
    documents: bool = False


class _Look(NamedTuple):
    """What a text says by itself: signs, passages and orders that the heads read, and its share of English."""

    signs: tuple[Sign, ...]
    passages: tuple[str, ...]
    orders: tuple[Order, ...]
    order_evidence: tuple[float, ...]
    english: float


class InjectionGuard:
    """Kinds `prompt_injection` and `jailbreak`, a hit of each for every text, however low the score."""

    name = "injection"
    stages: frozenset[Stage] = frozenset({"request"})
    unit: Literal["exchange"] = "exchange"
    options_type = NoOptions

    def __init__(self, signs: Signs, head: Head, encoder_version: str) -> None:
        self._signs = signs
        self._head = {name: tensor.astype(np.float64) for name, tensor in head.tensors.items()}
        self.version = f"2-{head.digest}+{encoder_version}"
        self._remembered = lru_cache(maxsize=CACHED_TEXTS)(self._see)

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """True where a text comes from outside: user, tool and document texts, and arguments of tool calls."""
        return any(map(from_outside, unit.texts))

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Of users' texts the whole or, of long ones, the suspicious passages; of documents what may be an order."""
        if _too_large(unit):
            return Needs()
        looks = [self._look(text) for text in unit.texts if from_outside(text)]
        embed = [passage for look in looks for passage in look.passages]
        embed += [part for look in looks for order in look.orders for part in (order.text, order.context) if part]
        return Needs(embed=tuple(dict.fromkeys(embed)))

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Per exchange a hit of each kind for each text from outside, and for its last turns if they say more."""
        return [
            Failure(FailureCode.INPUT_TOO_LARGE) if _too_large(unit) else self._check(unit, artifacts) for unit in units
        ]

    def _check(self, unit: Unit, artifacts: Artifacts) -> list[Hit]:
        hits: list[Hit] = []
        turns: list[tuple[int, float]] = []  # place in unit.texts, what the head saw
        highest = 0.0
        for index, text in enumerate(unit.texts):
            if not from_outside(text):
                continue
            look = self._look(text)
            if text.role != "user":
                hits.extend(self._document_hits(look, index, artifacts))
                continue
            vectors = [artifacts.embedding(passage) for passage in look.passages]
            seen = max((float(self._head["attack"] @ vector) for vector in vectors), default=self._unseen)
            kind = float(np.mean([self._head["kind"] @ vector for vector in vectors])) if vectors else 0.0
            found = self._text_hits(look.signs, seen, kind, look.english, [index] * len(look.signs))
            turns.append((index, seen))
            highest = max(highest, *(hit.score for hit in found))
            hits.extend(found)
        return [*hits, *self._joined_hits(unit, turns, highest)]

    @property
    def _unseen(self) -> float:
        return -float(self._head["attack_constant"][0])

    def _look(self, text: Text) -> _Look:
        see = self._remembered if len(text.text) <= CACHED_CHARS else self._see
        return see(text.text, text.role if text.location.tool_call is None else "tool_call")

    def _see(self, text: str, role: str) -> _Look:
        untrusted = role in UNTRUSTED
        found = tuple(orders(text)) if untrusted else ()
        signs = tuple(self._signs.find(text, untrusted=untrusted))
        return _Look(
            signs=signs,
            passages=passages_of(text, self._signs, signs) if role == "user" else (),
            orders=found,
            order_evidence=tuple(sum(evidence(self._signs.find(order.text, untrusted=True))) for order in found),
            english=english_share(words(text[:LANGUAGE_CHARS])),
        )

    def _text_hits(
        self, signs: Sequence[Sign], seen: float, kind: float, english: float, owners: Sequence[int]
    ) -> list[Hit]:
        injection, jailbreak = evidence(signs)
        columns = attack_columns(seen + float(self._head["attack_constant"][0]), injection, jailbreak, english)
        risk = logistic(float(self._head["mix"] @ (*columns, 1.0)))
        # The likelier kind has the whole risk; the other so much less as it is less likely.
        share = logistic(kind + float(self._head["kind_constant"][0]) + 2 * (jailbreak - injection))
        shares = {"prompt_injection": min(1.0, 2 * (1 - share)), "jailbreak": min(1.0, 2 * share)}
        return [
            Hit(
                name,
                round(risk * shares[name], 3),
                places_of([(s, o) for s, o in zip(signs, owners, strict=True) if s.kind == name]),
            )
            for name in KINDS
        ]

    def _document_hits(self, look: _Look, index: int, artifacts: Artifacts) -> list[Hit]:
        """Patterns count as they stand; the likeliest order counts if it is worse than they are."""
        risks = {kind: 1 - math.prod(1 - sign.weight for sign in look.signs if sign.kind == kind) for kind in KINDS}
        places = {kind: list(places_of([(sign, index) for sign in look.signs if sign.kind == kind])) for kind in KINDS}
        for order, known in zip(look.orders, look.order_evidence, strict=True):
            vector = artifacts.embedding(order.text)
            cosine = float(vector @ artifacts.embedding(order.context)) if order.context else ALONE_COSINE
            columns = order_columns(order, cosine, known)
            weighed = float(self._head["order"] @ vector) + float(self._head["order_mix"] @ (*columns, 1.0))
            risk = logistic(weighed)
            if risk >= MIN_RANGE_WEIGHT:
                places["prompt_injection"].append(Range(order.start, order.end, index))
            risks["prompt_injection"] = max(risks["prompt_injection"], risk)
        ordered = {
            kind: sorted(set(found), key=lambda r: (r.start, r.end))[:MAX_RANGES] for kind, found in places.items()
        }
        return [Hit(kind, round(risks[kind], 3), tuple(ordered[kind])) for kind in KINDS]

    def _joined_hits(self, unit: Unit, turns: Sequence[tuple[int, float]], highest: float) -> list[Hit]:
        """What the last turns say together, by patterns; only if that is more than the worst of them says alone."""
        last = turns[-JOINED_TURNS:]
        if len(last) < 2:
            return []
        room = JOINED_CHARS // len(last)
        joined, starts = "", []
        for index, _ in last:
            starts.append(len(joined))
            joined += unit.texts[index].text[-room:] + "\n"
        signs = self._remembered(joined, "joined").signs
        seen = max(seen for _, seen in last)
        english = english_share(words(joined[:LANGUAGE_CHARS]))
        found = self._text_hits(signs, seen, 0.0, english, [0] * len(signs))
        if max(hit.score for hit in found) <= highest:
            return []
        offsets = [
            start - max(0, len(unit.texts[index].text) - room) for start, (index, _) in zip(starts, last, strict=True)
        ]
        return [
            Hit(hit.kind, hit.score, tuple(_apart(hit.ranges, starts, offsets, [i for i, _ in last], unit)))
            for hit in found
        ]


def _apart(
    ranges: Sequence[Range], starts: Sequence[int], offsets: Sequence[int], owners: Sequence[int], unit: Unit
) -> list[Range]:
    """Places in the joined text → places in the texts; one that spans a seam becomes one in each."""
    parts: list[Range] = []
    for place in ranges:
        for number, start in enumerate(starts):
            stop = starts[number + 1] if number + 1 < len(starts) else math.inf
            left, right = max(place.start, start), min(place.end, stop)
            if left < right:
                shift, owner = offsets[number], owners[number]
                end = min(int(right) - shift, len(unit.texts[owner].text))
                if int(left) - shift < end:
                    parts.append(Range(int(left) - shift, end, owner))
    return parts


def evidence(signs: Sequence[Sign]) -> tuple[float, float]:
    """What patterns say of injection and of jailbreak: the sum of -ln(1 - weight), at most `MAX_EVIDENCE` each."""
    sums = {kind: -math.fsum(math.log(1 - sign.weight) for sign in signs if sign.kind == kind) for kind in KINDS}
    return min(sums["prompt_injection"], MAX_EVIDENCE), min(sums["jailbreak"], MAX_EVIDENCE)


def attack_columns(seen: float, injection: float, jailbreak: float, english: float) -> tuple[float, ...]:
    """What the mix weighs: the head and the patterns, apart for English and for what the encoder knows less well."""
    foreign = 1 - english
    columns = (seen * english, seen * foreign, injection * english, jailbreak * english)
    return (*columns, (injection + jailbreak) * foreign, foreign)


def order_columns(order: Order, cosine: float, known: float) -> tuple[float, ...]:
    """What is weighed beside an order's embedding; ``cosine``: to its context, ``known``: patterns' evidence."""
    imperative, to_the_answer, question, _, correspondence, _, _, whole_line = order.features
    pairs = (imperative * cosine, question * cosine, imperative * to_the_answer)
    mail = (question * correspondence, imperative * correspondence, imperative * whole_line)
    return (*order.features, cosine, min(known, 4.0), *pairs, *mail)


def passages_of(text: str, signs: Signs, found: Sequence[Sign]) -> tuple[str, ...]:
    """What the head reads of a user's text: the whole, or of a long one its opening and the passages with a cue.

    Beside these the sentences of the strongest signs by themselves: a passage of other matters would outvote them.
    """
    if not any(map(str.isalnum, text)):
        return ()
    if len(text) <= PASSAGE_CHARS:
        read = [text]  # as it is: other guards embed the whole text too
    else:
        parts = [passage.text for passage in passages(text, PASSAGE_CHARS)]
        read = [passage for number, passage in enumerate(parts) if number == 0 or signs.has_cue(passage)]
    if len(text) > ALONE_CHARS:
        strong = sorted((sign for sign in found if sign.weight >= STRONG_WEIGHT), key=lambda s: (-s.weight, s.start))
        read += [_sentence_of(text, sign) for sign in strong[:MAX_STRONG]]
    return tuple(dict.fromkeys(read))


def _sentence_of(text: str, sign: Sign) -> str:
    """The sentences that a sign touches, cut at `MARGIN_CHARS` before and after it."""
    begin = max(0, sign.start - MARGIN_CHARS)
    around = sentences(text[begin : sign.end + MARGIN_CHARS])
    touched = [s.text for s in around if begin + s.start < sign.end and sign.start < begin + s.end]
    return " ".join(touched)[:PASSAGE_CHARS] or text[sign.start : sign.end]


def _too_large(unit: Unit) -> bool:
    return any(len(text.text) > MAX_CHARS for text in unit.texts if from_outside(text))


def build(options: Mapping[str, Any], models: ModelStore) -> InjectionGuard | ClassifierGuard:
    """Make the guard; compiles the patterns (about 0.3 s) and loads the profile's model.

    Raises `ConfigError` for an option, `ModelMissingError` without the model.
    """
    profile = options_of(Profile, options, "guards.injection")
    assert isinstance(profile, Profile)
    if profile.backend == "heads":
        encoder = models.encoder()
        return InjectionGuard(load_signs(), load_head("injection", encoder), encoder.version)
    if profile.model is None or not profile.labels:
        raise ConfigError(
            "guards.injection: the backend hf-classifier needs `model` and `labels`, such as "
            "`labels: {INJECTION: prompt_injection}`"
        )
    classifier = models.classifier(spec_of(profile.model, "guards.injection.model"))
    return ClassifierGuard(load_signs(), classifier, profile.labels, documents=profile.documents)
