"""Texts and places: which strings of an exchange there are to look at, span arithmetic, masking of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guards.types import Exchange, Location, Message, Redaction, Stage, Text

__all__ = ["merge_redactions", "redact", "redact_documents", "texts_of"]


def texts_of(exchange: Exchange, stage: Stage) -> tuple[Text, ...]:
    """All texts of a stage: message contents, parts, tool-call arguments and, at the request stage, documents.

    Empty strings are left out. Image and audio parts are no texts; `Engine` never claims to have scanned them.
    """
    messages = exchange.messages if stage == "request" else exchange.response
    texts: list[Text] = []
    for index, message in enumerate(messages or ()):
        texts.extend(_texts_of_message(message, index))
    if stage == "request":
        for index, document in enumerate(exchange.documents):
            if document.text:
                texts.append(Text(document.text, "document", Location(document=index)))
    return tuple(texts)


def _texts_of_message(message: Message, index: int) -> Iterable[Text]:
    content = message.content
    if isinstance(content, str):
        if content:
            yield Text(content, message.role, Location(message=index))
    elif content:
        for part_no, part in enumerate(content):
            text = part.get("text")
            if isinstance(text, str) and text:
                yield Text(text, message.role, Location(message=index, part=part_no))
    for call_no, call in enumerate(message.tool_calls or ()):
        if call.function.arguments:
            yield Text(call.function.arguments, message.role, Location(message=index, tool_call=call_no))


def merge_redactions(redactions: Iterable[Redaction]) -> tuple[Redaction, ...]:
    """Make redactions disjoint, in order of place. Of two that overlap the union is replaced, by the longer's word."""
    by_place = sorted(redactions, key=lambda r: (_order(r.location), r.start, -r.end))
    merged: list[Redaction] = []
    for item in by_place:
        last = merged[-1] if merged else None
        if last is None or last.location != item.location or item.start >= last.end:
            merged.append(item)
            continue
        longer = item if item.end - item.start > last.end - last.start else last
        merged[-1] = Redaction(last.location, last.start, max(last.end, item.end), longer.replacement)
    return tuple(merged)


def _order(location: Location) -> tuple[int, ...]:
    return tuple(
        -1 if value is None else value
        for value in (location.document, location.message, location.part, location.tool_call)
    )


def _apply(text: str, redactions: Sequence[Redaction]) -> str:
    for item in sorted(redactions, key=lambda r: r.start, reverse=True):
        text = text[: item.start] + item.replacement + text[item.end :]
    return text


def redact(messages: Sequence[Mapping[str, Any]], redactions: Sequence[Redaction]) -> list[dict[str, Any]]:
    """Copies of the messages (as JSON objects, unknown fields kept) with the redactions applied."""
    groups: dict[Location, list[Redaction]] = {}
    for item in redactions:
        groups.setdefault(item.location, []).append(item)
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        copy = dict(message)
        for location, items in groups.items():
            if location.message != index:
                continue
            if location.tool_call is not None:
                calls = [dict(call) for call in copy["tool_calls"]]
                function = dict(calls[location.tool_call]["function"])
                function["arguments"] = _apply(function["arguments"], items)
                calls[location.tool_call]["function"] = function
                copy["tool_calls"] = calls
            elif location.part is not None:
                parts = [dict(part) for part in copy["content"]]
                parts[location.part]["text"] = _apply(parts[location.part]["text"], items)
                copy["content"] = parts
            else:
                copy["content"] = _apply(copy["content"], items)
        result.append(copy)
    return result


def redact_documents(documents: Sequence[Mapping[str, Any]], redactions: Sequence[Redaction]) -> list[dict[str, Any]]:
    """Copies of the documents with the redactions that lie in them applied."""
    result: list[dict[str, Any]] = []
    for index, document in enumerate(documents):
        items = [item for item in redactions if item.location.document == index]
        result.append({**document, "text": _apply(document["text"], items)} if items else dict(document))
    return result
