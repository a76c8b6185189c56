"""What slow guards share: the way to a service (`Outside`, injected: nothing here knows HTTP), and what goes there."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from time import monotonic
from typing import Annotated, Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from guards.artifacts import Artifacts
from guards.errors import ConfigError, GuardsError
from guards.guard import MAX_CHARS
from guards.types import Exchange, Failure, FailureCode, Text, Unit

__all__ = [
    "MAX_CHARS",
    "Budget",
    "Call",
    "Outside",
    "OutsideError",
    "Reply",
    "Texts",
    "ask",
    "check_url",
    "environment",
    "prepared",
    "sampled",
    "sendable",
]


MASK_SCORE: Final = 0.5
"""Personal data and secrets from this score on are masked: the threshold that their guards are made for."""

FIRST_PAUSE_S: Final = 0.5  # before the first retry; doubles each time
PAUSE_MAX_S: Final = 8.0

RETRY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be others a moment later. What is left (400, 401, 404 …) fails at once."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")

Texts = Literal["redacted", "raw"]
"""How texts are sent: as they are, or what patterns find of personal data (no names) and secrets as asterisks."""

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calls that a guard may make, retries included, over all workers and tenants; ``None``: as many as it likes."""

    per_minute: Positive | None = None
    per_day: Positive | None = None


class Reply(msgspec.Struct, frozen=True):
    """What a service answered."""

    status: int
    body: bytes


class OutsideError(GuardsError):
    """A service gave no reply. ``code`` says why: `TIMEOUT`, `UNREACHABLE`, or `BAD_ANSWER` when it is endless."""

    def __init__(self, code: FailureCode, message: str) -> None:
        self.code = code
        super().__init__(message)


class Outside(Protocol):
    """The way to services. Called from the threads of guards; all methods block."""

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, allow_private: bool
    ) -> Reply:
        """Post JSON; returns within ``timeout_s``, whatever the service does. Redirects are replies, never followed.

        Without ``allow_private`` only addresses of the public internet are connected to. Raises `OutsideError`.
        """

    def spend(self, guard: str, budget: Budget) -> bool:
        """Take one call from a budget, if there is one left."""

    def pause(self, seconds: float) -> None:
        """Wait, or raise when the process ends meanwhile."""


class Call(msgspec.Struct, frozen=True):
    """One question to a service. ``timeout_s`` is for all of it, retries and pauses included."""

    guard: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    timeout_s: float
    retries: int
    budget: Budget = Budget()
    allow_private: bool = False


def ask(outside: Outside, call: Call, clock: Callable[[], float] = monotonic) -> bytes | Failure:
    """The body of the first good answer (2xx), or why there is none. Blocks, at most ``call.timeout_s``."""
    ends_s = clock() + call.timeout_s
    failure = Failure(FailureCode.TIMEOUT)
    for attempt in range(call.retries + 1):
        if attempt:
            pause_s = min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), PAUSE_MAX_S)
            if clock() + pause_s >= ends_s:
                break
            outside.pause(pause_s)
        if call.budget != Budget() and not outside.spend(call.guard, call.budget):
            return Failure(FailureCode.OVER_BUDGET)
        try:
            reply = outside.post(
                call.url,
                call.body,
                call.headers,
                timeout_s=max(0.0, ends_s - clock()),
                allow_private=call.allow_private,
            )
        except OutsideError as error:
            failure = Failure(error.code)
            continue
        if 200 <= reply.status < 300:
            return reply.body
        failure = Failure(FailureCode.UNREACHABLE)
        if reply.status not in RETRY_STATUSES:
            break
    return failure


def check_url(url: str, *, plain_http: bool) -> None:
    """Raises `ValueError` for what is no address of a service, and for one that carries credentials."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http(s) address")
    if parts.scheme == "http" and not plain_http:
        raise ValueError(f"{url!r}: plain http only with allow_private: true")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address must not carry credentials; name environment variables instead")
    if parts.port == 0 or parts.fragment:
        raise ValueError(f"{url!r} is no address that can be asked")


def sampled(exchange: Exchange, share: float) -> bool:
    """Whether an exchange is in the sample: by a hash of its id, so that a replay takes the same ones."""
    name = f"tidegate-sample:{exchange.exchange_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) < share * 2**64


def prepared(unit: Unit, texts: Sequence[Text], how: Texts) -> list[str]:
    """The strings to send, in order: as long as before (code points), so that places in them hold in the original.

    Lone surrogates, which no UTF-8 can carry, become U+FFFD.
    """
    shown = [text.text for text in texts]
    if how == "redacted":
        shown = [_masked(text, unit) for text in texts]
    return [sendable(text) for text in shown]


def sendable(text: str) -> str:
    """The text, its lone surrogates replaced."""
    return _SURROGATE.sub("\ufffd", text)


def environment(name: str) -> str:
    """The value of an environment variable that a policy names. Raises `ConfigError` when it is not set."""
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"the policy names the environment variable {name}, and it is not set here")
    return value


def _masked(text: Text, unit: Unit) -> str:
    characters = list(text.text)
    for guard, options, artifacts in _finders():
        alone = Unit((msgspec.structs.replace(text, role="user"),), unit.exchange, unit.stage)
        (result,) = guard.check([alone], options, artifacts)
        if isinstance(result, Failure):  # it cannot be said what is in it: nothing of it is sent
            return "*" * len(characters)
        for hit in result:
            if hit.score >= MASK_SCORE:
                for part in hit.ranges:
                    characters[part.start : part.end] = "*" * (part.end - part.start)
    return "".join(characters)


@cache
def _finders() -> tuple[tuple[Any, Any, Artifacts], ...]:
    """The pii guard without names and the secrets guard: patterns alone, no model. Made at the first use (a second)."""
    from guards.guard import NoOptions
    from guards.pii import Options, PiiGuard, Profile
    from guards.pii.names import NAME_KINDS
    from guards.secrets import SecretsGuard

    kinds = tuple(kind for kind in Options().kinds if kind not in NAME_KINDS)
    artifacts = Artifacts(None, None)
    return (
        (PiiGuard(Profile(), "patterns"), Options(kinds=kinds), artifacts),
        (SecretsGuard(), NoOptions(), artifacts),
    )
