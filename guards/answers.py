"""What the guards of the response stage read: the answer's texts, the user's question, and what is no claim."""

from __future__ import annotations

from typing import Final

import re2

from guards.folding import without_surrogates
from guards.text import texts_of
from guards.types import Exchange, Text, Unit

__all__ = ["answer_texts", "final_answers", "is_pleasantry", "is_refusal", "question", "turns"]

_OPTIONS: Final = re2.Options()
_OPTIONS.case_sensitive = False

# An answer that says that there is none. Judged by its opening, so that a warning within an answer is no refusal.
_REFUSAL: Final = re2.compile(
    r"^\W*(?:(?:i ?(?:a|')?m )?(?:so |very |really )?sorry|unfortunately|i apologi[sz]e|my apologies|as an ai"
    r"|i (?:do(?: ?n[o']?t|n’t| not) (?:know|have|see|find|recall|remember|understand|feel (?:able|comfortable)|wish"
    r"|want to|think i (?:can|should)|believe i (?:can|should))"
    r"|can ?n[o']?t|could ?n[o']?t|would ?n[o']?t|will not|won't|am not able|am unable|have no)"
    r"|i(?:'|’)m (?:sorry|not (?:sure|able|allowed|comfortable|aware|familiar)|unable)"
    r"|i am not (?:sure|able|allowed|aware)"
    r"|i (?:can|won|couldn|wouldn)’t"
    r"|(?:the|this|these) (?:provided |given |available )?(?:documents?|context|text|information|sources?)"
    r" (?:do(?:es)? not|don't|doesn't|has no|have no)|there is no (?:information|mention)"
    r"|not (?:mentioned|stated|specified)"
    r"|(?:es )?tut mir leid|leider|das kann ich|ich (?:kann|weiß|weiss|habe|darf)\b.{0,40}\b(?:nicht|keine?)"
    r"|(?:je suis )?désolée?|malheureusement|je ne (?:peux|sais|dispose)"
    r"|lo siento|lamentablemente|no (?:puedo|sé|tengo|dispongo)|mi dispiace|purtroppo|non (?:posso|so|ho)"
    r"|desculpe|infelizmente|não (?:posso|sei|tenho))",
    _OPTIONS,
)
_PLEASANTRY: Final = re2.compile(
    r"^\W*(?:hello|hi|hey|good (?:morning|afternoon|evening)|thanks?(?: you)?|you(?:'|’)?re welcome|sure"
    r"|of course|certainly"
    r"|absolutely|great|ok(?:ay)?|no problem|glad to|happy to|my pleasure|i hope|let me know|feel free|please let"
    r"|here (?:is|are)|would you like|do you (?:need|mean)\b|is there anything|(?:how )?can i help"
    r"|(?:can|could) you (?:tell|clarify|specify|explain|give|say)|(?:what|which)\b.{0,40}\bdo you mean"
    r"|have a |bye|goodbye|hallo|guten|danke|gern|natürlich|bitte|klar|bonjour|merci|avec plaisir|bien sûr|hola|gracias"
    r"|de nada|claro|por supuesto|ciao|grazie|prego|certo|olá|obrigad[oa])\b",
    _OPTIONS,
)
PLEASANTRY_CHARS: Final = 80  # a longer sentence that begins so says something too


def answer_texts(unit: Unit) -> list[tuple[int, Text]]:
    """(index in ``unit.texts``, text) of what the assistant says; arguments of tool calls are no answer."""
    return [
        (index, text)
        for index, text in enumerate(unit.texts)
        if text.role == "assistant" and text.location.tool_call is None
    ]


def final_answers(unit: Unit) -> list[tuple[tuple[int, Text], ...]]:
    """For every assistant message of the response that calls no tool: (index in ``unit.texts``, text) of its parts.

    A message without a word is an empty tuple: an answer all the same. Several are alternatives, or steps of an agent.
    """
    answers: list[tuple[tuple[int, Text], ...]] = []
    for number, message in enumerate(unit.exchange.response or ()):
        if message.role == "assistant" and not message.tool_calls:
            parts = ((index, text) for index, text in enumerate(unit.texts) if text.location.message == number)
            answers.append(tuple(parts))
    return answers


def turns(exchange: Exchange) -> list[tuple[str, str]]:
    """(role, text) of the request's user and assistant messages in order; the parts of a message are joined."""
    joined: dict[int, tuple[str, str]] = {}
    for text in texts_of(exchange, "request"):
        place = text.location
        if place.message is not None and place.tool_call is None and text.role in ("user", "assistant"):
            before = joined.get(place.message)
            joined[place.message] = (text.role, f"{before[1]}\n{text.text}" if before else text.text)
    return [joined[index] for index in sorted(joined)]


def question(exchange: Exchange) -> str:
    """The last message of the user, or an empty string."""
    return next((text for role, text in reversed(turns(exchange)) if role == "user"), "")


def is_refusal(text: str) -> bool:
    """Whether an answer opens as "I cannot", "the documents do not say" and the like do (six languages)."""
    return _REFUSAL.search(without_surrogates(text[:200])) is not None


def is_pleasantry(sentence: str) -> bool:
    """Whether a sentence is a greeting, thanks, or a way to begin or end an answer."""
    return len(sentence) <= PLEASANTRY_CHARS and _PLEASANTRY.search(without_surrogates(sentence)) is not None
