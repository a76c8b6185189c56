"""Text without sense: keyboard mash, random characters, strings of words, broken encodings; and loops of one phrase.

Letters are judged word by word against tables of what follows what in eight groups of languages (guards/letters.bin,
which scripts/letters.py makes). What no such table can judge is left out first: code, links, encoded data, names with
digits, and every script but the Latin one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from guards.folding import fold, without_surrogates
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.languages import language_of
from guards.policy import options_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit
from guards.words import function_share, words

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["GROUPS", "STEPS_PER_BIT", "SYMBOLS", "TABLE", "GibberishGuard", "build", "letters_of"]


# Mash. Words of prose cost 2 to 4 bits a letter in the group that fits them best (99 in 100 less than 5), random
# letters and walks over a keyboard 4.5 to 6.
MASH_BITS: Final = 4.6
MIN_WORD_CHARS: Final = 3
MAX_WORD_CHARS: Final = 60  # what is longer is data; of mash the first letters are enough
EVIDENCE_BITS: Final = 5.0  # beyond MASH_BITS, in all: "asdfghjkl" alone has 8
SHARE_MIDDLE: Final = 0.4  # of a text's letters in such words: there the risk is one half
SHARE_SCALE: Final = 0.08

# Random characters: symbols all over, hardly a word; "a[i]+=b[j];" has the first, but no text of code the second.
MIN_NOISE_CHARS: Final = 24
MAX_WORDS_SHARE: Final = 0.2
MIN_RARE_SYMBOLS: Final = 4  # of those that formulas do not have
MIN_CHANGES: Final = 0.4  # from letter to digit to symbol, a character

# A string of words: whole prose has 0.3 to 0.6 function words, titles and lists fewer but more punctuation.
MIN_SALAD_WORDS: Final = 20
MAX_FUNCTION_SHARE: Final = 0.12
WORDS_PER_STOP: Final = 15
SALAD_RISK: Final = 0.7  # keywords for a search look the same
SALAD_LANGUAGES: Final = frozenset({"en", "de", "es", "fr", "it", "pt"})  # of which the function words are known

# Broken encodings: UTF-8 that was read as Windows-1252 once.
MOJIBAKE_SCALE: Final = 2.0  # one place 0.39, three 0.78

# Loops: a phrase of at most MAX_PERIOD words, MIN_TIMES times without a break.
MAX_PERIOD: Final = 64
MIN_TIMES: Final = 4
MIN_LOOP_WORDS: Final = 12
LOOP_SCALE_WORDS: Final = 20.0  # repeated words; a chorus has some, a model that is stuck has hundreds
MAX_LOOP_CHARS: Final = 64  # the phrase of a loop without spaces
MIN_LOOP_RUN_CHARS: Final = 30

TABLE: Final = Path(__file__).with_name("letters.bin")
SYMBOLS: Final = " abcdefghijklmnopqrstuvwxyz"
STEPS_PER_BIT: Final = 16  # of a byte of the table: 0 to 15.9 bits
GROUPS: Final = (
    ("en",),
    ("de", "nl", "da", "nb", "sv", "is"),
    ("fr", "ca"),
    ("es", "pt", "it", "ro"),
    ("pl", "cs", "sk", "sl", "sh", "lt", "lv"),
    ("fi", "hu", "tr"),
    ("id", "ms", "fil"),
    ("vi",),
)

_LIGATURES: Final = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)

_DATA: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]{1,200}>|data:[\w/;,+=-]+", re.DOTALL)
_NO_WORD: Final = re.compile(r"[\d/\\_@=#{}\[\]<>$|+^~*]|\w[.:]\w|\w\(|[\"']:")  # in links, names, calls, data
_ALPHA: Final = re.compile(r"[^\W\d_]+")
_STOP: Final = re.compile(r"[.,;:!?()|\n\-–—\"“”]")
_RARE_SYMBOL: Final = re.compile(r"[~`!@#$%&?\"']")
_CLASS: Final = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+|_+")
_MOJIBAKE: Final = re.compile(
    r"[ÂÃÐÑÎÏ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
    r"|â[€‚„†][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|ï»¿|ï¿½|ðŸ|\ufffd"
)
_UNBROKEN: Final = re.compile(r"[^\W\d_]{30,}")
_TOKEN: Final = re.compile(r"\w+")


def letters_of(word: str) -> str:
    """A word in the letters a to z; letters of other scripts are left out."""
    low = fold(word.lower().translate(_LIGATURES)).text
    return "".join(char for char in low if "a" <= char <= "z")


class GibberishGuard:
    """Kinds `gibberish` (mash, random characters, strings of words, broken encodings) and `repetition`.

    A hit of each per text. `repetition` marks the loop.
    """

    name = "gibberish"
    version = "1"
    stages: frozenset[Stage] = frozenset({"request", "response"})
    unit: Literal["text"] = "text"
    options_type = NoOptions

    def __init__(self) -> None:
        side = len(SYMBOLS)
        steps = np.frombuffer(TABLE.read_bytes(), np.uint8).reshape(len(GROUPS), side, side, side)
        # Most words of a text have been seen before; 30,000 of them take 3 MB.
        self._cost = lru_cache(maxsize=30_000)(self._bits_a_letter)
        self._bits: npt.NDArray[np.float32] = steps.astype(np.float32) / np.float32(STEPS_PER_BIT)

    def applies(self, unit: Unit, options: NoOptions) -> bool:
        """False for all but what users and assistants write; arguments of tool calls are data."""
        (text,) = unit.texts
        return text.role in ("user", "assistant") and text.location.tool_call is None

    def needs(self, unit: Unit, options: NoOptions) -> Needs:
        """Nothing."""
        return Needs()

    def check(self, units: Sequence[Unit], options: NoOptions, artifacts: Artifacts) -> list[Result]:
        """Two hits per text."""
        return [self._check(unit.texts[0].text) for unit in units]

    def _check(self, text: str) -> Result:
        if len(text) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        prose = _DATA.sub(" ", without_surrogates(text))
        risk = max(_mash(self._words(prose)), self._noise(prose), _salad(prose), _mojibake(prose))
        score, place = _loop(text)
        return [Hit("gibberish", round(risk, 3)), Hit("repetition", round(score, 3), (place,) if score else ())]

    def _words(self, prose: str) -> dict[str, float]:
        """The words that a table can judge, each once, and their bits a letter in the group that fits them best.

        Acronyms are left out unless all is in capitals.
        """
        shouted = prose.isupper()
        found: dict[str, float] = {}
        for token in prose.split():
            if _NO_WORD.search(token):
                continue
            for match in _ALPHA.finditer(token):
                word = match.group()[:MAX_WORD_CHARS]
                if len(word) < MIN_WORD_CHARS or (word[1:] != word[1:].lower() and not shouted):
                    continue
                letters = letters_of(word)
                if len(letters) >= MIN_WORD_CHARS:
                    found[letters] = self._cost(letters)
        return found

    def _bits_a_letter(self, letters: str) -> float:
        places = np.array([0, 0, *(ord(letter) - ord("a") + 1 for letter in letters), 0])
        return float(self._bits[:, places[:-2], places[1:-1], places[2:]].mean(axis=1).min())

    def _noise(self, prose: str) -> float:
        """Random characters of a keyboard, as ciphers and broken decoders leave them."""
        chars = sum(not char.isspace() for char in prose)
        if chars < MIN_NOISE_CHARS or len(set(_RARE_SYMBOL.findall(prose))) < MIN_RARE_SYMBOLS:
            return 0.0
        changes = sense = 0
        for match in _CLASS.finditer(prose):
            piece = match.group()
            changes += match.end() < len(prose) and not prose[match.end()].isspace()
            plain = len(piece) >= MIN_WORD_CHARS and piece[0].isalpha() and piece[1:] == piece[1:].lower()
            if plain and (not piece.isascii() or self._cost(letters_of(piece[:MAX_WORD_CHARS])) < MASH_BITS):
                sense += len(piece)
        if sense > MAX_WORDS_SHARE * chars or changes < MIN_CHANGES * chars:
            return 0.0
        return min(1.0, 0.5 + 0.5 * (1 - sense / (MAX_WORDS_SHARE * chars)))


def _mash(found: Mapping[str, float]) -> float:
    bad = {letters: bits for letters, bits in found.items() if bits > MASH_BITS}
    if not bad:
        return 0.0
    share = sum(map(len, bad)) / sum(map(len, found))
    evidence = sum((bits - MASH_BITS) * (len(letters) + 1) for letters, bits in bad.items())
    return (1 - math.exp(-evidence / EVIDENCE_BITS)) / (1 + math.exp((SHARE_MIDDLE - share) / SHARE_SCALE))


def _salad(prose: str) -> float:
    found = words(prose)
    if len(found) < MIN_SALAD_WORDS or len(_STOP.findall(prose.strip())) * WORDS_PER_STOP > len(found):
        return 0.0
    share = function_share(found)
    if share > MAX_FUNCTION_SHARE or language_of(prose)[0] not in SALAD_LANGUAGES:
        return 0.0
    return SALAD_RISK * (1 - 0.5 * share / MAX_FUNCTION_SHARE)


def _mojibake(prose: str) -> float:
    places = sum(1 for _ in _MOJIBAKE.finditer(prose))
    return 1 - math.exp(-places / MOJIBAKE_SCALE)


def _loop(text: str) -> tuple[float, Range]:
    """The longest loop of words, or of letters in a word without end: its risk and its place."""
    tokens = list(_TOKEN.finditer(text))
    best, place = 0.0, Range(0, 0)
    for match in _UNBROKEN.finditer(text):
        start, end, period = _longest([ord(char) for char in match.group().lower()], MAX_LOOP_CHARS, MIN_LOOP_RUN_CHARS)
        if end > start:
            risk = _loop_risk((end - start - period) / 4, (end - start) / max(1, len(text)))  # 4 letters as a word
            if risk > best:
                best, place = risk, Range(match.start() + start, match.start() + end)
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(token.group().lower(), len(numbers)) for token in tokens]
    start, end, period = _longest(ids, MAX_PERIOD, MIN_LOOP_WORDS)
    if end > start and any(char.isalpha() for token in tokens[start : start + period] for char in token.group()):
        risk = _loop_risk(end - start - period, (end - start) / len(tokens))
        if risk > best:
            best, place = risk, Range(tokens[start].start(), tokens[end - 1].end())
    return best, place


def _loop_risk(repeated: float, share: float) -> float:
    return (1 - math.exp(-repeated / LOOP_SCALE_WORDS)) * (0.5 + 0.5 * share)


def _longest(ids: Sequence[int], max_period: int, min_length: int) -> tuple[int, int, int]:
    """(start, end, period) of the longest stretch that repeats its first ``period`` items at least `MIN_TIMES` times.

    Time is linear in the length: ``max_period`` comparisons of the whole with itself.
    """
    best = (0, 0, 0)
    array = np.array(ids, dtype=np.int64)
    for period in range(1, min(max_period, len(ids) // MIN_TIMES) + 1):
        same = np.concatenate(([False], array[period:] == array[:-period], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        starts, ends = edges[::2], edges[1::2]
        if not len(starts):
            continue
        longest = int(np.argmax(ends - starts))
        length = int(ends[longest] - starts[longest]) + period
        if length >= max(min_length, MIN_TIMES * period) and length > best[1] - best[0]:
            best = (int(starts[longest]), int(starts[longest]) + length, period)
    return best


def build(options: Mapping[str, Any], models: ModelStore) -> GibberishGuard:
    """The guard, its table read. Raises `ConfigError` for an option: it has none."""
    options_of(NoOptions, options, "guards.gibberish")
    return GibberishGuard()
