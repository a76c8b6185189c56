"""Errors over HTTP: RFC 9457 problem documents, from one table of codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from streams.events import Bad, BadCode

__all__ = ["KINDS", "Kind", "Problem", "bad_event", "on_http_exception", "on_problem", "problem_response"]

MEDIA_TYPE: Final = "application/problem+json"


class Kind(msgspec.Struct, frozen=True):
    """One line of the table: the HTTP status, a fixed title, and what the caller can do."""

    status: int
    title: str
    advice: str


KINDS: Final[Mapping[str, Kind]] = {
    "bad-json": Kind(400, "The body is not usable JSON", "Send UTF-8 JSON, nested at most 64 deep, one object."),
    "bad-request": Kind(400, "A header or parameter is not valid", "See the detail."),
    "not-found": Kind(404, "There is nothing at this path", "The paths are listed at /docs."),
    "method-not-allowed": Kind(405, "This path does not take that method", "See the Allow header."),
    "body-timeout": Kind(408, "The body did not arrive in time", "Send it within the deadline."),
    "too-large": Kind(413, "The body is larger than this sidecar accepts", "See sidecar.max_body_bytes."),
    "unsupported-media-type": Kind(415, "The body must be JSON", "Send Content-Type: application/json, unencoded."),
    "invalid-event": Kind(422, "The body does not fit the schema", "The detail names the field and the rule."),
    "internal": Kind(500, "The sidecar failed", "Its log has the cause; this is a fault of Tidegate."),
    "overloaded": Kind(503, "Too many checks are under way", "Try again after Retry-After seconds."),
    "not-ready": Kind(503, "The sidecar cannot answer this yet", "See /ready for what is missing."),
}
"""Problem code → kind. A bounded set: clients may switch on ``code``."""

_BY_STATUS: Final = {404: "not-found", 405: "method-not-allowed"}
_FIELD = re.compile(r"`\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")

_SYNTAX: Final = frozenset(
    {BadCode.EMPTY, BadCode.NOT_UTF8, BadCode.NOT_JSON, BadCode.TOO_DEEP, BadCode.LONE_SURROGATE}
)


class Problem(Exception):
    """Ends a request with a problem document. ``detail`` never holds a value that the caller sent."""

    def __init__(
        self, code: str, detail: str = "", *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members


def bad_event(bad: Bad) -> Problem:
    """What could not be decoded, as a problem: 400 for JSON, 413 for size, 422 for the schema."""
    detail = f"{bad.code}: {bad.detail}" if bad.detail else str(bad.code)
    if bad.code in _SYNTAX:
        return Problem("bad-json", detail)
    if bad.code is BadCode.TOO_LARGE:
        return Problem("too-large", detail)
    field = _field_of(bad)
    return Problem("invalid-event", detail, field=field)


def _field_of(bad: Bad) -> str:
    """``messages[0].role``, from msgspec's message; empty where it names none."""
    path = _FIELD.search(bad.detail)
    missing = _MISSING.search(bad.detail)
    if bad.code is BadCode.MISSING_FIELD and missing is None:
        return bad.detail
    parts = [path[1] if path else "", missing[1] if missing else ""]
    return ".".join(part for part in parts if part)


def problem_response(problem: Problem) -> Response:
    kind = KINDS[problem.code]
    document = {
        "type": f"/docs#problem-{problem.code}",
        "title": kind.title,
        "status": kind.status,
        "code": problem.code,
        **({"detail": problem.detail} if problem.detail else {}),
        **{name: value for name, value in problem.members.items() if value != ""},
    }
    return Response(orjson.dumps(document), kind.status, problem.headers, media_type=MEDIA_TYPE)


def on_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error)


def on_http_exception(_: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 as problem documents."""
    assert isinstance(error, HTTPException)
    return problem_response(Problem(_BY_STATUS.get(error.status_code, "internal"), headers=error.headers))
