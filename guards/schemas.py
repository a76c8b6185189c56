"""JSON that a model wrote, and JSON Schemas that a policy holds: strict parsing, offline validation, places of faults.

Schemas are checked by jsonschema-rs: no reference leaves the document, and their patterns run on a linear-time engine.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import jsonschema_rs

from guards.folding import without_surrogates

__all__ = ["MAX_DEPTH", "VERSION", "NotJsonError", "canonical", "parse", "place", "violation"]

VERSION: Final = f"jsonschema-rs-{importlib.metadata.version('jsonschema-rs')}"

MAX_DEPTH: Final = 128
"""Deeper nesting is not taken as JSON: real answers have ten levels, and parsers downstream break at hundreds."""

_BRACKET_OR_STRING: Final = re.compile(r'"(?>[^"\\]+|\\.)*"?|[\[\]{}]', re.DOTALL)
_WHITE: Final = re.compile(r"[ \t\n\r]*")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class NotJsonError(ValueError):
    """A text is not JSON. ``position``: the index from which it is not, or None where that is not known."""

    def __init__(self, position: int | None = None) -> None:
        super().__init__("not JSON")
        self.position = position


def parse(text: str) -> Any:
    """The value of a JSON text (RFC 8259). Raises `NotJsonError`.

    Refused as well, because parsers differ about them: keys that are written twice, NaN and infinities, halves of
    surrogate pairs, integers of thousands of digits, nesting deeper than `MAX_DEPTH`. Time is linear.
    """
    text = without_surrogates(text)
    too_deep = _too_deep(text)
    if too_deep is not None:
        raise NotJsonError(too_deep)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise NotJsonError(min(error.pos, len(text))) from error
    except ValueError as error:
        raise NotJsonError from error
    return value


def _too_deep(text: str) -> int | None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return None
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        sign = match.group()
        depth += (sign in ("[", "{")) - (sign in ("]", "}"))
        if depth > MAX_DEPTH:
            return match.start()
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is written twice")
    return made


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def canonical(schema: str | Mapping[str, Any]) -> str:
    """A JSON Schema (its JSON text, or a mapping) as one canonical JSON text: hashable, equal if it says the same.

    Raises `ValueError` when it is no schema, refers to another document, or has a pattern that is not linear.
    """
    text = canonical_json(schema)
    try:
        _validator(text)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ValueError(f"is no usable JSON Schema: {str(error).splitlines()[0]}") from error
    return text


def canonical_json(value: Any) -> str:
    """A mapping, or the JSON text of one, as JSON text with sorted keys. Raises `ValueError`."""
    try:
        if isinstance(value, str):
            value = parse(value)
        if not isinstance(value, Mapping):
            raise ValueError("it is no mapping")
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except NotJsonError as error:
        raise ValueError("is not JSON") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"is not a JSON object: {error}") from error


@lru_cache(maxsize=512)
def _validator(schema: str) -> Any:
    return jsonschema_rs.validator_for(json.loads(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions())


def violation(schema: str, value: Any) -> Sequence[str | int] | None:
    """The path to the first part of a parsed value that the canonical schema refuses; None where it is valid."""
    try:
        _validator(schema).validate(value)
    except jsonschema_rs.ValidationError as error:
        return list(error.instance_path)
    return None


def place(text: str, path: Sequence[str | int]) -> tuple[int, int]:
    """Start and end of the part at a path within a text that `parse` has taken. Linear time: what lies beside the
    path is skipped once."""
    text = without_surrogates(text)
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    for step in path:
        is_object = text[at] == "{"
        at = _skip(text, at + 1)
        index = 0
        while True:
            key = str(index)
            if is_object:
                key, at = decoder.raw_decode(text, at)
                at = _skip(text, _skip(text, at) + 1)  # the colon
            if key == str(step):  # a path tells the key "0" of an object as 0
                break
            at = _skip(text, _skip(text, decoder.raw_decode(text, at)[1]) + 1)  # the comma
            index += 1
    return at, decoder.raw_decode(text, at)[1]


def _skip(text: str, at: int) -> int:
    match = _WHITE.match(text, at)
    return at if match is None else match.end()
