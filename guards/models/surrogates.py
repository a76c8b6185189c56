"""Lone surrogates: JSON can carry them, UTF-8 and so tokenizers and spaCy cannot."""

__all__ = ["without_surrogates"]


def without_surrogates(text: str) -> str:
    """The text with each lone surrogate replaced by one ``?``, so that offsets stay."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
