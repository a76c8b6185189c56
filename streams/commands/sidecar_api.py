"""Asking a sidecar on this machine, and finding the broker through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guards.errors import GuardsError

if TYPE_CHECKING:
    import httpx

    from streams.settings import KafkaSettings

__all__ = ["SidecarUnreachableError", "base_url", "find_kafka", "get_json"]

_TIMEOUT_S = 10.0
"""A sidecar that is up answers reads in milliseconds; the time-out covers a machine that is busy loading models."""


class SidecarUnreachableError(GuardsError):
    """The sidecar does not answer (``status`` ``None``), or with an error; the text names the option."""

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


def base_url(port: int | None, profile: str | None = None) -> str:
    """Where the sidecar listens: ``port`` on loopback, else the profile's address."""
    from streams.settings import load_settings

    if port is not None:
        return f"http://127.0.0.1:{port}"
    sidecar = load_settings(profile).sidecar
    host = "127.0.0.1" if sidecar.host in {"0.0.0.0", "::"} else sidecar.host  # noqa: S104 - compared, not bound
    return f"http://{host}:{sidecar.port}"


async def get_json(url: str, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
    """GET a JSON object. Raises `SidecarUnreachableError` when nobody answers or the answer is no JSON object."""
    import httpx

    try:
        # No proxy from the environment: the sidecar is on this machine.
        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as client:
            response = await client.get(path, params=params)
        body = response.json() if response.status_code < 400 else _problem(response)
    except (httpx.HTTPError, ValueError) as error:
        raise SidecarUnreachableError(
            f"no sidecar answers at {url} ({type(error).__name__}); start one (`tidegate up`, `tidegate sidecar`), "
            "or name its port with --port"
        ) from error
    if response.status_code >= 400 or not isinstance(body, dict):
        detail = f": {body}" if isinstance(body, str) and body else ""
        raise SidecarUnreachableError(f"{url}{path} answered {response.status_code}{detail}", response.status_code)
    return body


def _problem(response: httpx.Response) -> str:
    """What a problem document (RFC 9457) says, or nothing."""
    try:
        body = response.json()
    except ValueError:
        return ""
    return str(body.get("detail") or body.get("title") or "") if isinstance(body, dict) else ""


async def find_kafka(kafka: str | None, port: int | None, profile: str | None) -> tuple[KafkaSettings, str | None]:
    """The broker's settings, and the address of the sidecar that belongs to it, if one is known.

    With ``kafka`` given that is the broker, and a sidecar is known only if ``port`` is given too. Otherwise the
    sidecar is asked for its broker (``GET /v1/info``); security options come from the profile and the environment.
    """
    from streams.settings import load_settings

    if kafka is not None:
        settings = load_settings(profile, kafka={"bootstrap": kafka})
        return settings.kafka, None if port is None else base_url(port)
    url = base_url(port, profile)
    info = await get_json(url, "/v1/info")
    try:
        bootstrap = info["kafka"]["bootstrap"]
        named = info.get("profile")
    except (KeyError, TypeError) as error:
        raise SidecarUnreachableError(f"{url}/v1/info names no broker; name it with --kafka HOST:PORT") from error
    return load_settings(profile or named, kafka={"bootstrap": bootstrap}).kafka, url
