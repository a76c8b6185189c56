"""Which tools an answer may call, how often, and with which arguments.

What the arguments say (personal data, secrets, banned words) is not looked at here: they are texts of the exchange, and
the guards for texts see them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.policy import options_of
from guards.schemas import VERSION, NotJsonError, canonical, canonical_json, parse, place, violation
from guards.types import Hit, Range, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["MAX_CHARS", "Options", "ToolCallsGuard", "build"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """``guards.tool_calls.options``; names may hold ``*``, ``?`` and ``[…]``, case counts.

    ``allowed``: the tools that may be called; none: all. ``denied`` wins over it. ``max_calls``: of one message of the
    response; at the request stage, of the messages since the user's last one. ``argument_schemas``: JSON Schemas by the
    exact name of a tool (a mapping, or its JSON text), held here as canonical JSON text.
    """

    allowed: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()
    max_calls: int | None = None
    argument_schemas: str | dict[str, Any] = ""

    def __post_init__(self) -> None:
        if self.max_calls is not None and self.max_calls < 0:
            raise ValueError(f"max_calls: {self.max_calls} is less than none")
        if self.argument_schemas != "":
            try:
                text = canonical_json(self.argument_schemas)
            except ValueError as error:
                raise ValueError(f"argument_schemas: {error}") from error
            for tool, schema in json.loads(text).items():
                try:
                    canonical(schema)
                except ValueError as error:
                    raise ValueError(f"argument_schemas.{tool}: {error}") from error
            msgspec.structs.force_setattr(self, "argument_schemas", text)


class _Call(NamedTuple):
    """``text`` is the index of the arguments in ``unit.texts``; None where they are empty."""

    message: int
    name: str
    arguments: str
    text: int | None


class ToolCallsGuard:
    """Kinds `tool_not_allowed`, `too_many_calls` and `bad_arguments`, score 1, a hit for each call with the fault.

    The place of a call is its arguments'. Bad arguments are no JSON object or break the tool's schema; such as are too
    long or too deep to look at are bad too, and no failure: a failure here would let a forbidden call pass.
    """

    name = "tool_calls"
    version = f"1+{VERSION}"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "exchange"
    options_type: type[msgspec.Struct] = Options

    def applies(self, unit: Unit, options: Options) -> bool:
        return any(True for _ in _calls(unit))

    def needs(self, unit: Unit, options: Options) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """Per exchange its hits, in order of the calls."""
        schemas = _schemas(str(options.argument_schemas))
        return [tuple(_check(unit, options, schemas)) for unit in units]


def _check(unit: Unit, options: Options, schemas: Mapping[str, str]) -> Iterator[Hit]:
    turn_begins = _last_user_message(unit) if unit.stage == "request" else -1
    counted: dict[int, int] = {}
    for call in _calls(unit):
        whole = _ranges(call, 0, len(call.arguments))
        if not _may_be_called(call.name, options):
            yield Hit("tool_not_allowed", 1.0, whole)
        group = 0 if unit.stage == "request" else call.message
        counted[group] = counted.get(group, 0) + (call.message > turn_begins)
        if options.max_calls is not None and counted[group] > options.max_calls:
            yield Hit("too_many_calls", 1.0, whole)
        fault = _fault(call.arguments, schemas.get(call.name))
        if fault is not None:
            yield Hit("bad_arguments", 1.0, _ranges(call, *fault))


def _calls(unit: Unit) -> Iterator[_Call]:
    texts = {(t.location.message, t.location.tool_call): index for index, t in enumerate(unit.texts)}
    messages = unit.exchange.messages if unit.stage == "request" else unit.exchange.response
    for number, message in enumerate(messages or ()):
        for call_no, call in enumerate(message.tool_calls or ()):
            yield _Call(number, call.function.name, call.function.arguments, texts.get((number, call_no)))


def _last_user_message(unit: Unit) -> int:
    messages = unit.exchange.messages or ()
    return max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)


def _may_be_called(name: str, options: Options) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in options.denied):
        return False
    return options.allowed is None or any(fnmatchcase(name, pattern) for pattern in options.allowed)


def _fault(arguments: str, schema: str | None) -> tuple[int, int] | None:
    """Where the arguments are at fault. Some providers write none as an empty text."""
    if len(arguments) > MAX_CHARS:
        return 0, len(arguments)
    try:
        value = parse(arguments) if arguments.strip() else {}
    except NotJsonError as error:
        return error.position or 0, len(arguments)
    if not isinstance(value, dict):
        return 0, len(arguments)
    path = None if schema is None else violation(schema, value)
    if path is None:
        return None
    return place(arguments, path) if path else (0, len(arguments))


def _ranges(call: _Call, start: int, end: int) -> tuple[Range, ...]:
    return () if call.text is None else (Range(start, end, call.text),)


@lru_cache(maxsize=64)
def _schemas(text: str) -> Mapping[str, str]:
    return {tool: canonical(schema) for tool, schema in json.loads(text or "{}").items()}


def build(options: Mapping[str, Any], models: ModelStore) -> ToolCallsGuard:
    """The guard; its lists come from the policy. Raises `ConfigError` for an option of the profile: it has none."""
    options_of(NoOptions, options, "guards.tool_calls")
    return ToolCallsGuard()
