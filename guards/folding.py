"""Fold a text for matching (look-alikes, accents, invisible characters) and map places back to the original."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["Folded", "fold", "without_surrogates"]

# Cyrillic and Greek letters that look like Latin ones. They are folded only within a word that holds Latin letters too.
_LOOK_ALIKES: Final = dict(
    zip(
        "авеікмнорстухѕјԁԛԝһӏАВЕІКМНОРСТУХЅЈαβεικνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
        "abeikmhopctyxsjdqwhlABEIKMHOPCTYXSJabeikvoptuxABEZHIKMNOPTYX",
        strict=True,
    )
)
_WORD: Final = re.compile(r"\w+")
_LATIN: Final = re.compile(r"[A-Za-z]")


class Folded(NamedTuple):
    """``text`` and, where it is not the original itself, for each of its characters the original's index."""

    text: str
    offsets: Sequence[int] | None
    original_chars: int

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Place in ``text`` → place in the original (code points, end exclusive)."""
        if self.offsets is None:
            return start, end
        if end <= start:
            place = self.offsets[start] if start < len(self.offsets) else self.original_chars
            return place, place
        return self.offsets[start], self.offsets[end - 1] + 1


def fold(text: str) -> Folded:
    """NFKD without accents, without invisible characters, look-alikes in mixed words as Latin; case is kept.

    Time is linear; an ASCII text without control characters is returned as it is.
    """
    if text.isascii() and "\0" not in text:
        return Folded(text, None, len(text))
    pieces = [_fold_char(char) for char in text]
    folded = "".join(pieces)
    offsets = [index for index, piece in enumerate(pieces) for _ in piece]
    return Folded(_WORD.sub(_unmask, folded), offsets, len(text))


@lru_cache(maxsize=8192)
def _fold_char(char: str) -> str:
    if char == "\0" or unicodedata.category(char) in ("Cf", "Cs"):  # zero-width, direction marks, tags; lone surrogates
        return ""
    return "".join(part for part in unicodedata.normalize("NFKD", char) if unicodedata.category(part) != "Mn")


def _unmask(match: re.Match[str]) -> str:
    word = match.group()
    if word.isascii() or not _LATIN.search(word):
        return word
    return "".join(_LOOK_ALIKES.get(char, char) for char in word)


def without_surrogates(text: str) -> str:
    """The text with each lone surrogate as one ``?``, so that places stay: JSON can carry them, UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
