"""The small heads on top of the shared encoder: weights that training/ wrote, read with numpy."""

from guards.heads.files import Head, load_head, logistic

__all__ = ["Head", "load_head", "logistic"]
