"""The sidecar as an ASGI application and as a process: ``run_sidecar``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from time import perf_counter
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guards.errors import GuardsError
from streams import metrics
from streams.gateway.openapi import routes
from streams.gateway.problems import Problem, on_http_exception, on_problem, problem_response
from streams.gateway.sidecar import Sidecar
from streams.log import configure, get_logger
from streams.settings import Settings, SidecarSettings

__all__ = ["PortInUseError", "make_app", "run_sidecar"]

DRAIN_S: Final = 0.3
"""Between "not ready" and closing the port: who watches /ready has seen it, and others are served meanwhile."""

KEEP_ALIVE_S: Final = 75
"""Idle connections are kept longer than the pools of common clients keep theirs, so that none is closed under a
request that is just being sent (uvicorn's default: 5 s)."""

SWITCH_INTERVAL_S: Final = 0.0005
"""A thread that computes gives the interpreter up after this (Python's default: 5 ms). Every system call of the event
loop lets go of the interpreter and waits for it again, several times a request: with the default, answers queue up
behind guards that run. Costs the guards a few per cent."""

_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_CSP: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class PortInUseError(GuardsError):
    """The port cannot be listened on; the text names the options."""


def make_app(sidecar: Sidecar) -> ASGIApp:
    """The ASGI application of a sidecar."""
    operations = sidecar.operations()
    app = Starlette(
        routes=routes(operations),
        exception_handlers={
            Problem: on_problem,
            HTTPException: on_http_exception,
            ClientDisconnect: _on_disconnect,
            Exception: _on_fault,
        },
    )
    app.router.redirect_slashes = False
    return Edge(app, paths=frozenset(op.path for op in operations), log=sidecar.log)


def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx's status for it, in the metrics


def _on_fault(_: Request, __: Exception) -> Response:
    return problem_response(Problem("internal"))


class Edge:
    """The outermost layer: counts and times requests, sets security headers, turns a fault of ours into a problem.

    A fault is logged by its class and place only: its text may quote what the caller sent.
    """

    def __init__(self, app: ASGIApp, *, paths: frozenset[str], log: Any) -> None:
        self._app = app
        self._paths = paths
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = perf_counter()
        status = 0
        complete = False

        async def send_on(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                headers.extend(_HEADERS)
                if not any(name == _CSP[0] for name, _ in headers):
                    headers.append(_CSP)
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            self._log.error("a request failed", error=type(error).__name__, at=_place(error))
            if not complete:  # half an answer is out: the server has to close the connection
                raise RuntimeError("an answer was cut short") from None
        finally:
            route = scope["path"] if scope["path"] in self._paths else "other"
            metrics.HTTP_REQUESTS.labels(route, str(status)).inc()
            metrics.HTTP_SECONDS.labels(route).observe(perf_counter() - began_s)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"


async def run_sidecar(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 after a graceful stop, 1 when the server ended by itself.

    Raises `PortInUseError` (exit code 3), `ConfigError`, `ModelMissingError` or another `GuardsError` when it cannot
    start; each names the fix. A second signal ends it without waiting for open answers.
    """
    configure(settings.log_format, settings.log_level)
    log = get_logger("sidecar")
    # Without a broker aiokafka writes a hundred lines a second; `Health` and `Outbox` say what there is to say, once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    listener = _listen(settings.sidecar)
    sidecar = Sidecar(settings, log)
    host, port = listener.getsockname()[:2]
    sidecar.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(sidecar),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=settings.sidecar.deadline_ms // 1000 + 2,
        )
    )
    # Signals are this function's: first not ready, then no new connections, then the flush.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            server.force_exit = True
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    starting = asyncio.create_task(_start(sidecar), name="start")
    try:
        await asyncio.wait({starting, serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        graceful = stop.is_set()
        sidecar.stopping = True
        if graceful and starting.done():
            log.info("stopping", in_flight=sidecar.checker.inflight if sidecar.checker else 0)
            await asyncio.sleep(DRAIN_S)
        for task in (starting, stopped):
            task.cancel()
        server.should_exit = True
        await asyncio.gather(serving, starting, stopped, return_exceptions=True)
        hanging = await sidecar.stop()
        log.info("stopped", hanging_threads=hanging)
        if hanging and graceful:
            # All is flushed and closed. Python's own end would pull the interpreter from under native code that is
            # still running, which aborts the process (seen: libblis).
            os._exit(0)
    return 0 if graceful else 1


async def _start(sidecar: Sidecar) -> None:
    sidecar.log.info("listening", address=sidecar.address, mode=sidecar.settings.sidecar.mode)
    try:
        await sidecar.start()
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    sidecar.log.info("ready", address=sidecar.address)


def _listen(settings: SidecarSettings) -> socket.socket:
    """The listening socket. Raises `PortInUseError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise PortInUseError(
            f"{settings.host}:{settings.port} cannot be used: {error.strerror or error}; choose another with --port "
            "(TIDEGATE_SIDECAR__PORT) or --host"
        ) from error
    return listener
