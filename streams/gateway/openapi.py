"""Operations of the sidecar: one table, from which both the routes and the OpenAPI 3.1 document are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streams.gateway.problems import KINDS

__all__ = ["Operation", "Parameter", "ProblemDocument", "Reply", "curl", "document", "routes"]

_REF: Final = "#/components/schemas/{name}"

Handler = Callable[[Request], Awaitable[Response]]


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A query parameter or header."""

    name: str
    place: Literal["query", "header"]
    what: str
    schema: Mapping[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation answers with one status. ``type``: a type that msgspec knows; without it, any."""

    what: str
    type: Any = None
    media_type: str = "application/json"
    example: Any = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one path: how it is served and what the document says of it.

    ``problems``: codes of `streams.gateway.problems.KINDS`. ``body``: a type that msgspec knows.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    summary: str
    handler: Handler
    replies: Mapping[int, Reply]
    what: str = ""
    tag: str = "sidecar"
    body: Any = None
    example: Any = None
    parameters: Sequence[Parameter] = ()
    problems: Sequence[str] = ()


class ProblemDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457. ``code`` is one of a bounded set; ``detail`` names a field and a rule, never a value."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    field: str = ""


def routes(operations: Sequence[Operation]) -> list[Route]:
    return [Route(op.path, op.handler, methods=[op.method], name=op.name) for op in operations]


def document(operations: Sequence[Operation], *, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these operations."""
    types = [ProblemDocument]
    for op in operations:
        types += [reply.type for reply in op.replies.values() if reply.type is not None]
        types += [op.body] if op.body is not None else []
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for op in operations:
        paths.setdefault(op.path, {})[op.method.lower()] = _operation(op, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate sidecar",
            "version": version,
            "description": "May this pass? One policy, answered inline; the same events and decisions go over Kafka.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(op: Operation, by_type: Mapping[int, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"operationId": op.name, "tags": [op.tag], "summary": op.summary}
    if op.what:
        entry["description"] = op.what
    if op.parameters:
        entry["parameters"] = [
            {"name": p.name, "in": p.place, "required": False, "description": p.what, "schema": dict(p.schema)}
            for p in op.parameters
        ]
    if op.body is not None:
        content: dict[str, Any] = {"schema": by_type[id(op.body)]}
        if op.example is not None:
            content["example"] = op.example
        entry["requestBody"] = {"required": True, "content": {"application/json": content}}
    entry["responses"] = {str(status): _reply(reply, by_type) for status, reply in op.replies.items()}
    by_status: dict[int, list[str]] = {}
    for code in op.problems:
        by_status.setdefault(KINDS[code].status, []).append(code)
    for status, codes in by_status.items():
        what = "; ".join(f"`{code}`: {KINDS[code].title}" for code in codes)
        schema = by_type[id(ProblemDocument)]
        told = entry["responses"].get(str(status))
        if told is not None:  # the status also has an answer of its own, as /ready's 503
            told["content"]["application/problem+json"] = {"schema": schema}
            continue
        entry["responses"][str(status)] = {
            "description": what,
            "content": {"application/problem+json": {"schema": schema}},
        }
    return entry


def _reply(reply: Reply, by_type: Mapping[int, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if reply.type is not None:
        content["schema"] = by_type[id(reply.type)]
    if reply.example is not None:
        content["example"] = reply.example
    return {"description": reply.what, "content": {reply.media_type: content}}


def curl(method: str, path: str, example: Any, address: str) -> str:
    """A command line that tries the operation."""
    if method == "GET":
        return f"curl -s http://{address}{path}"
    body = msgspec.json.encode(example).decode().replace("'", "'\\''")
    return f"curl -s http://{address}{path} -H 'Content-Type: application/json' \\\n  -d '{body}'"
