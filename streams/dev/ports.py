"""Free ports on loopback, and who holds one that is not free."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import psutil

from guards.errors import GuardsError

__all__ = ["LOOPBACK", "PortInUseError", "free_port", "free_ports", "is_free", "require_free"]

LOOPBACK = "127.0.0.1"


class PortInUseError(GuardsError):
    """A port is taken; the text names the option that changes it."""


def free_ports(count: int) -> list[int]:
    """``count`` different ports that are free now. Another process may take one before it is bound."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def free_port() -> int:
    return free_ports(1)[0]


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do: connections that linger after a restart (TIME_WAIT) do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_free(port: int, what: str, option: str, host: str = LOOPBACK) -> None:
    """Raises `PortInUseError` when ``what`` cannot listen on ``port``, naming who does and the option to change."""
    if not is_free(port, host):
        raise PortInUseError(
            f"port {port} on {host}, wanted for the {what}, is in use{_holder(port)}; choose another with {option} PORT"
        )


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:  # not ours to see: the message does without
        pass
    return ""
