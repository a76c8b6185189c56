"""Sentences of a document that may be an order to the assistant that reads it: found by words, cheaply and in full."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import re2

from guards.folding import fold

__all__ = ["FEATURES", "MAX_ORDERS", "Order", "orders"]

MAX_ORDERS: Final = 8  # per document, those first that the words make likeliest; each costs two short embeddings
MIN_ORDER_CHARS: Final = 8
MAX_ORDER_CHARS: Final = 320  # an order is one or two sentences; of a longer one this much is read
CONTEXT_CHARS: Final = 160  # on each side: what the document is about there, without the order itself

# Lines, table cells and `|` part texts as sentences do; a full stop ends one also where no space follows.
_END: Final = re.compile(r"[.!?。！？]+[\"'”’)\]]*\s*(?=\s|$|[A-ZÄÖÜ])|[\n\r|\t]+|<[^<>]{0,200}>")

_OPTIONS: Final = re2.Options()
_OPTIONS.case_sensitive = False

_VERBS: Final = re2.compile(
    r"^\W*(?:(?:please|now|also|then|first|next|finally|instead|and|kindly)\W+)*"
    r"(?:(?:can|could|would|will) you (?:please )?)?"
    r"(?:write|compose|draft|provide|explain|describe|translate|summari[sz]e|list|generate|create|convert|replace"
    r"|encode|decode|rewrite|rephrase|paraphrase|reverse|substitute|render|integrate|include|add|append|insert"
    r"|incorporate|modify|augment|enhance|alter|adjust|use|calculate|compute|solve|identify|analy[sz]e|assess|evaluate"
    r"|classify|suggest|recommend|compare|contrast|outline|develop|design|break down|tell|give|show|answer|respond"
    r"|reply|output|print|say|repeat|mention|promote|advertise|scramble|misspell|jumble|anagram|group|combine|remove"
    r"|capitali[sz]e|format|spell|state|name|define|discuss|ignore|disregard|forget|stop|pretend|act|role ?play|imagine"
    r"|invent|make up|sing|recite|plan|schedule|book|order|send|forward|delete|call|execute|run|open|visit|click|search"
    r"|find|look up|help|teach|brainstorm|propose|formulate|construct|produce|present|share|highlight|emphasi[sz]e"
    r"|encourage|persuade|convince|warn|inform|ask|quiz|test|debug|fix|review|edit|proofread|correct|fill|complete"
    r"|continue|finish|end|begin|start|conclude|embed|hide|weave|slip|introduce|read|predict|estimate|forecast"
    r"|determine|extract|detect|count|sort|rank|rate|map|mix|swap|shuffle|transform|turn|change|speak|talk|switch|set"
    r"|let|do|never|always|avoid|don t|don't|refrain)\b",
    _OPTIONS,
)
_TO_THE_ANSWER: Final = re2.compile(
    r"\b(?:your|the|this|its|each|every) (?:\w+ )?"
    r"(?:answers?|repl(?:y|ies)|responses?|outputs?|summar(?:y|ies)|completion)\b"
    r"|\byour (?:\w+ )?(?:messages?|text|words|sentences?|translation|reasoning|conclusion)\b"
    r"|\b(?:respond|reply|answer) (?:only|with|in|as|to|using|by)\b",
    _OPTIONS,
)
_ASKS: Final = re2.compile(
    r"^\W*(?:(?:so|and|but|also|hey|hi|hello|now|by the way|btw)\W+)*"
    r"(?:what|who|whom|whose|which|why|when|where|how|is|are|was|were|do|does|did|can|could|would|should|will)\b(?:'?s)?[^?]*\?",
    _OPTIONS,
)
_THE_READER: Final = re2.compile(
    r"\b(?:ai|a\.i\.|llm|gpt|chatgpt|chatbot|assistant|language model|bot|users?|readers?|prompt|instructions?"
    r"|system)\b",
    _OPTIONS,
)
_CORRESPONDENCE: Final = re2.compile(
    r"\b(?:we|us|our|ours|i|my|me|let me know|attached|meeting|call me|thanks|thank you|best|regards"
    r"|if you have any questions"
    r"|unsubscribe|account|order|invoice|payment|privacy|email|e-mail|below|here)\b",
    _OPTIONS,
)
_MARKED: Final = re.compile(r"[\"'“”‘’`@#$%&*=:()]")

FEATURES: Final = (
    "imperative",
    "to_the_answer",
    "question",
    "the_reader",
    "correspondence",
    "marked",
    "short",
    "whole_line",
)
"""What the words of an order say, each 0 or 1: the columns of `Order.features`."""


class Order(NamedTuple):
    """A sentence that may be an order: its place (code points, end exclusive), what stands around it, features."""

    text: str
    start: int
    end: int
    context: str
    features: tuple[float, ...]


def orders(text: str) -> list[Order]:
    """The sentences that begin like an order, ask a question or speak of the answer; at most `MAX_ORDERS`, in order."""
    found: list[tuple[float, Order]] = []
    start = 0
    ends = [*((m.start(), m.end(), m.group()) for m in _END.finditer(text)), (len(text), len(text), "")]
    fresh = True  # whether a line or a cell begins here
    for stop, after, mark in ends:
        punctuation = mark.rstrip()
        cell = bool(mark) and mark[0] in "\n\r|\t<"
        end = stop if cell else stop + len(punctuation)
        piece = text[start:end]
        if len(piece.strip()) >= MIN_ORDER_CHARS and any(char.isalpha() for char in piece):
            order = _order(text, start + len(piece) - len(piece.lstrip()), end, fresh and (cell or not mark))
            if order is not None:
                likely = order.features[1] * 2 + order.features[0] + order.features[3] + order.features[2] / 2
                found.append((likely, order))
        start = after
        fresh = cell or "\n" in mark
    found.sort(key=lambda entry: (-entry[0], entry[1].start))
    return sorted((order for _, order in found[:MAX_ORDERS]), key=lambda order: order.start)


def _order(text: str, start: int, end: int, whole_line: bool) -> Order | None:
    piece = text[start : min(end, start + MAX_ORDER_CHARS)].rstrip()
    plain = fold(piece).text.encode("utf-8", "replace").decode("utf-8")
    imperative = _VERBS.search(plain) is not None
    to_the_answer = _TO_THE_ANSWER.search(plain) is not None
    question = _ASKS.search(plain) is not None or plain.endswith(("?", "？"))
    if not (imperative or to_the_answer or question):
        return None
    signs = (
        imperative,
        to_the_answer,
        question,
        _THE_READER.search(plain) is not None,
        _CORRESPONDENCE.search(plain) is not None,
        _MARKED.search(plain) is not None,
        len(plain) <= 60,
        whole_line,
    )
    around = text[max(0, start - CONTEXT_CHARS) : start] + " " + text[end : end + CONTEXT_CHARS]
    return Order(piece, start, start + len(piece), " ".join(around.split()), tuple(float(sign) for sign in signs))
