"""Terms: lists of words and phrases (competitors, banned words, project names), found in one pass over a text.

Aho-Corasick (pyahocorasick): the time is linear in the text, whether a list holds three terms or ten thousand. Case,
accents, look-alike letters, invisible characters and the width of white space do not hide a term.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import ahocorasick
import msgspec

from guards.folding import fold
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.policy import options_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["MAX_CHARS", "MAX_PLACES", "Options", "TermList", "TermsGuard", "build"]


MAX_PLACES: Final = 1_000
"""Places that one hit lists; a text that is full of a term would make a record of megabytes."""

_WIDE_SPACE: Final = re.compile(r"\s{2,}|[^\S ]")
# Scripts without spaces between words: there a whole word cannot be told from a part of one.
_UNSPACED: Final = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


class TermList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Terms that share a kind. ``whole_words``: `cat` is not found in `concatenate`."""

    name: str
    terms: tuple[str, ...]
    whole_words: bool = True
    case_sensitive: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: a list needs one, it is the kind of its findings")
        for number, term in enumerate(self.terms):
            if not _plain(term, self.case_sensitive)[0].strip():
                raise ValueError(f"terms.{number}: {term!r} holds nothing to look for")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """``guards.terms.options``. Texts of ``skip_roles`` are not looked at."""

    lists: tuple[TermList, ...] = ()
    skip_roles: tuple[str, ...] = ("system", "developer")

    def __post_init__(self) -> None:
        names = [item.name for item in self.lists]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"lists: two are named {name!r}")


class TermsGuard:
    """Kinds are the names of the lists; a hit (score 1) for each list that a text holds a term of, with the places."""

    name = "terms"
    version = f"1+pyahocorasick-{importlib.metadata.version('pyahocorasick')}"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "text"
    options_type: type[msgspec.Struct] = Options

    def applies(self, unit: Unit, options: Options) -> bool:
        return bool(options.lists) and unit.texts[0].role not in options.skip_roles

    def needs(self, unit: Unit, options: Options) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """One result per unit: a hit per list, its ranges in order and never overlapping, or ``INPUT_TOO_LARGE``."""
        matchers = _matchers(options)
        return [_check(unit.texts[0].text, matchers, options.lists) for unit in units]


class _Matcher:
    """The terms of all lists that treat case alike, as one automaton: term → indexes of the lists that hold it."""

    def __init__(self, lists: Sequence[TermList], case_sensitive: bool) -> None:
        self.case_sensitive = case_sensitive
        holders: dict[str, list[int]] = {}
        for index, item in enumerate(lists):
            if item.case_sensitive is case_sensitive:
                for term in item.terms:
                    holders.setdefault(_plain(term, case_sensitive)[0].strip(), []).append(index)
        self._automaton = ahocorasick.Automaton()
        for term, indexes in holders.items():
            self._automaton.add_word(term, (len(term), tuple(dict.fromkeys(indexes))))
        self._automaton.make_automaton()
        self.empty = not holders

    def find(self, plain: str, whole: Sequence[bool]) -> Iterator[tuple[int, int, int]]:
        """(list, start, end) of every term in the plain text, overlapping ones too. ``whole``: by list."""
        for last, (length, indexes) in self._automaton.iter(plain):
            start, end = last + 1 - length, last + 1
            is_whole = _starts_word(plain, start) and _ends_word(plain, end)
            for index in indexes:
                if is_whole or not whole[index]:
                    yield index, start, end


@lru_cache(maxsize=64)  # policies and their overrides; 10,000 terms hold some megabytes
def _matchers(options: Options) -> tuple[_Matcher, ...]:
    made = (_Matcher(options.lists, case_sensitive) for case_sensitive in (False, True))
    return tuple(matcher for matcher in made if not matcher.empty)


def _check(text: str, matchers: Sequence[_Matcher], lists: Sequence[TermList]) -> Result:
    if len(text) > MAX_CHARS:
        return Failure(FailureCode.INPUT_TOO_LARGE)
    whole = [item.whole_words for item in lists]
    found: dict[int, list[tuple[int, int]]] = {}
    for matcher in matchers:
        plain, places = _plain(text, matcher.case_sensitive)
        for index, start, end in matcher.find(plain, whole):
            span = (start, end) if places is None else (places[start], places[end - 1] + 1)
            found.setdefault(index, []).append(span)
    return [Hit(lists[index].name, 1.0, _ranges(found[index])) for index in sorted(found)]


def _ranges(spans: list[tuple[int, int]]) -> tuple[Range, ...]:
    """Of terms that overlap the first and longest stays."""
    kept: list[Range] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or start >= kept[-1].end:
            kept.append(Range(start, end))
    return tuple(kept[:MAX_PLACES])


def _plain(text: str, case_sensitive: bool) -> tuple[str, Sequence[int] | None]:
    """The text folded, in one case, white space as single spaces; and per character the original's index, or None
    where the two have the same places. Linear time."""
    folded = fold(text)
    plain, places = folded.text, folded.offsets
    if not case_sensitive:
        if plain.isascii():
            plain = plain.lower()
        else:
            # One character may become several (`ß`), so each carries its place along.
            pieces = [char.casefold() for char in plain]
            origin = range(len(plain)) if places is None else places
            places = [place for piece, place in zip(pieces, origin, strict=True) for _ in piece]
            plain = "".join(pieces)
    if _WIDE_SPACE.search(plain):
        kept: list[str] = []
        kept_places: list[int] = []
        for index, char in enumerate(plain):
            if char.isspace():
                if kept and kept[-1] == " ":
                    continue
                char = " "
            kept.append(char)
            kept_places.append(index if places is None else places[index])
        plain, places = "".join(kept), kept_places
    return plain, places


def _starts_word(plain: str, start: int) -> bool:
    return start == 0 or _is_edge(plain[start - 1], plain[start])


def _ends_word(plain: str, end: int) -> bool:
    return end == len(plain) or _is_edge(plain[end], plain[end - 1])


def _is_edge(outside: str, inside: str) -> bool:
    """Whether a word may begin or end between two neighbours; `C++` ends without a letter, so anywhere."""
    if not (outside.isalnum() and inside.isalnum()):
        return True
    return _UNSPACED.match(inside) is not None or _UNSPACED.match(outside) is not None


def build(options: Mapping[str, Any], models: ModelStore) -> TermsGuard:
    """The guard; its lists come from the policy. Raises `ConfigError` for an option of the profile: it has none."""
    options_of(NoOptions, options, "guards.terms")
    return TermsGuard()
