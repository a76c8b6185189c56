"""What stands in the place of personal data: pure functions from a kind and a text to its replacement."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, Literal

__all__ = ["MAX_MASK_CHARS", "Operator", "replacement"]

Operator = Literal["replace", "mask", "hash"]

MAX_MASK_CHARS: Final = 16
"""Masks stop growing here: the length of a long name or address tells something too."""

HASH_HEX_CHARS: Final = 12
"""48 bits: within one tenant's conversation two values do not meet by chance, and the text stays readable."""


def replacement(operator: Operator, kind: str, text: str, key: bytes = b"") -> str:
    """The replacement of ``text``, which is of the kind ``kind``.

    ``replace``: ``<PERSON>``. ``mask``: asterisks, as many as characters, at most `MAX_MASK_CHARS`. ``hash``:
    ``<PERSON:9f86d081884c>``, an HMAC-SHA256 under ``key``, so that the same value reads the same and cannot be
    guessed back without the key. Raises `ValueError` for ``hash`` without a key and for an unknown operator.
    """
    if operator == "replace":
        return f"<{kind}>"
    if operator == "mask":
        return "*" * min(len(text), MAX_MASK_CHARS)
    if operator == "hash":
        if not key:
            raise ValueError("the operator hash needs a key: an unkeyed hash of a card number can be reversed")
        digest = hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
        return f"<{kind}:{digest[:HASH_HEX_CHARS]}>"
    raise ValueError(f"no masking operator is called {operator!r}; known are replace, mask and hash")
