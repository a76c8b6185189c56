"""What stands in the place of redacted text: pure functions from a kind and a text's length or digest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

__all__ = ["HASH_HEX_CHARS", "MAX_MASK_CHARS", "Digest", "Hasher", "Operator", "replacement"]

Operator = Literal["replace", "mask", "hash"]

Hasher = Callable[[str, str], str]
"""Tenant and text → hex digits of a keyed hash. Keyed, and by tenant: a plain hash of a card number can be reversed."""

Digest = Callable[[], str]
"""The same for one text at hand; called only when a rule masks by hash."""

MAX_MASK_CHARS: Final = 16
"""Masks stop growing here: the length of a long name or address tells something too."""

HASH_HEX_CHARS: Final = 12
"""48 bits: within one tenant's conversation two values do not meet by chance, and the text stays readable."""


def replacement(operator: Operator, kind: str, length: int, digest: Digest | None = None) -> str:
    """The replacement of ``length`` code points of the kind ``kind``.

    ``replace``: ``<PERSON>``. ``mask``: asterisks, as many as characters, at most `MAX_MASK_CHARS`. ``hash``:
    ``<PERSON:9f86d081884c>``, the same for the same value of one tenant; without a ``digest`` it is ``<PERSON>``, which
    hides more. Raises `ValueError` for an unknown operator.
    """
    if operator == "replace" or (operator == "hash" and digest is None):
        return f"<{kind}>"
    if operator == "mask":
        return "*" * min(length, MAX_MASK_CHARS)
    if operator == "hash":
        assert digest is not None
        return f"<{kind}:{digest()[:HASH_HEX_CHARS]}>"
    raise ValueError(f"no masking operator is called {operator!r}; known are replace, mask and hash")
