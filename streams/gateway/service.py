"""The sidecar's own endpoints: health, metrics, the API's description, what is in force, the monitor's windows."""

from __future__ import annotations

import secrets
from datetime import datetime
from functools import cache
from importlib.metadata import version
from time import time
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from guards.errors import ConfigError
from streams import topics
from streams.events import to_ms
from streams.gateway.openapi import Operation, Parameter, Reply, document
from streams.gateway.page import render
from streams.gateway.problems import Problem
from streams.monitor.report import total_json, windows_json

if TYPE_CHECKING:
    from streams.gateway.sidecar import Sidecar

__all__ = ["Info", "operations"]


class Status(msgspec.Struct, frozen=True):
    """``checks``: by name ``ok``, or what is wrong."""

    status: str
    checks: dict[str, str]


class PolicyInForce(msgspec.Struct, frozen=True):
    """The policy in force here; ``refused``: a newer version that this process cannot use."""

    name: str
    version: str
    refused: str | None = None


class Broker(msgspec.Struct, frozen=True):
    bootstrap: str


class Info(msgspec.Struct, frozen=True):
    """What runs here. ``policy`` is null until one is in force."""

    version: str
    mode: str
    profile: str
    policy: PolicyInForce | None
    kafka: Broker
    topics: dict[str, str]
    partitions: int


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _status(checks: dict[str, str | None]) -> Response:
    well = all(why is None for why in checks.values())
    body = Status("ok" if well else "unavailable", {name: why or "ok" for name, why in checks.items()})
    return _json(body, 200 if well else 503)


def operations(sidecar: Sidecar, *, address: str) -> list[Operation]:
    """``address``: host and port for the curl examples on the page."""
    settings = sidecar.settings

    async def live(_: Request) -> Response:
        return _status(sidecar.health.live())

    async def ready(_: Request) -> Response:
        return _status(sidecar.health.ready())

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def info(_: Request) -> Response:
        policy = sidecar.policy
        names = (topics.REQUESTS, topics.RESPONSES, topics.DECISIONS, topics.ALERTS, topics.METRICS, topics.WINDOWS)
        return _json(
            Info(
                version=version("tidegate"),
                mode=settings.sidecar.mode,
                profile=settings.profile,
                policy=None if policy is None else PolicyInForce(policy.name, policy.version, sidecar.refused),
                kafka=Broker(settings.kafka.bootstrap),
                topics={name.removeprefix("llm."): name for name in (*names, topics.POLICY, topics.DLQ)},
                partitions=settings.kafka.partitions,
            )
        )

    async def windows(request: Request) -> Response:
        return _json(_windows(sidecar, request.query_params))

    @cache
    def described() -> dict[str, Any]:
        return document(sidecar.operations(), version=version("tidegate"))

    async def openapi(_: Request) -> Response:
        return Response(orjson.dumps(described()), media_type="application/json")

    async def page(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        html = render(described(), address=address, nonce=nonce)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    html = {200: Reply(what="HTML.", media_type="text/html")}
    return [
        Operation(
            method="GET",
            path="/live",
            name="live",
            summary="Does the process work?",
            handler=live,
            tag="health",
            what="A process that fails here needs a restart.",
            replies={200: Reply(what="It does.", type=Status), 503: Reply(what="It does not.", type=Status)},
        ),
        Operation(
            method="GET",
            path="/ready",
            name="ready",
            summary="Can it answer?",
            handler=ready,
            tag="health",
            what="Policy, models, broker and store, each by name.",
            replies={200: Reply(what="It can.", type=Status), 503: Reply(what="It cannot; see which.", type=Status)},
        ),
        Operation(
            method="GET",
            path="/metrics",
            name="metrics",
            summary="Prometheus metrics.",
            handler=metrics,
            tag="health",
            replies={200: Reply(what="The text exposition format.", media_type="text/plain")},
        ),
        Operation(
            method="GET",
            path="/v1/info",
            name="info",
            summary="What runs here.",
            handler=info,
            tag="reading",
            replies={200: Reply(what="Version, mode, policy in force, topics.", type=Info)},
        ),
        Operation(
            method="GET",
            path="/v1/windows",
            name="windows",
            summary="Rolling windows of functional metrics.",
            handler=windows,
            tag="reading",
            what="Counts, latency, tokens, decisions and findings by series, as the monitor has counted them.",
            parameters=[
                Parameter(
                    name="horizon",
                    place="query",
                    what="Length of the window; default 1m.",
                    schema={"type": "string", "enum": ["1m", "5m", "1h"], "default": "1m"},
                ),
                Parameter(
                    name="series",
                    place="query",
                    what="tenant/route[/model[/prompt version]]: a prefix; `*` stands for any.",
                ),
                Parameter(
                    name="at",
                    place="query",
                    what="The window's end, RFC 3339; default: now.",
                    schema={"type": "string", "format": "date-time"},
                ),
                Parameter(
                    name="total",
                    place="query",
                    what="Everything since the topics' start in place of a window.",
                    schema={"type": "boolean", "default": False},
                ),
            ],
            replies={200: Reply(what="The windows, and up to which offsets they count.")},
            problems=["bad-request", "not-ready"],
        ),
        Operation(
            method="GET",
            path="/openapi.json",
            name="openapi",
            summary="This API as an OpenAPI 3.1 document.",
            handler=openapi,
            tag="description",
            replies={200: Reply(what="The document.")},
        ),
        Operation(
            method="GET", path="/docs", name="docs", summary="This page.", handler=page, tag="description", replies=html
        ),
        Operation(
            method="GET",
            path="/",
            name="home",
            summary="This page, too.",
            handler=page,
            tag="description",
            replies=html,
        ),
    ]


_WINDOW_PARAMETERS = frozenset({"horizon", "series", "at", "total"})


def _windows(sidecar: Sidecar, query: QueryParams) -> dict[str, Any]:
    """Raises `Problem`: 400 for a parameter that means nothing, 503 while the reader has not caught up."""
    unknown = sorted(set(query) - _WINDOW_PARAMETERS)
    if unknown:
        raise Problem("bad-request", f"unknown parameter; known are {', '.join(sorted(_WINDOW_PARAMETERS))}")
    total = query.get("total", "false").lower()
    if total not in {"true", "false"}:
        raise Problem("bad-request", "total: expected true or false", field="total")
    at_ms = None
    if "at" in query:
        try:
            at = datetime.fromisoformat(query["at"].replace(" ", "+"))  # a '+' that was not escaped
            at_ms = to_ms(at) if at.tzinfo is not None else None
        except (ValueError, OverflowError):
            at_ms = None
        if at_ms is None:
            raise Problem("bad-request", "at: expected a time as RFC 3339, with its zone", field="at")
    view = sidecar.windows_view()
    if total == "true":
        return total_json(view)
    try:
        return windows_json(
            view,
            horizon=query.get("horizon", "1m"),
            series=query.get("series"),
            at_ms=at_ms,
            now_ms=round(time() * 1000),
        )
    except ConfigError as error:
        raise Problem("bad-request", str(error)) from error
