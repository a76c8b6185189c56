"""The wire schema of requests and responses, and its codec.

`decode` turns the bytes of a record into an event or a `Bad`; it never raises. Field names follow OpenTelemetry GenAI.
Fields that are not known are allowed and ignored (the record in the topic keeps them).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
import orjson

from guards.types import Document, Exchange, Message, Stage

__all__ = [
    "REQUEST_SCHEMA",
    "RESPONSE_SCHEMA",
    "Bad",
    "BadCode",
    "Event",
    "Labels",
    "Prompt",
    "RequestEvent",
    "ResponseEvent",
    "Timing",
    "Usage",
    "conversation_of",
    "convert",
    "decode",
    "exchange_of",
    "iso",
    "labels_of",
    "schema_of",
    "stage_of",
    "to_ms",
]

REQUEST_SCHEMA: Final = "tidegate.request.v1"
RESPONSE_SCHEMA: Final = "tidegate.response.v1"

MAX_EVENT_BYTES: Final = 1_048_576
"""Largest event, in bytes: Kafka's own default for a message. Larger ones are refused with `BadCode.TOO_LARGE`."""

MAX_DEPTH: Final = 64
"""Deepest nesting of JSON arrays and objects; real events need about 8. Bounds the recursion of any reader."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Label = Annotated[str, msgspec.Meta(max_length=256)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]


class BadCode(StrEnum):
    """Why a record is no event. A bounded set: it labels metrics and dead letters."""

    EMPTY = "empty"  # a record without a value
    TOO_LARGE = "too_large"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    NUL = "nul"  # a U+0000 in some string: databases and C libraries downstream end there
    LONE_SURROGATE = "lone_surrogate"
    UNKNOWN_SCHEMA = "unknown_schema"
    WRONG_TOPIC = "wrong_topic"  # a response among the requests, or the other way round
    MISSING_FIELD = "missing_field"
    BAD_VALUE = "bad_value"  # a wrong type, a number or length out of bounds
    UNPROCESSABLE = "unprocessable"  # decoded, and then failed in a way that would repeat


class Bad(msgspec.Struct, frozen=True):
    """What could not be decoded. ``detail`` names the field and the rule, never the value."""

    code: BadCode
    detail: str = ""


class Prompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The registered prompt that a request was built from."""

    name: Label = ""
    version: Label = ""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens, as the provider counted them."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cached_input_tokens: Count = 0
    reasoning_tokens: Count = 0


class Timing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Latency as the caller saw it."""

    duration_ms: Milliseconds | None = None
    time_to_first_token_ms: Milliseconds | None = None


class RequestEvent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag=REQUEST_SCHEMA):
    """``tidegate.request.v1``: what is about to be, or was, sent to a model.

    ``reference``: an answer known to be good, for the guard `reference`; where it is known only later, the response may
    carry it.
    """

    exchange_id: Id
    messages: list[Message]
    conversation_id: Label = ""
    time: Time | None = None
    tenant: Label = "default"
    route: Label = ""
    user: Label = ""
    provider: Label = ""
    model: Label = ""
    prompt: Prompt | None = None
    documents: list[Document] = []
    reference: str = ""
    tools: list[dict[str, Any]] = []
    params: dict[str, Any] = {}
    trace_id: Label = ""
    parent_exchange_id: Label = ""


class ResponseEvent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag=RESPONSE_SCHEMA):
    """``tidegate.response.v1``: what the model answered, or the error that came instead.

    Labels and a ``reference`` that are absent (``None``) come from the joined request. ``logprobs``: of the answer's
    tokens, as OpenAI's API writes them.
    """

    exchange_id: Id
    messages: list[Message]
    conversation_id: Label = ""
    time: Time | None = None
    tenant: Label = "default"
    route: Label | None = None
    user: Label | None = None
    provider: Label | None = None
    model: Label | None = None
    prompt: Prompt | None = None
    response_model: Label = ""
    system_fingerprint: Label = ""
    finish_reasons: list[str | None] = []
    usage: Usage | None = None
    timing: Timing | None = None
    error: dict[str, Any] | str | None = None
    reference: str | None = None
    logprobs: Any = None
    trace_id: Label = ""
    parent_exchange_id: Label = ""


Event = RequestEvent | ResponseEvent

_TYPES: Final[dict[str, type[RequestEvent] | type[ResponseEvent]]] = {
    REQUEST_SCHEMA: RequestEvent,
    RESPONSE_SCHEMA: ResponseEvent,
}
_MISSING = re.compile(r"missing required field")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Labels(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a window's series is named by, and the user."""

    tenant: str = "default"
    route: str = ""
    model: str = ""
    provider: str = ""
    prompt_name: str = ""
    prompt_version: str = ""
    user: str = ""


def decode(raw: bytes | None, *, max_bytes: int = MAX_EVENT_BYTES) -> Event | Bad:
    """The bytes of a record → an event, or why it is none. Pure, never raises, linear in the length of ``raw``."""
    if not raw:
        return Bad(BadCode.EMPTY)
    if len(raw) > max_bytes:
        return Bad(BadCode.TOO_LARGE, f"{len(raw)} bytes, at most {max_bytes}")
    if _depth_exceeds(raw, MAX_DEPTH):
        return Bad(BadCode.TOO_DEEP, f"nested deeper than {MAX_DEPTH}")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _why_not_json(raw)
    return convert(value)


def convert(value: Any) -> Event | Bad:
    """A decoded JSON value → an event, or why it is none."""
    if not isinstance(value, dict):
        return Bad(BadCode.BAD_VALUE, "expected an object")
    schema = value.get("schema")
    if schema is None:
        return Bad(BadCode.MISSING_FIELD, "schema")
    kind = _TYPES.get(schema) if isinstance(schema, str) else None
    if kind is None:
        return Bad(BadCode.UNKNOWN_SCHEMA, f"known are {', '.join(_TYPES)}")
    if _has_nul(value):
        return Bad(BadCode.NUL, "a string holds U+0000")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # msgspec names the types, the field and the path; a value only for an unknown tag, which was checked above.
        code = BadCode.MISSING_FIELD if _MISSING.search(str(error)) else BadCode.BAD_VALUE
        return Bad(code, str(error))


def _why_not_json(raw: bytes) -> Bad:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        # CESU-style bytes ED A0..BF are surrogates that were encoded as if they were characters.
        surrogate = raw[error.start : error.start + 1] == b"\xed"
        return Bad(BadCode.LONE_SURROGATE if surrogate else BadCode.NOT_UTF8, f"at byte {error.start}")
    if _SURROGATE.search(raw):
        try:
            msgspec.json.decode(_SURROGATE.sub(rb"\\u00", raw))
        except (msgspec.DecodeError, RecursionError):
            return Bad(BadCode.NOT_JSON)
        return Bad(BadCode.LONE_SURROGATE)
    if b"\x00" in raw:
        return Bad(BadCode.NUL, "a raw NUL byte")
    return Bad(BadCode.NOT_JSON)


def _depth_exceeds(raw: bytes, limit: int) -> bool:
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return False
    depth = 0
    in_string = False
    # Splitting at quotes visits structure only; escaped quotes are removed first (\\ before \" so that "\\" ends).
    for piece in raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"'):
        if not in_string:
            for byte in piece:
                if byte in b"[{":
                    depth += 1
                    if depth > limit:
                        return True
                elif byte in b"]}":
                    depth -= 1
        in_string = not in_string
    return False


def _has_nul(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\x00" in item:
                return True
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False


def stage_of(event: Event) -> Stage:
    return "request" if isinstance(event, RequestEvent) else "response"


def schema_of(stage: Stage) -> str:
    return REQUEST_SCHEMA if stage == "request" else RESPONSE_SCHEMA


def conversation_of(event: Event) -> str:
    """The Kafka key of the event."""
    return event.conversation_id or event.exchange_id


def labels_of(event: Event, request: Labels | None = None) -> Labels:
    """The labels of an event; what a response leaves out comes from its request's."""
    base = request or Labels()
    prompt = event.prompt
    return Labels(
        tenant=event.tenant,
        route=base.route if event.route is None else event.route,
        model=base.model if event.model is None else event.model,
        provider=base.provider if event.provider is None else event.provider,
        prompt_name=base.prompt_name if prompt is None else prompt.name,
        prompt_version=base.prompt_version if prompt is None else prompt.version,
        user=base.user if event.user is None else event.user,
    )


def exchange_of(event: Event, request: RequestEvent | None = None) -> Exchange:
    """What the engine checks. For a response without its request, ``messages`` is ``None``: guards then fail."""
    if isinstance(event, RequestEvent):
        return Exchange(
            messages=event.messages,
            documents=event.documents,
            tenant=event.tenant,
            route=event.route,
            exchange_id=event.exchange_id,
        )
    route = event.route if event.route is not None else (request.route if request else "")
    reference = event.reference if event.reference is not None else (request.reference if request else "")
    return Exchange(
        messages=None if request is None else request.messages,
        response=event.messages,
        documents=() if request is None else request.documents,
        tenant=event.tenant,
        route=route,
        exchange_id=event.exchange_id,
        reference=reference,
        logprobs=event.logprobs,
    )


def to_ms(time: datetime) -> int:
    """Milliseconds since the epoch."""
    return round(time.timestamp() * 1000)


def iso(time_ms: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    text = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
