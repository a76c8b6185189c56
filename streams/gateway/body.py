"""From an HTTP request to an event: size, media type, JSON, schema. Everything that is wrong becomes a `Problem`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from time import time
from typing import Any, Final, TypeVar

import orjson
from starlette.requests import Request

from guards.types import Stage
from streams.events import MAX_DEPTH, Bad, Event, convert, decode, iso, schema_of
from streams.gateway.problems import Problem, bad_event

__all__ = ["DEADLINE_HEADER", "deadline_ms", "event_of", "new_exchange_id", "parse", "read_body", "read_object"]

DEADLINE_HEADER: Final = "x-tidegate-deadline-ms"
"""Lowers the deadline of one request; it never raises it."""

INLINE_BYTES: Final = 65_536
"""Larger bodies are worked on in a thread: a megabyte of small things takes 100 ms, and the loop must not stop."""

T = TypeVar("T")


async def read_object(request: Request, *, max_bytes: int, timeout_s: float) -> tuple[dict[str, Any], int]:
    """The body as a JSON object, and its size in bytes. Raises `Problem` (400, 408, 413, 415, 422)."""
    _require_json(request)
    body = await read_body(request, max_bytes=max_bytes, timeout_s=timeout_s)
    value = await _by_size(len(body), parse, body)
    if not isinstance(value, dict):
        raise Problem("invalid-event", "expected an object")
    return value, len(body)


async def _by_size(size_bytes: int, work: Callable[..., T], *arguments: Any) -> T:
    if size_bytes > INLINE_BYTES:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)


def _require_json(request: Request) -> None:
    """A missing Content-Type is accepted; another one, another charset or a content coding is not."""
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    media_type = media_type.strip().lower()
    if media_type and media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem("unsupported-media-type", "Content-Type is not application/json")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if "charset=" in parameters.lower() and charset not in {"utf-8", "utf8", "us-ascii"}:
        raise Problem("unsupported-media-type", "the charset is not utf-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem("unsupported-media-type", "Content-Encoding is not supported")


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The body, counted while it is read: Content-Length may lie or be absent. Raises `Problem` (408, 413)."""
    too_large = Problem("too-large", f"at most {max_bytes} bytes", max_bytes=max_bytes)
    claimed = request.headers.get("content-length", "")
    if claimed.isascii() and claimed.isdigit() and int(claimed[:20]) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError as error:
        raise Problem("body-timeout", f"{size} bytes had arrived after {timeout_s:g} s") from error
    return b"".join(chunks)


def parse(body: bytes) -> Any:
    """Bytes → JSON value. Raises `Problem` (400, or 422 for a NUL)."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        bad = decode(body, max_bytes=len(body))
        assert isinstance(bad, Bad)
        raise bad_event(bad) from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:  # cannot be too deep otherwise
        outcome = decode(body, max_bytes=len(body))
        if isinstance(outcome, Bad) and outcome.code == "too_deep":
            raise bad_event(outcome)
    return value


async def event_of(fields: dict[str, Any], stage: Stage, size_bytes: int) -> tuple[Event, dict[str, Any]]:
    """Event fields as JSON (of ``size_bytes``) → the event, and the JSON object to publish (unknown fields kept).

    ``schema`` follows from the stage; ``exchange_id`` and ``time`` are made where they are missing. Raises `Problem`
    (422) naming the field.
    """
    schema = schema_of(stage)
    if fields.get("schema", schema) != schema:
        raise Problem("invalid-event", f"schema: the stage is {stage}, so it must be {schema}", field="schema")
    raw = {**fields, "schema": schema}
    raw.setdefault("exchange_id", new_exchange_id())
    if raw.get("time") is None:
        raw["time"] = iso(time() * 1000)
    event = await _by_size(size_bytes, convert, raw)
    if isinstance(event, Bad):
        raise bad_event(event)
    return event, raw


def new_exchange_id() -> str:
    """32 hex digits that sort by time: 48 bits of milliseconds, 80 bits at random."""
    return f"{int(time() * 1000):012x}{secrets.token_hex(10)}"


def deadline_ms(request: Request, default_ms: int) -> float:
    """The deadline of this request, in milliseconds from its arrival. Raises `Problem` (400)."""
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return default_ms
    try:
        wanted_ms = float(text)
    except ValueError:
        wanted_ms = 0.0
    if not wanted_ms > 0:
        raise Problem("bad-request", f"{DEADLINE_HEADER}: expected milliseconds, more than 0")
    return min(wanted_ms, default_ms)
