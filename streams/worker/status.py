"""A worker's own HTTP endpoints: ``/live``, ``/ready`` (both tell the truth) and ``/metrics``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from guards.errors import GuardsError

__all__ = ["StatusServer"]

Check = Callable[[], str | None]
"""``None`` when well, else what is wrong, in words that an operator can use."""


class StatusServer:
    """Serves on ``host``:``port`` (0: a free one) until stopped. A process that does not answer is not alive."""

    def __init__(self, host: str, port: int, *, live: Mapping[str, Check], ready: Mapping[str, Check]) -> None:
        self._host = host
        self._port = port
        self._live = live
        self._ready = ready
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Returns the port. Raises `GuardsError` when it is in use."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise GuardsError(
                f"{self._host}:{self._port} cannot be used: {error.strerror}; choose another with --status-port"
            ) from error
        routes = [
            Route("/live", self._answer(self._live)),
            Route("/ready", self._answer(self._ready)),
            Route("/metrics", _metrics),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        # The process's own handlers stay in charge of signals.
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="status-server")
        port: int = listener.getsockname()[1]
        return port

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            await asyncio.gather(self._task, return_exceptions=True)

    def _answer(self, checks: Mapping[str, Check]) -> Callable[[Request], Response]:
        def endpoint(_: Request) -> Response:
            state = {name: check() for name, check in checks.items()}
            well = all(why is None for why in state.values())
            body = {"status": "ok" if well else "unavailable", "checks": {k: v or "ok" for k, v in state.items()}}
            return JSONResponse(body, status_code=200 if well else 503)

        return endpoint


def _metrics(_: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
