"""The native contract: ``POST /v1/guard`` with a stage and event fields, answered with the decision."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from guards.types import Stage
from streams.events import RequestEvent, ResponseEvent
from streams.gateway.body import DEADLINE_HEADER, deadline_ms, event_of, read_object
from streams.gateway.checker import Answer
from streams.gateway.openapi import Operation, Parameter, Reply
from streams.gateway.problems import Problem

if TYPE_CHECKING:
    from streams.gateway.sidecar import Sidecar

__all__ = ["GuardRequest", "GuardResponse", "operations"]

STAGES: Final[tuple[Stage, ...]] = ("request", "response")


def _body(event: type[msgspec.Struct], stage: Stage) -> type[msgspec.Struct]:
    """The event as this contract takes it, for the document: tagged by ``stage``, ``exchange_id`` optional."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(event):
        if field.name == "exchange_id":
            fields.append((field.name, field.type, ""))
        elif field.required:
            fields.append((field.name, field.type))
        elif field.default_factory is not msgspec.NODEFAULT:
            fields.append((field.name, field.type, msgspec.field(default_factory=field.default_factory)))
        else:
            fields.append((field.name, field.type, field.default))
    made = msgspec.defstruct(f"Guard{stage.capitalize()}", fields, tag_field="stage", tag=stage, kw_only=True)
    made.__doc__ = f"Event fields of a {stage}; `exchange_id` is generated where it is missing, other fields are kept."
    return made


GuardRequest = _body(RequestEvent, "request")
GuardResponse = _body(ResponseEvent, "response")

EXAMPLE: Final = {
    "stage": "request",
    "conversation_id": "c-17",
    "tenant": "acme",
    "route": "support-bot",
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "My card is 4111 1111 1111 1111, is it still valid?"}],
}


def operations(sidecar: Sidecar) -> list[Operation]:
    settings = sidecar.settings.sidecar

    async def guard(request: Request) -> Response:
        began_s = perf_counter()
        checker = sidecar.ready_checker()
        with checker.admit():
            limit_ms = deadline_ms(request, settings.deadline_ms)
            fields, size_bytes = await read_object(
                request, max_bytes=settings.max_body_bytes, timeout_s=settings.deadline_ms / 1000
            )
            stage = fields.pop("stage", None)
            if stage not in STAGES:
                raise Problem("invalid-event", "stage: expected request or response", field="stage")
            event, raw = await event_of(fields, stage, size_bytes)
            answer = await checker.check(event, raw, deadline_ms=limit_ms, began_s=began_s)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return [
        Operation(
            method="POST",
            path="/v1/guard",
            name="guard",
            tag="native",
            summary="May this pass?",
            what="Checks a request or a response under the policy in force, and answers by the deadline. A guard that "
            "had no verdict by then stands under `coverage.failed`, and the policy says what that means. `messages` "
            "are there when the decision is `redact`: use them in place of what was sent.",
            handler=guard,
            body=GuardRequest | GuardResponse,
            example=EXAMPLE,
            parameters=[
                Parameter(
                    name=DEADLINE_HEADER,
                    place="header",
                    what=f"Lowers the deadline of this request, in milliseconds; it is {settings.deadline_ms} here.",
                    schema={"type": "number", "exclusiveMinimum": 0},
                )
            ],
            replies={200: Reply(what="The decision.", type=Answer)},
            problems=[
                "bad-json",
                "bad-request",
                "body-timeout",
                "too-large",
                "unsupported-media-type",
                "invalid-event",
                "overloaded",
                "not-ready",
            ],
        )
    ]
