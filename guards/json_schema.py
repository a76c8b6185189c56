"""Whether an answer is JSON, and whether it is what a JSON Schema of the policy asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from guards.answers import final_answers
from guards.fences import blocks
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.policy import options_of
from guards.schemas import VERSION, NotJsonError, canonical, parse, place, violation
from guards.types import Failure, FailureCode, Hit, Range, Stage, Text, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["MAX_CHARS", "JsonSchemaGuard", "Options", "build"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """``guards.json_schema.options``.

    ``schema``: a JSON Schema, a mapping or its JSON text; held here as canonical JSON text; none: any JSON will do.
    ``extract``: ``whole``, the answer is JSON and nothing else; ``fenced``, JSON is what stands in its fenced blocks
    that are labelled `json` or not at all, or the whole answer where there is no such block.
    """

    schema: str | dict[str, Any] = ""
    extract: Literal["whole", "fenced"] = "whole"

    def __post_init__(self) -> None:
        if self.schema != "":
            try:
                msgspec.structs.force_setattr(self, "schema", canonical(self.schema))
            except ValueError as error:
                raise ValueError(f"schema: {error}") from error


class JsonSchemaGuard:
    """Kinds `not_json` and `schema_violation` (score 1), one hit for each answer or block with a fault.

    An answer is an assistant message that calls no tool; one without a word is not JSON.
    """

    name = "json_schema"
    version = f"1+{VERSION}"
    stages: frozenset[Stage] = frozenset(("response",))
    unit: Literal["text", "exchange"] = "exchange"
    options_type: type[msgspec.Struct] = Options

    def applies(self, unit: Unit, options: Options) -> bool:
        return bool(final_answers(unit))

    def needs(self, unit: Unit, options: Options) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """Per exchange its hits, with the place of the first fault, or ``INPUT_TOO_LARGE``."""
        return [_check(unit, options) for unit in units]


def _check(unit: Unit, options: Options) -> Result:
    hits: list[Hit] = []
    for parts in final_answers(unit):
        answer = "".join(text.text for _, text in parts)
        if len(answer) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        for start, end in _extracts(answer, options):
            fault = _fault(answer[start:end], str(options.schema))
            if fault is not None:
                kind, left, right = fault
                hits.append(Hit(kind, 1.0, tuple(_ranges(parts, start + left, start + right))))
    return hits


def _extracts(answer: str, options: Options) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    if options.extract == "fenced":
        found = [(block.start, block.end) for block in blocks(answer) if block.label in ("json", "")]
    return found or [(0, len(answer))]


def _fault(text: str, schema: str) -> tuple[str, int, int] | None:
    """The kind and the place of the first fault."""
    try:
        value = parse(text)
    except NotJsonError as error:
        return ("not_json", error.position or 0, len(text))
    path = violation(schema, value) if schema else None
    return None if path is None else ("schema_violation", *place(text, path))


def _ranges(parts: Sequence[tuple[int, Text]], start: int, end: int) -> Iterator[Range]:
    """A place in the joined parts of an answer → the places in each part."""
    for index, text in parts:
        left, right = max(start, 0), min(end, len(text.text))
        if left < right:
            yield Range(left, right, index)
        start -= len(text.text)
        end -= len(text.text)


def build(options: Mapping[str, Any], models: ModelStore) -> JsonSchemaGuard:
    """The guard; its schema comes from the policy. Raises `ConfigError` for an option of the profile: it has none."""
    options_of(NoOptions, options, "guards.json_schema")
    return JsonSchemaGuard()
