"""Presidio's pattern recognizers, run directly: only where something cheap says that they can match.

Presidio's `AnalyzerEngine` runs spaCy's whole pipeline and every recognizer over every text. Here each recognizer has a
necessary condition (a run of seven digits, an ``@``), which most texts do not meet. The patterns, the checksums and
the context words are Presidio's; what differs stands in `GENERAL`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import msgspec
import tldextract
from presidio_analyzer import predefined_recognizers as presidio

from guards.pii.found import Found, Kind, has_context, with_context

__all__ = ["GENERAL", "PatternScanner", "Recognizer"]

# A local part has at most 64 characters (RFC 5321), a domain 255 (RFC 1035).
_ADDRESS: Final = re.compile(r"[!#$%&'*+\-/=?^_`{|}~.\w]{1,64}@[\w.-]{1,255}")

URL_CHARS: Final = (
    1_024  # of a word without a space; longer links are found up to here (their pattern takes quadratic time)
)

# Presidio's suffix list comes over the network at the first e-mail. This one is the snapshot in tldextract's wheel,
# without a cache on disk.
_suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


class _OfflineEmail(presidio.EmailRecognizer):  # type: ignore[misc]
    def validate_result(self, pattern_text: str) -> bool:
        return bool(_suffixes(pattern_text).fqdn)


def _whole(text: str) -> Iterator[tuple[int, int]]:
    yield 0, len(text)


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """What stands about each ``@``: on a long text Presidio's pattern takes quadratic time."""
    for match in _ADDRESS.finditer(text):
        yield match.span()


def _words_with_a_dot(text: str) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"\S+", text):
        if "." in match.group():
            yield match.start(), min(match.end(), match.start() + URL_CHARS)


class Recognizer(msgspec.Struct, frozen=True):
    """A Presidio recognizer and when to ask it.

    ``gate``: what a text must hold. ``context``: words in place of Presidio's own. ``needs_context``: without a
    context word the match counts nothing, since its pattern matches any number. ``windows``: the parts to search.
    """

    kind: Kind
    make: Callable[[], Any]
    gate: str
    context: tuple[str, ...] = ()
    needs_context: bool = False
    windows: Callable[[str], Iterator[tuple[int, int]]] = _whole


_ASCII_UPPER: Final = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)  # keeps every offset

# Seven digits with at most two separators between them: cards, phones, social security, passports, accounts.
_NUMBER: Final = r"\d(?:[ .()/-]{0,2}\d){6}"

GENERAL: Final = (
    Recognizer("CREDIT_CARD", presidio.CreditCardRecognizer, _NUMBER),
    Recognizer("CRYPTO", presidio.CryptoRecognizer, r"(?:bc1|[13])[a-zA-Z0-9]{25}"),
    Recognizer("EMAIL_ADDRESS", _OfflineEmail, "@", windows=_addresses),
    Recognizer("IBAN_CODE", presidio.IbanRecognizer, r"[A-Z]{2}\d{2}[ -]?[A-Z0-9]{4}"),
    Recognizer("IP_ADDRESS", presidio.IpRecognizer, r"\d\.\d{1,3}\.\d|::|[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:"),
    Recognizer("MAC_ADDRESS", presidio.MacAddressRecognizer, r"[0-9A-Fa-f]{2}[:.-][0-9A-Fa-f]{2}"),
    Recognizer("MEDICAL_LICENSE", presidio.MedicalLicenseRecognizer, r"[A-Za-z9]\d{7}", ("dea", "medical lic"), True),
    Recognizer("UK_NHS", presidio.NhsRecognizer, _NUMBER, needs_context=True),
    Recognizer("UK_NINO", presidio.UkNinoRecognizer, r"[A-Za-z]{2} ?\d\d ?\d\d ?\d\d ?[A-Da-d]"),
    Recognizer("URL", presidio.UrlRecognizer, r"\w\.\w", windows=_words_with_a_dot),
    Recognizer(
        "US_BANK_NUMBER",
        presidio.UsBankRecognizer,
        r"\d{8}",
        ("account", "acct", "bank", "checking", "savings", "routing"),
        needs_context=True,
    ),
    Recognizer(
        "US_DRIVER_LICENSE",
        presidio.UsLicenseRecognizer,
        r"\d{3}",
        ("driver", "driving lic", "license", "licence", "dl number"),
        needs_context=True,
    ),
    Recognizer("US_ITIN", presidio.UsItinRecognizer, r"9\d\d[ -]?\d\d", ("itin", "taxpayer", "tax id", "taxid")),
    Recognizer("US_PASSPORT", presidio.UsPassportRecognizer, r"\d{8}", ("passport",), needs_context=True),
    Recognizer("US_SSN", presidio.UsSsnRecognizer, r"\d{3}[ .-]?\d"),
)


# What every recognizer needs one of: most chat messages have neither. (`bc1…` holds a digit, `::` is no one's address.)
_ANYTHING: Final = re.compile(r"\d|@|::|\w\.\w|[0-9A-Fa-f]{1,4}[:.-][0-9A-Fa-f]{2}")


class _Pattern(msgspec.Struct, frozen=True):
    regex: re.Pattern[str]
    score: float


class _Ready:
    """A recognizer with its patterns compiled."""

    def __init__(self, spec: Recognizer) -> None:
        self._spec = spec
        self.kind = spec.kind
        self._recognizer = spec.make()
        # `re`, not Presidio's `regex`: twice as fast on these; all of them are bounded, or searched in windows.
        flags = int(self._recognizer.global_regex_flags)
        self._patterns = [
            _Pattern(
                re.compile(p.regex.replace("(?i)", ""), flags | re.IGNORECASE if "(?i)" in p.regex else flags), p.score
            )
            for p in self._recognizer.patterns
            if ".*?" not in p.regex  # looks ahead through the whole text at every word: quadratic
        ]
        self._context = spec.context or tuple(word.strip() for word in self._recognizer.context)
        self.gate = re.compile(spec.gate, re.IGNORECASE)  # Presidio's patterns ignore case too

    def find(self, text: str) -> Iterator[Found]:
        """Call it only for a text in which ``gate`` finds something."""
        if self.kind == "IBAN_CODE":  # people type them in lower case as well; the checksum tells
            text = text.translate(_ASCII_UPPER)
        for begin, end in self._spec.windows(text):
            for pattern in self._patterns:
                for match in pattern.regex.finditer(text, begin, end):
                    yield from self._judge(text, match, pattern.score)

    def _judge(self, text: str, match: re.Match[str], score: float) -> Iterator[Found]:
        """The match, or its longest beginning up to one of its groups, that the recognizer's checksum accepts."""
        for start, end in self._candidates(match):
            value = text[start:end]
            valid = self._recognizer.validate_result(value)
            if valid is False or self._recognizer.invalidate_result(value):
                continue
            if has_context(text, start, self._context):
                score = with_context(score)
            elif self._spec.needs_context:
                continue
            # A checksum settles it, but for kinds whose checksum any tenth number passes.
            yield Found(self.kind, start, end, 1.0 if valid else score)
            return

    def _candidates(self, match: re.Match[str]) -> Iterator[tuple[int, int]]:
        if self.kind != "IBAN_CODE":
            yield match.span()
            return
        # Presidio's IBAN pattern has its optional tail in groups: a word behind the number may look like a part of it.
        for end in sorted({match.end(group) for group in (1, 2, 3)}, reverse=True):
            if end > 0:
                yield match.start(), end


class PatternScanner:
    """All pattern recognizers, compiled once. Thread-safe: it only reads."""

    def __init__(self, recognizers: Sequence[Recognizer]) -> None:
        self._ready = [_Ready(spec) for spec in recognizers]
        _suffixes("warm@example.com")

    def find(self, text: str, kinds: Collection[Kind]) -> Iterator[Found]:
        """Entities of these kinds; they may overlap. Linear in the text's length."""
        if _ANYTHING.search(text) is None:
            return
        opens: dict[re.Pattern[str], bool] = {}  # several recognizers share a gate
        for recognizer in self._ready:
            if recognizer.kind in kinds:
                gate = recognizer.gate
                if gate not in opens:
                    opens[gate] = gate.search(text) is not None
                if opens[gate]:
                    yield from recognizer.find(text)
