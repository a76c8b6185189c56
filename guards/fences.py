"""Fenced blocks of Markdown: where they stand and how they are labelled."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["Block", "blocks"]

# Indented as deep as one likes: models put blocks into list items.
_FENCE: Final = re.compile(r"^[ \t>]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<label>[^\s`]*)(?P<rest>[^`\n]*)$", re.MULTILINE)


class Block(NamedTuple):
    """The inside of a block (code points, end exclusive) and the first word after its opening fence, lower case."""

    label: str
    start: int
    end: int


def blocks(text: str) -> list[Block]:
    """The blocks in order. One that is not closed goes on to the end of the text. Linear time."""
    found: list[Block] = []
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match
        elif match["fence"].startswith(opened["fence"]) and not match["label"] and not match["rest"].strip():
            found.append(_block(opened, match.start()))
            opened = None
    if opened is not None:
        found.append(_block(opened, len(text)))
    return found


def _block(opened: re.Match[str], end: int) -> Block:
    return Block(opened["label"].lower(), min(opened.end() + 1, end), end)
