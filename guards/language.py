"""Whether a text is in a language that the policy allows, and an answer in the language of its question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import re2

from guards.answers import answer_texts, question, turns
from guards.folding import without_surrogates
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.languages import CODES, language_of
from guards.policy import options_of
from guards.strict import nearest
from guards.types import Failure, FailureCode, Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["LanguageGuard", "LanguageOptions", "build"]

CONFIDENT: Final = 0.5  # of less nothing is said: a name, a title, a text half in one language and half in another

# "Translate this into German", "auf Deutsch, bitte": the answer is to be in another language than the question.
_OPTIONS: Final = re2.Options()
_OPTIONS.case_sensitive = False
_ASKS_FOR_A_LANGUAGE: Final = re2.compile(
    r"translat|übersetz|uebersetz|trad[uú][ciz]|traduis|vertaal|vertal|przetłumacz|перевед|перекла"
    r"|(?:^|\PL)(?:in|into|to|auf|ins|en|al|in het|em|para|po|на|по) ?(?:the )?"
    r"(?:english|german|french|spanish|italian|portuguese|dutch|polish|russian|ukrainian|chinese|japanese|korean|arabic"
    r"|hindi|turkish|latin|greek|hebrew|swedish|danish|norwegian|finnish|czech|hungarian|romanian|vietnamese|thai"
    r"|englische?|deutsche?|französische?|spanische?|italienische?|portugiesische?|niederländische?|russische?"
    r"|anglais|allemand|français|espagnol|italien|portugais|néerlandais|inglés|alemán|francés|español|italiano|portugués"
    r"|inglese|tedesco|francese|spagnolo|portoghese|inglês|alemão|francês|espanhol|português"
    r"|engels|duits|frans|spaans|italiaans|portugees|nederlands|английск|немецк|англійськ|німецьк)",
    _OPTIONS,
)


class LanguageOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``allowed``: ISO 639-1 codes, none for any language. ``same_as_question``: an answer in another language than the
    user's is a finding."""

    allowed: tuple[str, ...] = ()
    same_as_question: bool = False

    def __post_init__(self) -> None:
        for code in self.allowed:
            if code not in CODES:
                raise ValueError(f"allowed: no language has the code {code!r}{nearest(code, CODES)}")


class LanguageGuard:
    """Kinds `language_not_allowed` (each answer; of a request the last message of the user) and `language_mismatch`.

    The score is the probability of the language that was found, 0 where that language is right. A text too short or
    too mixed to tell gives no finding at all.
    """

    name = "language"
    version = "1"
    stages: frozenset[Stage] = frozenset({"request", "response"})
    unit: Literal["exchange"] = "exchange"
    options_type = LanguageOptions

    def applies(self, unit: Unit, options: LanguageOptions) -> bool:
        """False where nobody has written a text in words: tool calls, documents alone."""
        return any(_written(unit))

    def needs(self, unit: Unit, options: LanguageOptions) -> Needs:
        """Nothing."""
        return Needs()

    def check(self, units: Sequence[Unit], options: LanguageOptions, artifacts: Artifacts) -> list[Result]:
        """Per exchange a hit of each kind asked for, or ``Failure(REQUEST_MISSING)``: with ``allowed`` alone an answer
        is judged without its request."""
        return [self._check(unit, options) for unit in units]

    def _check(self, unit: Unit, options: LanguageOptions) -> Result:
        if unit.exchange.messages is None and (options.same_as_question or not options.allowed):
            return Failure(FailureCode.REQUEST_MISSING)
        written = list(_written(unit))
        if any(len(text) > MAX_CHARS for _, text in written):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        found = [(index, len(text), *language_of(text)) for index, text in written]
        found = [entry for entry in found if entry[3] >= CONFIDENT]
        hits: list[Hit] = []
        if options.allowed:
            for index, chars, code, probability in found:
                wrong = code not in options.allowed
                hits.append(_hit("language_not_allowed", probability if wrong else 0.0, index, chars))
        if options.same_as_question and unit.stage == "response":
            asked, certainty = _asked(unit)
            if certainty >= CONFIDENT:
                for index, chars, code, probability in found:
                    risk = probability * certainty if code != asked else 0.0
                    hits.append(_hit("language_mismatch", risk, index, chars))
        return hits


def _written(unit: Unit) -> Iterator[tuple[int, str]]:
    """(index in ``unit.texts``, text) of the answers, or of the user's last message."""
    if unit.stage == "response":
        yield from ((index, text.text) for index, text in answer_texts(unit))
        return
    users = [(index, text) for index, text in enumerate(unit.texts) if text.role == "user"]
    for index, text in users:
        if text.location.message == users[-1][1].location.message and text.location.tool_call is None:
            yield index, text.text


def _asked(unit: Unit) -> tuple[str, float]:
    """The user's language: of the last message or, if that says too little, of all; none if it asks for a language."""
    last = question(unit.exchange)
    if _ASKS_FOR_A_LANGUAGE.search(without_surrogates(last[:MAX_CHARS])):
        return "", 0.0
    code, probability = language_of(last)
    if probability >= CONFIDENT:
        return code, probability
    return language_of("\n".join(text for role, text in turns(unit.exchange) if role == "user"))


def _hit(kind: str, score: float, index: int, chars: int) -> Hit:
    return Hit(kind, round(score, 3), (Range(0, chars, index),) if score else ())


def build(options: Mapping[str, Any], models: ModelStore) -> LanguageGuard:
    """The guard, its model loaded. Raises `ConfigError` for an option of the profile: it has none."""
    options_of(NoOptions, options, "guards.language")
    language_of("The model is loaded before the first text comes.")
    return LanguageGuard()
