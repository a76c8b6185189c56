"""Gateway contracts, one file each: ``operations(sidecar)`` says what is served at which path and how it is described.

A new contract is a module with that function, added to `CONTRACTS`. It translates: request → event fields
(`streams.gateway.body.event_of`) → `Checker.check` → the gateway's own answer. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from streams.gateway.contracts import native
from streams.gateway.openapi import Operation

if TYPE_CHECKING:
    from streams.gateway.sidecar import Sidecar

__all__ = ["CONTRACTS"]

CONTRACTS: Final[Sequence[Callable[[Sidecar], list[Operation]]]] = (native.operations,)
