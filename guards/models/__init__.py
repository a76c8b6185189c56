"""The model store: pinned files on disk, fetched by `ModelStore.pull` and by nothing else.

Importing this package is cheap; spaCy, ONNX Runtime and onnx are imported when a model is loaded or built.
"""

from guards.models.sources import ModelSpec
from guards.models.store import Model, ModelPullError, ModelState, ModelStore, default_root

__all__ = ["Model", "ModelPullError", "ModelSpec", "ModelState", "ModelStore", "default_root"]
