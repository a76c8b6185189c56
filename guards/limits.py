"""Limits on the size of a request and of an answer: characters, words, tokens, messages, documents.

Tokens are estimated, since every model counts its own: a weight for each kind of piece, fitted to o200k and cl100k. It
needs no tokenizer and no table of a hundred thousand words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from guards.guard import Needs, NoOptions, Result
from guards.policy import options_of
from guards.types import Hit, Range, Stage, Text, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["Limits", "LimitsGuard", "Options", "RequestLimits", "build", "estimated_tokens"]

_WORD: Final = re.compile(r"\w+")
_PIECE: Final = re.compile(
    r"(?P<plain>[A-Za-z]++)(?![^\W\d_])|(?P<word>[^\W\d_]+)|(?P<digits>\d+)|(?P<line>\n\s*)|(?P<signs>[!-/:-@\[-`{-~]+)"
    r"|(?P<other>[^\w\s])"
)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not set is not limited."""

    max_chars: int | None = None
    min_chars: int | None = None
    max_words: int | None = None
    max_tokens: int | None = None
    max_messages: int | None = None

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if value is not None and value < 0:
                raise ValueError(f"{field}: {value} is less than nothing")
        if (self.min_chars or 0) > (self.max_chars if self.max_chars is not None else float("inf")):
            raise ValueError(f"min_chars: {self.min_chars} is more than max_chars: {self.max_chars}")


class RequestLimits(Limits, frozen=True, forbid_unknown_fields=True):
    """A request has documents too."""

    max_documents: int | None = None


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """``guards.limits.options``, by stage. Texts of ``skip_roles`` are not counted; a document's is `document`.

    A request is measured as a whole, of a response every message for itself: several are alternatives, or steps.
    """

    request: RequestLimits = RequestLimits()
    response: Limits = Limits()
    skip_roles: tuple[str, ...] = ()


class LimitsGuard:
    """Kinds `too_long`, `too_short`, `too_many_words`, `too_many_tokens`, `too_many_messages`, `too_many_documents`.

    Score 1. The places of `too_long` are what is over the limit: to redact it is to cut it off. It never fails: no text
    is too long for it, since counting ends at the limit.
    """

    name = "limits"
    version = "1"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "exchange"
    options_type: type[msgspec.Struct] = Options

    def applies(self, unit: Unit, options: Options) -> bool:
        limits = _limits(unit, options)
        return any(getattr(limits, field) is not None for field in limits.__struct_fields__) and bool(_messages(unit))

    def needs(self, unit: Unit, options: Options) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """Per exchange a hit for each limit that is passed; none fails."""
        return [tuple(_check(unit, options)) for unit in units]


def _limits(unit: Unit, options: Options) -> Limits:
    return options.request if unit.stage == "request" else options.response


def _messages(unit: Unit) -> Sequence[Any]:
    return (unit.exchange.messages if unit.stage == "request" else unit.exchange.response) or ()


def _check(unit: Unit, options: Options) -> Iterator[Hit]:
    limits = _limits(unit, options)
    messages = _messages(unit)
    counted = [(index, text) for index, text in enumerate(unit.texts) if text.role not in options.skip_roles]
    if unit.stage == "request":
        yield from _sizes(counted, limits, says_something=True)
    else:
        for number, message in enumerate(messages):
            if message.role not in options.skip_roles:
                own = [(index, text) for index, text in counted if text.location.message == number]
                yield from _sizes(own, limits, says_something=not message.tool_calls)
    if _over(len(messages), limits.max_messages):
        yield Hit("too_many_messages", 1.0)
    if isinstance(limits, RequestLimits) and _over(len(unit.exchange.documents), limits.max_documents):
        yield Hit("too_many_documents", 1.0)


def _sizes(counted: Sequence[tuple[int, Text]], limits: Limits, *, says_something: bool) -> Iterator[Hit]:
    """Of some texts taken together. One that only calls a tool need not say anything."""
    texts = [text.text for _, text in counted]
    chars = sum(map(len, texts))
    if limits.max_chars is not None and chars > limits.max_chars:
        yield Hit("too_long", 1.0, tuple(_rest(counted, limits.max_chars)))
    if limits.min_chars is not None and chars < limits.min_chars and says_something:
        yield Hit("too_short", 1.0)
    if _is_passed(limits.max_words, (1 for text in texts for _ in _WORD.finditer(text))):
        yield Hit("too_many_words", 1.0)
    if _is_passed(limits.max_tokens, (weight for text in texts for weight in _weights(text))):
        yield Hit("too_many_tokens", 1.0)


def _over(count: int, limit: int | None) -> bool:
    return limit is not None and count > limit


def _is_passed(limit: int | None, weights: Iterator[float]) -> bool:
    """Whether the sum is over the limit; it is not added up further, so that the limit bounds the time too."""
    return limit is not None and any(total >= limit + 0.5 for total in accumulate(weights))


def _rest(counted: Sequence[tuple[int, Text]], limit: int) -> Iterator[Range]:
    """What comes after the first ``limit`` characters."""
    for index, text in counted:
        if len(text.text) > limit:
            yield Range(limit, len(text.text), index)
        limit = max(0, limit - len(text.text))


def estimated_tokens(text: str) -> int:
    """About how many tokens a model of today makes of a text. For nine in ten texts in English, German or code within
    20 % of o200k's count; other alphabets and random characters within a factor of two (docs/guards/limits.md)."""
    return round(sum(_weights(text)))


def _weights(text: str) -> Iterator[float]:
    """Tokens of the pieces of a text, by kind and length."""
    for match in _PIECE.finditer(text):
        chars = match.end() - match.start()
        kind = match.lastgroup
        if kind == "plain":
            yield 0.96 + 0.23 * max(0, chars - 6)
        elif kind == "signs":
            yield 0.8 + 0.12 * (chars - 1)
        elif kind == "digits":
            yield 1.5 * ((chars + 2) // 3)
        elif kind == "line":
            yield 1.15
        elif kind == "other":  # emoji and the like
            yield 1.5
        elif (first := text[match.start()]) < "\u0250":  # Latin letters, some with accents
            yield 1.7 + 0.36 * max(0, chars - 3)
        else:  # other alphabets; from there on Chinese, Japanese, Korean
            yield chars * (0.5 if first < "\u3040" else 1.0)


def build(options: Mapping[str, Any], models: ModelStore) -> LimitsGuard:
    """The guard; its limits come from the policy. Raises `ConfigError` for an option of the profile: it has none."""
    options_of(NoOptions, options, "guards.limits")
    return LimitsGuard()
