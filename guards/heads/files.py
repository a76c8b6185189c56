"""Read a head's weights: safetensors, which hold numbers and nothing that could run."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from guards.errors import ConfigError
from guards.models import minilm

if TYPE_CHECKING:
    from guards.artifacts import Encoder

__all__ = ["Head", "load_head", "logistic"]


class Head(NamedTuple):
    """Tensors by name as float32, and a digest of the file for the guard's version."""

    tensors: dict[str, npt.NDArray[np.float32]]
    digest: str


def load_head(name: str, encoder: Encoder) -> Head:
    """The head `guards/heads/<name>.safetensors`, which is a part of the package, for the guard of that name.

    Raises `ConfigError` for another encoder than the bundled one: what a head weighs means nothing in its embeddings.
    """
    if not encoder.version.startswith(f"{minilm.NAME}-"):
        raise ConfigError(
            f"guards.{name}: its head was trained on the bundled encoder, and encoder.model names another; choose "
            "`backend: hf-classifier` or leave encoder.model out"
        )
    import hashlib

    from safetensors.numpy import load

    raw = files("guards.heads").joinpath(f"{name}.safetensors").read_bytes()
    tensors = {key: tensor.astype(np.float32) for key, tensor in load(raw).items()}
    return Head(tensors, hashlib.sha256(raw).hexdigest()[:12])


def logistic(x: float) -> float:
    """1 / (1 + e^-x), for any x."""
    return 1 / (1 + math.exp(-min(max(x, -60.0), 60.0)))
