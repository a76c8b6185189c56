"""Regexes of the operator's own: patterns that must not be in a text, and patterns that must be in an answer.

RE2 (google-re2) takes linear time on any text, so no pattern of a policy can be made to hang; in return it has neither
look-around nor back-references.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import re2

from guards.answers import final_answers
from guards.folding import without_surrogates
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.policy import options_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Text, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["MAX_CHARS", "MAX_PLACES", "Options", "Pattern", "RegexGuard", "build"]


MAX_PLACES: Final = 100
"""Matches of one pattern that are looked at in an exchange; each costs about 15 µs."""


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pattern in RE2's syntax. ``group``: the number or name of the part whose place is told.

    ``required``: it must be in every answer, and is found where it is not.
    """

    name: str
    pattern: str
    score: float = 1.0
    group: int | str = 0
    required: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: a pattern needs one, it is the kind of its findings")
        if not 0 <= self.score <= 1:
            raise ValueError(f"score: {self.score} is not within 0 and 1")
        try:
            compiled = _compiled(self.pattern)
        except re2.error as error:
            raise ValueError(f"pattern: does not compile: {_words_of(error)}") from error
        except UnicodeEncodeError as error:
            raise ValueError("pattern: holds a lone surrogate") from error
        if compiled.search("") is not None:
            raise ValueError("pattern: it matches nothing at all, so it would be found everywhere")
        known: object = compiled.groupindex if isinstance(self.group, str) else range(compiled.groups + 1)
        if self.group not in known:  # type: ignore[operator]
            raise ValueError(f"group: the pattern has no group {self.group!r}")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """``guards.regex.options``. Texts of ``skip_roles`` are not looked at."""

    patterns: tuple[Pattern, ...] = ()
    skip_roles: tuple[str, ...] = ("system", "developer")


class RegexGuard:
    """Kinds are the names of the patterns; a hit for each pattern that matches, or that is required and missing."""

    name = "regex"
    version = f"1+google-re2-{importlib.metadata.version('google-re2')}"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    # Not the text: what must be in an answer may be in any of its parts, and not in the arguments of a tool call.
    unit: Literal["text", "exchange"] = "exchange"
    options_type: type[msgspec.Struct] = Options

    def applies(self, unit: Unit, options: Options) -> bool:
        searched = any(not pattern.required for pattern in options.patterns) and any(_texts(unit, options))
        required = unit.stage == "response" and any(pattern.required for pattern in options.patterns)
        return searched or (required and bool(final_answers(unit)))

    def needs(self, unit: Unit, options: Options) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """Per exchange a hit for each pattern, or ``INPUT_TOO_LARGE``. A missing pattern has no place."""
        return [self._check(unit, options) for unit in units]

    def _check(self, unit: Unit, options: Options) -> Result:
        texts = [(index, without_surrogates(text.text)) for index, text in _texts(unit, options)]
        if any(len(text) > MAX_CHARS for _, text in texts):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        hits: list[Hit] = []
        for pattern in options.patterns:
            score = round(pattern.score, 3)
            if pattern.required:
                if unit.stage == "response" and _is_missing(pattern, unit):
                    hits.append(Hit(pattern.name, score))
                continue
            places = tuple(_places(pattern, texts))
            if places:
                hits.append(Hit(pattern.name, score, places))
        return hits


def _texts(unit: Unit, options: Options) -> Iterator[tuple[int, Text]]:
    return ((index, text) for index, text in enumerate(unit.texts) if text.role not in options.skip_roles)


def _places(pattern: Pattern, texts: Sequence[tuple[int, str]]) -> Iterator[Range]:
    # Matches are counted before empty groups are left out, so that an endless row of these is bounded too.
    compiled = _compiled(pattern.pattern)
    group = compiled.groupindex.get(pattern.group, pattern.group)
    matches = ((index, match) for index, text in texts for match in compiled.finditer(text))
    for index, match in islice(matches, MAX_PLACES):
        start, end = match.span(group)
        if start < end:
            yield Range(start, end, index)


def _is_missing(pattern: Pattern, unit: Unit) -> bool:
    compiled = _compiled(pattern.pattern)
    return any(
        all(compiled.search(without_surrogates(text.text)) is None for _, text in answer)
        for answer in final_answers(unit)
    )


@lru_cache(maxsize=4_096)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False  # RE2 would write the pattern to standard error
    return re2.compile(pattern, options)


def _words_of(error: re2.error) -> str:
    return b" ".join(part if isinstance(part, bytes) else str(part).encode() for part in error.args).decode()


def build(options: Mapping[str, Any], models: ModelStore) -> RegexGuard:
    """The guard; its patterns come from the policy. Raises `ConfigError` for an option of the profile: it has none."""
    options_of(NoOptions, options, "guards.regex")
    return RegexGuard()
