"""The signs of an attack in a text: compiled from injection.yaml, matched in linear time; and which texts have them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

import msgspec
import re2
import yaml

from guards.folding import Folded, fold
from guards.types import Range, Text

__all__ = ["KINDS", "MAX_RANGES", "UNTRUSTED", "Kind", "Sign", "Signs", "from_outside", "load_signs", "places_of"]

Kind = Literal["prompt_injection", "jailbreak"]
KINDS: Final[tuple[Kind, ...]] = ("prompt_injection", "jailbreak")
UNTRUSTED: Final = frozenset({"tool", "function", "document"})
MAX_RANGES: Final = 32  # places per finding; more say nothing new
MIN_RANGE_WEIGHT: Final = 0.4  # weaker signs count, but their places would mark ordinary words

MAX_MEMORY_BYTES: Final = 256 << 20  # of a compiled set's automaton, a ceiling: about 20 MB are used
_WORDS: Final = r"[\pL\pN_]"
_GAP: Final = r"[\s\pP\pS]+"
_BASE64: Final = r"[A-Za-z0-9+/]{24,}={0,2}"


class _Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Kind
    weight: float
    pattern: str
    untrusted_only: bool = False  # for tool results and documents: in a user's own message it is an ordinary wish


class _Language(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ignore: str
    rules: str
    show: str
    your: str
    hidden: str
    switch_on: str
    mode: str
    switch_off: str
    safety: str
    persona: str
    words: Literal["latin", "cyrillic", "unspaced"] = "latin"


class _Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    languages: dict[str, _Language]
    templates: list[_Pattern]
    patterns: list[_Pattern]
    cues: str


class Sign(NamedTuple):
    """One pattern that matched: its weight and the first place, code points of the original text."""

    kind: Kind
    weight: float
    start: int
    end: int


class Signs:
    """All patterns, compiled once; `find` may be called from several threads."""

    def __init__(self, source: _Source) -> None:
        # A family says the same in every language, so its matches are one piece of evidence: `_families` tells which.
        self._patterns, self._families = list(source.patterns), list(range(len(source.patterns)))
        for family, template in enumerate(source.templates, start=len(source.patterns)):
            self._patterns.extend(_in_language(template, words) for words in source.languages.values())
            self._families.extend([family] * len(source.languages))
        options = re2.Options()
        options.max_mem = MAX_MEMORY_BYTES
        options.case_sensitive = False
        self._set = re2.Set.SearchSet(options)
        self._compiled = []
        for pattern in self._patterns:
            expression = _expand(pattern.pattern)
            self._set.Add(expression)
            self._compiled.append(re2.compile(expression, options))
        self._always = self._set.Add("")  # RE2 says "no match" when it runs out of memory too: this tells them apart
        self._set.Compile()
        self._cues = re2.compile(fold("|".join(_alternatives(source.cues))).text, options)
        self._base64 = re2.compile(_BASE64)

    def find(self, text: str, *, untrusted: bool) -> list[Sign]:
        """The patterns that match the text, or a text that it holds in base64. Time is linear in its length."""
        folded = fold(text)
        signs = list(self._matches(folded, untrusted=untrusted))
        for match in self._base64.finditer(folded.text):
            if hidden := _decoded(match.group()):
                start, end = folded.span(*match.span())
                inner = self._matches(fold(hidden), untrusted=untrusted)
                # Hidden as well as said: that is twice the evidence.
                signs.extend(Sign(sign.kind, 1 - (1 - sign.weight) ** 2, start, end) for sign in inner)
        return signs

    def has_cue(self, text: str) -> bool:
        """Whether the text has a word that attacks use; most ordinary texts have none."""
        return self._cues.search(fold(text).text) is not None

    def _matches(self, folded: Folded, *, untrusted: bool) -> Iterator[Sign]:
        indices = self._set.Match(folded.text)
        if indices is None or self._always not in indices:
            raise MemoryError("the automaton of the injection patterns needs more than MAX_MEMORY_BYTES")
        seen: set[int] = set()
        for index in indices:
            if index == self._always or self._families[index] in seen:
                continue
            pattern = self._patterns[index]
            if untrusted or not pattern.untrusted_only:
                seen.add(self._families[index])
                match = self._compiled[index].search(folded.text)
                yield Sign(pattern.kind, pattern.weight, *folded.span(*match.span()))


@lru_cache(maxsize=1)
def load_signs() -> Signs:
    """The signs that injection.yaml describes; compiled on the first call (about 0.3 s)."""
    raw: Any = yaml.safe_load(files("guards").joinpath("injection.yaml").read_text(encoding="utf-8"))
    return Signs(msgspec.convert(raw, _Source))


def from_outside(text: Text) -> bool:
    """True for user, tool and document texts, and arguments of tool calls."""
    return text.role == "user" or text.role in UNTRUSTED or text.location.tool_call is not None


def places_of(signs: Sequence[tuple[Sign, int]]) -> tuple[Range, ...]:
    """Signs with the number of their text → where the stronger ones are, in order."""
    strong = {Range(sign.start, sign.end, owner) for sign, owner in signs if sign.weight >= MIN_RANGE_WEIGHT}
    return tuple(sorted(strong, key=lambda place: (place.start, place.end))[:MAX_RANGES])


def _alternatives(words: str) -> list[str]:
    return [word.strip() for word in words.split(" | ")]


def _in_language(template: _Pattern, language: _Language) -> _Pattern:
    spaced = language.words != "unspaced"
    fields = {
        name: f"(?:{'|'.join(_alternatives(getattr(language, name)))})"
        for name in _Language.__struct_fields__
        if name != "words"
    }
    gap, following = ("<5>", " ") if spaced else (".{0,8}?", "")
    text = template.pattern
    for name, words in {"gap": gap, "next": following, **fields}.items():
        text = text.replace("{" + name + "}", words)
    if language.words == "latin" and not text.startswith("^"):
        text = rf"\b{text}"  # RE2's \b knows ASCII only, which folded Latin words are
    return msgspec.structs.replace(template, pattern=text)


def _expand(pattern: str) -> str:
    """A pattern of injection.yaml as RE2 writes it, folded as the texts are."""
    pattern = fold(pattern).text
    for count in range(13):
        pattern = pattern.replace(f"<{count}>", f"(?:{_GAP}{_WORDS}+){{0,{count}}}?{_GAP}")
    pattern = pattern.replace(" ?", f"(?:{_GAP})?").replace(" ", _GAP)
    return pattern.replace(r"\w", _WORDS)


def _decoded(blob: str) -> str:
    """What a base64 blob says, or nothing if it is no text."""
    try:
        return base64.b64decode(blob + "=" * (-len(blob) % 4), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return ""
