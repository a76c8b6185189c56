"""What unit tests of guards share."""

from __future__ import annotations

import pytest

from guards.models import ModelStore


@pytest.fixture(scope="session")
def store(model_store: ModelStore) -> ModelStore:
    """The models, loaded once."""
    return model_store
