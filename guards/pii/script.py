"""Capital letters of the scripts in which names begin with one: Latin, Greek, Cyrillic, Armenian."""

from __future__ import annotations

from typing import Final

__all__ = ["CAPITALS", "NAME", "NAME_WORD", "PARTICLES"]

CAPITALS: Final = "A-Z" + "".join(chr(code) for code in range(0xC0, 0x590) if chr(code).isupper())
"""For use within square brackets of a pattern."""

PARTICLES: Final = (
    r"(?:da|das|de|del|della|der|den|di|do|dos|du|e|el|la|las|le|los|ten|ter|van|von|vom|zu|y|i|bin|ibn|al)"
)

NAME_WORD: Final = rf"[{CAPITALS}](?:[^\W\d_ªº]|['’‘-](?=[^\W\d_]{{2}})){{1,40}}"
NAME: Final = rf"{NAME_WORD}(?: (?:[{CAPITALS}]\. ?){{0,2}}(?:{PARTICLES} ){{0,3}}{NAME_WORD}){{0,3}}"
"""One to four capitalised words, with initials and particles between them."""
